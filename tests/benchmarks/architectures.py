"""Which backend takes which architecture: `python -m tests.benchmarks.architectures`.

Each network, with random weights, goes through every backend in fp32, as `gpubench run` does it;
parity against eager fp32 is checked as always. With ``--weights probe`` it is fitted first, and
checked in what ``--backend`` says, such as torch-eager:bf16 or openvino:int8. A cell that is not ok
has the reason that gpubench gave. Results are kept after every cell, so that an interrupted run
goes on where it was, and several may share an output: README.md and architectures.json below -o.
"""

from __future__ import annotations

import argparse
import json
import os
import string
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from msgspec.structs import replace

from gpubench import __version__
from gpubench.backends import base
from gpubench.machine.environment import cpu_model
from gpubench.run import record_builder
from gpubench.run.agent.client import AgentClient
from gpubench.run.agent.messages import BuildReference, Done, Measure, Prepare, Prepared
from gpubench.suite.types import Cell, Policy
from gpubench.workload.models import builder

HERE = Path(__file__).parents[2] / "reports" / "reference" / "models"
BACKENDS = ("torch-eager", "onnxruntime", "openvino", "torch-compile", "aot-inductor")
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime-gpu", "openvino", "onnx", "onnxscript")
MOST = 500
"""Characters of a reason."""
WORDS = {
    "random": "## Parity\n\n{} networks with random weights, fp32, batch 1: the largest relative "
    "error of the answers to four pictures, against eager PyTorch.",
    "probe": "## Probe weights, bf16 and int8\n\n{} networks with probe weights: their accuracy "
    "on 100 digits that were not fitted; in another precision the share of answers to 64 further "
    "digits that are those of eager PyTorch in fp32 / their largest relative error.",
}
TORCHVISION = (
    "squeezenet1_1", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x1_0", "mobilenet_v2",
    "regnet_y_400mf", "mnasnet1_0", "googlenet", "efficientnet_b0", "densenet121", "alexnet",
    "mobilenet_v3_large", "regnet_x_400mf", "swin_t", "inception_v3", "convnext_tiny",
    "vit_b_32", "resnet50", "swin_v2_t", "resnext50_32x4d", "efficientnet_v2_s", "vgg11_bn",
    "wide_resnet50_2", "maxvit_t",
)  # fmt: skip
TIMM = (
    "mobilenetv4_conv_small", "vit_tiny_patch16_224", "convnext_atto", "levit_128s",
    "repvgg_a0", "mobileone_s0", "ghostnet_100", "edgenext_xx_small", "mobilevitv2_050",
    "efficientvit_b0", "xcit_nano_12_p16_224", "tinynet_e", "lcnet_050", "fastvit_t8",
    "pvt_v2_b0", "mobilevit_xxs", "convit_tiny", "pit_ti_224", "resmlp_12_224",
    "gmlp_ti16_224", "mixer_s32_224", "repvit_m0_9", "starnet_s1", "mambaout_femto",
    "inception_next_atto", "convnextv2_atto", "deit_tiny_patch16_224", "crossvit_tiny_240",
    "resnest14d", "dla46_c", "ese_vovnet19b_dw", "selecsls42b", "mixnet_s", "fbnetc_100",
    "hgnetv2_b0", "efficientformerv2_s0", "tiny_vit_5m_224", "visformer_tiny",
    "gcvit_xxtiny", "poolformer_s12", "efficientnet_lite0", "tf_efficientnetv2_b0",
    "mobilevit_xs", "eva02_tiny_patch14_224", "hrnet_w18_small", "coatnet_nano_rw_224",
    "maxvit_pico_rw_256", "mobilenetv4_hybrid_medium", "convnext_nano", "convnextv2_nano",
    "res2net50_26w_4s", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224", "nfnet_l0",
    "vit_small_patch32_224", "deit3_small_patch16_224", "gmlp_s16_224", "mixer_b16_224",
    "beit_base_patch16_224",
)  # fmt: skip
MODELS = (*TORCHVISION[:9], *(f"timm/{name}" for name in TIMM[:40]), *TORCHVISION[9:],
          *(f"timm/{name}" for name in TIMM[40:]))  # fmt: skip
"""The small and different ones first."""

POLICY = Policy(
    repeats=1, warmup_iterations=1, warmup_s=0.01, duration_s=0.05, max_samples=5,
    parity_images=4, timeout_s=900, prepare_timeout_s=1800,
)  # fmt: skip
ANSWERS = 64
"""That are compared where rounding may change them: of probes, and in another precision."""


def measured(agent: AgentClient, cell: Cell, core: int) -> dict[str, Any]:
    """What becomes of a cell: as `gpubench run` does it, but for rooflines."""
    begin, policy = monotonic(), POLICY
    if cell.weights == "probe":
        policy = replace(policy, parity_images=ANSWERS)

    def told(status: str, reason: str = "", **more: Any) -> dict[str, Any]:
        seconds = round(monotonic() - begin)
        return {"status": status, "reason": reason[:MOST], "seconds": seconds} | more

    if why := base.get(cell.backend).unsupported(cell):
        return told("unsupported", why)
    artefact = agent.ask(Prepare(cell, (core,), policy.prepare_timeout_s))
    reference = agent.ask(BuildReference(cell.workload, policy))
    for reply in (artefact, reference):
        if not isinstance(reply, Prepared):
            return told("failed", getattr(reply, "reason", str(reply)))
    done = agent.ask(Measure(cell, policy, artefact.path, reference.path, [(core,)]))
    if not isinstance(done, Done):
        return told("failed", getattr(done, "reason", str(done)))
    more: dict[str, Any] = {}
    record = record_builder.measured(cell, 0, done, {})  # which judges its answers
    if parity := record.parity:
        more = {"relative_error": parity.relative_error, "match": parity.top1_agreement}
    if cell.weights == "probe" and (Path(artefact.path) / "model.json").exists():
        more["held_out"] = builder.card(Path(artefact.path)).held_out_accuracy
    return told(record.status, record.reason, **more)


def page(kept: dict[str, Any]) -> str:
    """Tables of models and backends, and why what is not ok is not."""
    networks = kept["networks"]
    lines = [
        "# Architectures and backends\n",
        "`python -m tests.benchmarks.architectures`, a core for each cell. A letter behind a "
        "number says where it is from; without one it is from a.\n",
    ]
    made_on = [cell["made"] for by in networks.values() for c in by.values() for cell in c.values()]
    for number, about in enumerate(kept["made"]):
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        lines.append(
            f"- {string.ascii_lowercase[number]}: {about['cpu']}, {made_on.count(number)} cells, "
            f"the last on {about['date']}; {versions}"
        )
    for weights, words in WORDS.items():
        chosen = {model: found[weights] for model, found in networks.items() if weights in found}
        chosen = {model: chosen[model] for model in MODELS if model in chosen}
        columns = list(dict.fromkeys(name for cells in chosen.values() for name in cells))
        columns.sort(key=lambda name: (":" in name, BACKENDS.index(name.partition(":")[0])))
        if chosen:
            lines += ["", words.format(len(chosen)), *_table(chosen, columns, weights)]
    return "\n".join(lines) + "\n"


def _table(
    networks: dict[str, dict[str, dict[str, Any]]], columns: list[str], weights: str
) -> list[str]:
    extra = ["held out"] if weights == "probe" else []
    heads = [name.replace(":", " ") for name in columns]
    lines = [
        "; ".join(
            f"{name.replace(':', ' ')} {sum(found[name]['status'] == 'ok' for found in tried)} of "
            f"{len(tried)} ok"
            for name in columns
            for tried in [[found for found in networks.values() if name in found]]
        )
        + ".",
        "",
        f"| model | {' | '.join(extra + heads)} |",
        f"|{' --- |' * (len(extra + heads) + 1)}",
    ]
    reasons: dict[str, int] = {}
    for model, cells in networks.items():
        held = [cell["held_out"] for cell in cells.values() if cell.get("held_out") is not None]
        row = [f"{held[0]:.2f}" if held else ""] if extra else []
        for name in columns:
            cell = cells.get(name)
            if cell is None:
                row.append("")
                continue
            if cell["status"] != "ok":
                reason = reasons.setdefault(cell["reason"], len(reasons) + 1)
                words = f"{cell['status']} [{weights[0]}{reason}]"
            elif ":" in name:
                words = f"{cell['match']:.2f} / {cell['relative_error']:.2g}"
            else:
                words = f"{cell['relative_error']:.0e}"
            elsewhere = f" {string.ascii_lowercase[cell['made']]}" if cell["made"] else ""
            row.append(words + elsewhere)
        lines.append(f"| {model} | {' | '.join(row)} |")
    return lines + [f"\n[{weights[0]}{number}] {reason}" for reason, number in reasons.items()]


def keep(file: Path, model: str, weights: str, name: str, cell: dict[str, Any]) -> None:
    """Add to what there is by now, which another process, or machine, may have added to."""
    kept = json.loads(file.read_text()) if file.exists() else {"networks": {}, "made": []}
    versions = {"gpubench": __version__} | {package: version(package) for package in PACKAGES}
    about = {"date": f"{datetime.now(tz=UTC):%Y-%m-%d}", "cpu": cpu_model(), "versions": versions}
    places = [(one["cpu"], one["versions"]) for one in kept["made"]]
    if (about["cpu"], versions) in places:
        cell["made"] = places.index((about["cpu"], versions))
        kept["made"][cell["made"]] = about
    else:
        cell["made"] = len(places)
        kept["made"].append(about)
    kept["networks"].setdefault(model, {}).setdefault(weights, {})[name] = cell
    file.write_text(json.dumps(kept, indent=1) + "\n")
    (file.parent / "README.md").write_text(page(kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--weights", default="random", choices=WORDS)
    parser.add_argument("--backend", default=",".join(BACKENDS), help="NAME[:PRECISION],...")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="directory")
    parser.add_argument("--cache-dir", type=Path, help="default: a new one")
    given = parser.parse_args()
    columns = given.backend.split(",")
    given.output.mkdir(parents=True, exist_ok=True)
    file = given.output / "architectures.json"
    core = sorted(os.sched_getaffinity(0))[-1]
    os.environ["OMP_NUM_THREADS"] = "1"
    names = [column.partition(":")[0] for column in columns]
    modules = list(dict.fromkeys(m for name in names for m in base.get(name).preload))
    with TemporaryDirectory() as folder:
        place = given.cache_dir or Path(folder)
        with AgentClient(modules, place, Path(folder, "agent.log")) as agent:
            agent.start()
            for model, column in product(given.models, columns):
                kept = json.loads(file.read_text())["networks"] if file.exists() else {}
                if column in kept.get(model, {}).get(given.weights, {}):
                    continue
                backend, _, precision = column.partition(":")
                cell = Cell(
                    backend=backend, device="cpu", model=model, weights=given.weights,
                    images="digits", precision=precision or "fp32", batch_size=1, replicas=1,
                    cores=1, scenario="latency", boundary="compute",
                )  # fmt: skip
                found = measured(agent, cell, core)
                keep(file, model, given.weights, column, found)
                print(model, given.weights, column, found, flush=True)


if __name__ == "__main__":
    main()

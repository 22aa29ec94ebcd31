"""Which backend takes which architecture: `python -m tests.benchmarks.architectures`.

Each network, with random weights (``--weights probe``: the fitted ones), goes through `gpubench
run` with every backend, one process at a time; parity against eager fp32 is checked as always. A
cell that is not ok has the reason that gpubench gave. Results are kept after every network, so that
an interrupted run goes on where it was, and further backends (``--backend``) join the others:
README.md and architectures.json below -o.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from gpubench import __version__
from gpubench.backends import base
from gpubench.machine.environment import cpu_model
from gpubench.run.agent.client import AgentClient
from gpubench.run.agent.messages import BuildReference, Done, Measure, Prepare, Prepared
from gpubench.suite.types import Cell, Policy

HERE = Path(__file__).parents[2] / "reports" / "reference" / "models"
BACKENDS = ("torch-eager", "onnxruntime", "openvino", "torch-compile", "aot-inductor")
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime-gpu", "openvino", "onnx", "onnxscript")
MOST = 500
"""Characters of a reason."""
TORCHVISION = (
    "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2",
    "densenet121", "googlenet", "inception_v3", "squeezenet1_1", "shufflenet_v2_x1_0",
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0",
    "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_400mf", "convnext_tiny", "vit_b_32",
    "swin_t", "swin_v2_t", "maxvit_t",
)  # fmt: skip
TIMM = (
    "vit_tiny_patch16_224", "vit_small_patch32_224", "deit_tiny_patch16_224",
    "deit3_small_patch16_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_ns_224", "convnext_nano", "convnextv2_nano", "mobilenetv4_conv_small",
    "mobilenetv4_hybrid_medium", "efficientnet_lite0", "tf_efficientnetv2_b0",
    "efficientvit_b0", "maxvit_pico_rw_256", "coatnet_nano_rw_224", "mobilevit_xs",
    "mobileone_s0", "repvgg_a0", "ghostnet_100", "hrnet_w18_small", "dla34", "res2net50_26w_4s",
    "resnest14d", "xcit_nano_12_p16_224", "poolformer_s12", "levit_128s", "fastvit_t8",
    "mixer_b16_224", "gmlp_s16_224", "eva02_tiny_patch14_224", "nfnet_l0", "edgenext_x_small",
)  # fmt: skip
MODELS = (*TORCHVISION, *(f"timm/{name}" for name in TIMM))

POLICY = Policy(
    repeats=1, warmup_iterations=1, warmup_s=0.01, duration_s=0.05, max_samples=5,
    parity_images=4, timeout_s=900, prepare_timeout_s=1800,
)  # fmt: skip


def measured(agent: AgentClient, cell: Cell, core: int) -> dict[str, Any]:
    """What becomes of a cell: as `gpubench run` does it, but for rooflines."""
    begin = monotonic()

    def told(status: str, reason: str = "", error: float | None = None) -> dict[str, Any]:
        seconds = round(monotonic() - begin)
        return {"status": status, "reason": reason[:MOST], "relative_error": error} | (
            {"seconds": seconds}
        )

    if why := base.get(cell.backend).unsupported(cell):
        return told("unsupported", why)
    reference = agent.ask(BuildReference(cell.workload, POLICY))
    if not isinstance(reference, Prepared):
        return told("failed", f"reference: {reference}")
    artefact = agent.ask(Prepare(cell, (core,), POLICY.prepare_timeout_s))
    if not isinstance(artefact, Prepared):
        return told("failed", getattr(artefact, "reason", str(artefact)))
    done = agent.ask(Measure(cell, POLICY, artefact.path, reference.path, [(core,)]))
    if not isinstance(done, Done):
        return told("failed", getattr(done, "reason", str(done)))
    parity = done.record.parity
    return told(done.record.status, done.record.reason, parity and parity.relative_error)


def page(kept: dict[str, Any]) -> str:
    """A table of models and backends, and why what is not ok is not."""
    networks, about = kept["networks"], kept["made"]
    backends = [name for name in BACKENDS if any(name in cells for cells in networks.values())]
    whole = sum(
        all(cells.get(name, {}).get("status") == "ok" for name in backends)
        for cells in networks.values()
    )
    lines = [
        "# Architectures and backends\n",
        f"{len(networks)} networks, weights `{about['weights']}`, fp32, batch 1, on a CPU; {whole}",
        "are ok with every backend: with the largest relative error of the answers to four",
        "pictures, against eager PyTorch in fp32. Made by",
        f"`{about['command']}` until {about['date']}, with gpubench {__version__},",
        f"{', '.join(f'{name} {number}' for name, number in about['versions'].items())}; "
        f"{about['cpu']}.\n",
        f"| model | {' | '.join(backends)} |\n|{' --- |' * (len(backends) + 1)}",
    ]
    reasons: dict[str, int] = {}
    for model, cells in networks.items():
        row = []
        for name in backends:
            cell = cells.get(name, {"status": "not measured", "reason": "not measured"})
            error = cell.get("relative_error")
            text = "ok" + (f" {error:.0e}" if error is not None else "")
            if cell["status"] != "ok":
                text = f"{cell['status']} [{reasons.setdefault(cell['reason'], len(reasons) + 1)}]"
            row.append(text)
        lines.append(f"| {model} | {' | '.join(row)} |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--weights", default="random", choices=("random", "probe"))
    parser.add_argument("--backend", default=",".join(BACKENDS), help="several, comma-separated")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="directory")
    parser.add_argument("--cache-dir", type=Path, help="default: a new one for every network")
    given = parser.parse_args()
    backends = given.backend.split(",")
    given.output.mkdir(parents=True, exist_ok=True)
    file = given.output / "architectures.json"
    kept = json.loads(file.read_text()) if file.exists() else {"made": {}, "networks": {}}
    core = sorted(os.sched_getaffinity(0))[-1]
    os.environ["OMP_NUM_THREADS"] = "1"
    modules = list(dict.fromkeys(m for name in backends for m in base.get(name).preload))
    with (
        TemporaryDirectory() as folder,
        AgentClient(modules, given.cache_dir or Path(folder), given.output / "agent.log") as agent,
    ):
        agent.start()
        for model in given.models:
            cells = kept["networks"].setdefault(model, {})
            for name in backends:
                if name in cells:
                    continue
                cell = Cell(
                    backend=name, device="cpu", model=model, weights=given.weights,
                    images="digits", precision="fp32", batch_size=1, replicas=1, cores=1,
                    scenario="latency", boundary="compute",
                )  # fmt: skip
                cells[name] = measured(agent, cell, core)
                kept["made"] |= {
                    "command": "python -m tests.benchmarks.architectures",
                    "weights": given.weights,
                    "date": f"{datetime.now(tz=UTC):%Y-%m-%d}",
                    "cpu": cpu_model(),
                    "versions": {package: version(package) for package in PACKAGES},
                }
                file.write_text(json.dumps(kept, indent=1) + "\n")
                (given.output / "README.md").write_text(page(kept))
                print(model, name, cells[name], flush=True)


if __name__ == "__main__":
    main()

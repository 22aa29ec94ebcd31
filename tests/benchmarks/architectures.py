"""Which backend takes which architecture: `python -m tests.benchmarks.architectures`.

Each network, with random weights (``--weights probe``: the fitted ones), goes through `gpubench
run` with every backend, one process at a time; parity against eager fp32 is checked as always. A
cell that is not ok has the reason that gpubench gave. Results are kept after every network, so that
an interrupted run goes on where it was: README.md and architectures.json below -o.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpubench import __version__
from gpubench.errors import GpubenchError
from gpubench.records.reader import read

HERE = Path(__file__).parents[2] / "reports" / "reference" / "models"
BACKENDS = ("torch-eager", "onnxruntime", "openvino", "torch-compile")
PACKAGES = ("torch", "torchvision", "timm", "openvino", "onnx", "onnxscript")
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

SUITE = """
[axes]
backend = {backends}
device = "cpu"
scenario = "latency"
[policy]
repeats = 1
warmup_iterations = 1
warmup_s = 0.01
duration_s = 0.05
max_samples = 5
parity_images = 4
timeout_s = 600
prepare_timeout_s = 1200
"""


def measured(model: str, weights: str, cache_dir: Path) -> dict[str, dict[str, Any]]:
    """By backend, what became of its cell."""
    with tempfile.TemporaryDirectory() as folder:
        suite, out = Path(folder, "architectures.toml"), Path(folder, "out")
        suite.write_text(SUITE.format(backends=json.dumps(BACKENDS)))
        words = ["run", suite, "--model", model, "--weights", weights, "-q", "-o", out]
        done = subprocess.run(
            [sys.executable, "-m", "gpubench", *map(str, words), "--cache-dir", str(cache_dir)],
            capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            records = read(out).records
        except GpubenchError:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return {name: {"status": "failed", "reason": said[-1][:500]} for name in BACKENDS}
    return {
        record.cell.backend: {
            "status": record.status,
            "reason": " ".join(filter(None, (record.kind, record.reason)))[:500],
            "relative_error": record.parity and record.parity.relative_error,
        }
        for record in records
    }


def page(found: dict[str, dict[str, dict[str, Any]]], weights: str) -> str:
    """A table of models and backends, and why what is not ok is not."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    whole = sum(all(c["status"] == "ok" for c in cells.values()) for cells in found.values())
    lines = [
        "# Architectures and backends\n",
        f"{len(found)} networks, weights `{weights}`, fp32, batch 1, on a CPU; {whole} are ok with",
        "every backend: with the largest relative error of four pictures' answers, against",
        "eager PyTorch in fp32. Made by",
        f"`python -m tests.benchmarks.architectures` with gpubench {__version__}, {versions}.\n",
        f"| model | {' | '.join(BACKENDS)} |\n|{' --- |' * (len(BACKENDS) + 1)}",
    ]
    reasons: dict[str, int] = {}
    for model, cells in found.items():
        row = []
        for name in BACKENDS:
            cell = cells.get(name, {"status": "not measured", "reason": "no record"})
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
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="directory")
    parser.add_argument("--cache-dir", type=Path, help="default: a new one for every network")
    given = parser.parse_args()
    os.nice(19)
    given.output.mkdir(parents=True, exist_ok=True)
    kept = given.output / "architectures.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for model in given.models:
        if model in found:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found[model] = measured(model, given.weights, given.cache_dir or Path(folder))
        kept.write_text(json.dumps(found, indent=1) + "\n")
        (given.output / "README.md").write_text(page(found, given.weights))
        print(model, {name: cell["status"] for name, cell in found[model].items()}, flush=True)


if __name__ == "__main__":
    main()

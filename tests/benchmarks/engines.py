"""Which networks TensorRT takes, without a GPU: `python -m tests.benchmarks.engines`.

TensorRT for RTX parses and builds on the CPU, for all GPUs that it supports. Of each network of
`tests.benchmarks.architectures`, with random weights, an engine is built in every precision, of
int8 with every ``int8_rest``, and each as one that can be captured in a CUDA graph, too. Nothing is
run. What came of it is kept after every engine in README.md and engines.json below -o, so that an
interrupted run goes on where it was; what took the process with it is not tried again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any

from gpubench.backends import _trt_build as trt_build
from gpubench.cache import Cache
from gpubench.errors import GpubenchError
from gpubench.suite.types import Cell
from gpubench.workload.models import quantization, registry
from tests.benchmarks.architectures import MODELS

HERE = Path(__file__).parents[2] / "reports" / "reference" / "engines"
RESTS = ("fp32", "tf32", "fp16", "bf16")
CASES = [*((p, "fp32") for p in RESTS), *(("int8", rest) for rest in RESTS)]
"""(precision, int8_rest)."""


def name_of(precision: str, rest: str, captured: bool) -> str:
    """'int8/fp16, graph'."""
    return precision + f"/{rest}" * (precision == "int8") + ", graph" * captured


def build(trt: Any, cell: Cell, captured: bool, cache: Cache) -> dict[str, Any]:
    """What becomes of one engine."""
    begin, rest = monotonic(), quantization.rest_of(cell)
    try:
        model = registry.resolve(cell.workload, cache)
        if cell.precision == "int8":
            file = quantization.onnx(cell, model, cache, "tensorrt", rest)
        else:
            file = model.onnx(cell.precision)
        exported = monotonic()
        settings = trt_build.BuildSettings(
            batch_size=cell.batch_size, tf32="tf32" in (cell.precision, rest), current_gpu=False,
            user_memory=captured,
        )  # fmt: skip
        made = trt_build.build(trt, trt_build.RTX, file, settings)
    except GpubenchError as error:
        return {"status": error.kind, "reason": str(error)[:500]}
    seconds = [round(exported - begin, 1), round(monotonic() - exported, 1)]
    return {"status": "ok", "bytes": len(made.plan), "flags": made.flags, "seconds": seconds}


def cells(model: str) -> Iterator[tuple[Cell, bool]]:
    for (precision, rest), captured in product(CASES, (False, True)):
        options = {"int8_rest": rest, "calibration_images": 16} if precision == "int8" else {}
        yield Cell(
            backend="tensorrt", device="cuda", model=model, weights="random", images="synthetic",
            precision=precision, batch_size=8, replicas=1, cores=0, scenario="latency",
            boundary="compute", options=options,
        ), captured  # fmt: skip


def page(kept: dict[str, Any]) -> str:
    columns = [name_of(*case, captured) for case in CASES for captured in (False, True)]
    lines = [
        "# Engines built without a GPU\n",
        f"`python -m tests.benchmarks.engines`: TensorRT for RTX {kept['version']} on the CPU, "
        "batch 8, random weights; MiB of each engine, or what came in its place. None was run.\n",
        f"| model | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns),
    ]  # fmt: skip
    why: dict[str, None] = {}
    for model, found in kept["engines"].items():
        row = []
        for column in columns:
            got = found.get(column, {"status": ""})
            row.append(f"{got['bytes'] / 2**20:.1f}" if got["status"] == "ok" else got["status"])
            if got.get("reason"):
                why[f"- {model}, {column}: {got['reason'].splitlines()[0][:200]}"] = None
        lines.append(f"| {model} | {' | '.join(row)} |")
    return "\n".join([*lines, "", *why]).rstrip() + "\n"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=HERE)
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("models", nargs="*", default=MODELS)
    given = parser.parse_args(words)
    given.output.mkdir(parents=True, exist_ok=True)
    file, end = given.output / "engines.json", monotonic() + 60 * given.minutes
    trt, cache = trt_build.load_flavour(trt_build.RTX), Cache(given.cache_dir)
    kept = json.loads(file.read_text()) if file.is_file() else {"engines": {}}
    kept["version"] = trt.__version__

    def keep() -> None:
        file.write_text(json.dumps(kept, indent=1) + "\n")
        (given.output / "README.md").write_text(page(kept))

    for model in given.models:
        found = kept["engines"].setdefault(model, {})
        for cell, captured in cells(model):
            name = name_of(cell.precision, quantization.rest_of(cell), captured)
            if name in found:
                continue
            if monotonic() > end:
                return
            found[name] = {"status": "crash"}  # until it is known better
            keep()
            found[name] = build(trt, cell, captured, cache)
            keep()
            print(model, name, found[name]["status"], found[name].get("seconds", ""), flush=True)


if __name__ == "__main__":
    main()

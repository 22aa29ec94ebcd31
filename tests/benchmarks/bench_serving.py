"""`gpubench.load(DIR).logits` against the deployed cell's own loop, boundary transfer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np
import pytest

import gpubench
from gpubench.backends import base
from gpubench.measure import protocol
from gpubench.run import deploy as deploying
from gpubench.run import setup
from gpubench.run.watcher import Silent

Figure = Callable[[str, float, float], None]
PAIRS, BLOCK_S = 60, 0.1
INNER = 21
"""The 22nd of 60 from either end is a 96 % interval of the median (binomial)."""
REACH = 0.03
SUITE = """
[workload]
model = "{model}"
[axes]
backend = ["{backend}"]
precision = ["{precision}"]
batch_size = [1]
scenario = ["latency"]
boundary = ["transfer"]
device = "cpu"
[policy]
parity_images = 16
"""


def timed(once: Callable[[], object], times: int) -> float:
    """Median ns of one; the first, whose threads the other's block has sent to sleep, is left out.

    Timed as `gpubench.measure.loop` does.
    """
    once()
    found = []
    for _ in range(times):
        begin = perf_counter_ns()
        once()
        found.append(perf_counter_ns() - begin)
    return median(found)


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
@pytest.mark.parametrize(
    ("backend", "precision"),
    [("openvino", "fp32"), ("onnxruntime", "fp32"), ("openvino", "int8")],
)
def test_serving_is_as_fast_as_the_cell(
    tmp_path: Path, figure: Figure, backend: str, precision: str, model: str
) -> None:
    """Short blocks in turn, both sessions open on the same cores."""
    suite, out = tmp_path / "one.toml", tmp_path / "out"
    suite.write_text(SUITE.format(model=model, backend=backend, precision=precision))
    session = setup.session(str(suite), {}, None, out, False, ())
    made = deploying.deploy(session, str(suite), out, Silent())
    cell, before = made.cell, os.sched_getaffinity(0)
    images: Any = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    try:
        os.sched_setaffinity(0, made.cores[0])  # as a worker is
        device = base.Device("cpu", 0, tuple(made.cores[0]))
        own = base.get(backend).open(cell, out / made.artefact, device)
        with own, gpubench.load(out) as classifier:
            enqueue, finish = protocol.steps(own, images, cell)

            def cells() -> None:
                enqueue()
                finish()

            def served() -> None:
                classifier.logits(images)

            times = max(3, round(BLOCK_S * 1e9 / timed(cells, 10)))
            timed(served, times)
            ratios, levels = [], []
            for pair in range(PAIRS):
                first, second = (cells, served) if pair % 2 else (served, cells)
                took = {one: timed(one, times) for one in (first, second)}
                ratios.append(took[served] / took[cells])
                levels.append(took[cells])
    finally:
        os.sched_setaffinity(0, before)
    ratio, ordered = median(ratios), sorted(ratios)
    low, high = ordered[INNER], ordered[-1 - INNER]
    print(
        f"\n{cell.label} {model}: {median(levels) / 1e6:.2f} ms, ratio {ratio:.3f} "
        f"(95 %: {low:.3f} to {high:.3f}, {PAIRS} pairs); load {os.getloadavg()[0]:.1f}"
    )
    figure("|ratio - 1|", abs(ratio - 1), REACH)

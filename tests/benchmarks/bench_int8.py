"""int8 against fp32: how much faster, how many answers agree, and what accuracy it costs."""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np
import pytest

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.suite.types import Workload
from gpubench.workload.data import builtin, preprocess
from gpubench.workload.models import registry
from tests.backends import tiny

Figure = Callable[[str, float, float], None]
BATCH = 8


def _open(backend: str, model: str, precision: str, cores: tuple[int, ...]) -> Any:
    cache = Cache()
    cell = tiny.cell(
        backend,
        model=model,
        weights="probe",
        images="digits",
        precision=precision,
        batch_size=BATCH,
        cores=len(cores),
    )
    network = registry.resolve(cell.workload, cache)
    artefact = base.get(backend).prepare(cell, network, cache)
    return base.get(backend).open(cell, artefact, base.Device("cpu", 0, cores))


def _digits(model: str, count: int) -> tuple[Any, Any]:
    """(inputs, labels) of the first digits that nothing was fitted to or calibrated on."""
    spec = registry.resolve(Workload(model=model, weights="probe"), Cache()).spec
    pixels, labels = builtin.digits()
    part = slice(builtin.FITTED, builtin.FITTED + count)
    return np.stack([preprocess.apply(spec, p) for p in pixels[part]]), np.array(labels[part])


def _answers(session: Any, inputs: Any) -> Any:
    """Class of each input."""
    found = []
    for at in range(0, len(inputs), BATCH):
        session.copy_in(inputs[np.arange(at, at + BATCH) % len(inputs)])
        session.run()
        session.sync()
        found.append(session.copy_out().argmax(1))
    return np.concatenate(found)[: len(inputs)]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_resnet50_int8_against_fp32(backend: str) -> None:
    """The probe, batch 8, all cores: 15 interleaved pairs of two batches; 208 digits."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    inputs, labels = _digits("resnet50", 208)
    with (
        _open(backend, "resnet50", "fp32", cores) as wide,
        _open(backend, "resnet50", "int8", cores) as narrow,
    ):
        exact, found = _answers(wide, inputs), _answers(narrow, inputs)
        times: dict[str, list[float]] = {"fp32": [], "int8": []}
        for pair in range(15):
            arms = [("fp32", wide), ("int8", narrow)]
            for name, session in arms if pair % 2 else arms[::-1]:
                begin = perf_counter_ns()
                for _ in range(2):
                    session.run()
                    session.sync()
                times[name].append((perf_counter_ns() - begin) / (2 * BATCH))
    ratios = [a / b for a, b in zip(times["fp32"], times["int8"], strict=True)]
    rates = {name: 1e9 / median(each) for name, each in times.items()}
    print(
        f"\n{backend} resnet50 b{BATCH}, {len(cores)} cores: int8 {median(ratios):.2f} x fp32 "
        f"(quartiles {np.quantile(ratios, 0.25):.2f}, {np.quantile(ratios, 0.75):.2f}); images/s "
        f"{rates['fp32']:.1f} -> {rates['int8']:.1f}; top-1 agreement "
        f"{np.mean(exact == found):.3f}; accuracy on {len(labels)} digits "
        f"{np.mean(exact == labels):.3f} -> {np.mean(found == labels):.3f}"
    )


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_accuracy_that_int8_costs(backend: str, figure: Figure) -> None:
    """Model `digits`, on all 1,297 digits that it was not trained on; nothing here is timed."""
    inputs, labels = _digits("digits", 1297)
    correct = {}
    for precision in ("fp32", "int8"):
        with _open(backend, "digits", precision, (0,)) as session:
            correct[precision] = int((_answers(session, inputs) == labels).sum())
    print(f"\n{backend} digits: right of {len(labels)}: {correct}")
    drop = 100 * (correct["fp32"] - correct["int8"]) / len(labels)
    figure("points of accuracy lost", drop, 0.5)

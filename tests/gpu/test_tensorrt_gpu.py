"""The whole backend on a real GPU: build, load, run, with and without a CUDA graph."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace as Bag
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.backends.base import Device
from gpubench.backends.tensorrt import FLAVOURS, TensorRT
from gpubench.cache import Cache
from gpubench.errors import Unavailable
from gpubench.suite.types import Cell
from tests.backends.onnx_files import conv_net

BATCH = 4
TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}


def cell(precision: str, **options: Any) -> Cell:
    return Cell(
        backend="tensorrt",
        device="cuda",
        model="net.onnx",
        weights="random",
        images="synthetic",
        precision=precision,  # type: ignore[arg-type]
        batch_size=BATCH,
        replicas=1,
        cores=0,
        scenario="latency",
        boundary="compute",
        options=options,
    )


@pytest.fixture(scope="module")
def usable() -> dict[str, str]:
    """Flavours that can be used here, or a skip with the reason and the remedy."""
    try:
        found: dict[str, str] = TensorRT().probe()["flavours"]
    except Unavailable as error:
        pytest.skip(f"{error.reason}: {error.remedy}")
    return found


def reference(file: Path, images: Any) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"images": images})
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("precision", list(TOLERANCE))
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_answers_of_every_slot(
    usable: dict[str, str], tmp_path: Path, flavour: str, precision: str, graph: bool
) -> None:
    if flavour not in usable:
        pytest.skip(f"{flavour} is not installed: see `gpubench doctor`")
    images = np.random.default_rng(1).normal(size=(2, BATCH, 3, 8, 8)).astype(np.float32)
    # The quantised network is its own reference; the others approximate the fp32 one.
    exact = conv_net(tmp_path / "exact.onnx", "int8" if precision == "int8" else "fp32")
    file = conv_net(tmp_path / "net.onnx", precision)
    model: Any = Bag(onnx=lambda precision: file)
    task = cell(precision, flavour=flavour, cuda_graph=graph)
    backend, cache = TensorRT(), Cache(tmp_path / "cache")
    try:
        artefact = backend.prepare(task, model, cache)
    except Unavailable as error:
        pytest.skip(f"{error.reason}: {error.remedy}")
    with backend.open(task, artefact, Device("cuda", 0)) as session:
        assert session.facts["flavour"] == flavour
        assert session.facts["cuda_graph"] is graph
        assert session.facts.get("kernels_loaded", True), "what was compiled while preparing"
        for batch in images:
            session.copy_in(batch)
            session.run()
            session.sync()
            expected = reference(exact, batch)
            error = np.abs(session.copy_out() - expected).max() / np.abs(expected).max()
            assert error < TOLERANCE[precision]


@pytest.mark.slow
@pytest.mark.parametrize("graph", [False, True])
def test_streams_answer_alike(usable: dict[str, str], tmp_path: Path, graph: bool) -> None:
    images = np.random.default_rng(1).normal(size=(BATCH, 3, 8, 8)).astype(np.float32)
    file = conv_net(tmp_path / "net.onnx")
    model: Any = Bag(onnx=lambda precision: file)
    expected, backend, cache = reference(file, images), TensorRT(), Cache(tmp_path / "cache")
    for flavour in usable:
        task = replace(cell("fp32", flavour=flavour, cuda_graph=graph, streams=2),
                       scenario="throughput")  # fmt: skip
        assert backend.unsupported(task) is None
        artefact = backend.prepare(task, model, cache)
        with backend.open(task, artefact, Device("cuda", 0)) as session:
            session.copy_in(images)
            for _ in range(3):
                session.run()
                session.sync()
                error = np.abs(session.copy_out() - expected).max() / np.abs(expected).max()
                assert error < TOLERANCE["fp32"]

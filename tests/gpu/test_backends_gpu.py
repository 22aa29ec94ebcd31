"""The same contract on a CUDA device, over precisions and options."""

from __future__ import annotations

from typing import Any

import pytest

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.errors import Unavailable
from gpubench.workload.models import builder
from tests.backends import contract, tiny

pytestmark = [
    pytest.mark.skipif(bool(tiny.no_cuda()), reason=tiny.no_cuda() or "-"),
    pytest.mark.slow,
]

CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(("torch-eager", p, {}) for p in ("fp32", "tf32", "fp16", "bf16", "amp")),
    *(("torch-eager", p, {"cuda_graph": True}) for p in ("fp32", "fp16", "amp")),
    ("torch-eager", "fp16", {"memory_format": "channels_last", "cudnn_benchmark": True}),
    *(("torch-compile", p, {}) for p in ("fp32", "tf32", "fp16", "amp")),
    ("torch-compile", "fp16", {"mode": "reduce-overhead"}),
    ("torch-compile", "fp16", {"cuda_graph": True}),
    *(("aot-inductor", p, {}) for p in ("fp32", "tf32", "fp16", "amp")),
    ("aot-inductor", "fp16", {"memory_format": "channels_last", "cuda_graph": True}),
    *(("torch-tensorrt", p, {"path": w}) for p in ("fp32", "fp16") for w in ("export", "compile")),
    ("torch-tensorrt", "fp16", {"cuda_graph": True}),
    *(("onnxruntime", p, {}) for p in ("fp32", "tf32", "fp16")),
    ("onnxruntime", "fp16", {"cuda_graph": True}),
    ("onnxruntime", "fp16", {"prefer_nhwc": True}),
    ("onnxruntime", "tf32", {"provider": "tensorrt"}),
    *(("tensorrt", p, {}) for p in ("fp32", "tf32", "fp16")),
]
EXACT = 2e-5
"""fp32 with its sums in any order stays below (1e-7 on a CPU), TF32 does not (2e-4)."""


def _open(
    name: str,
    precision: str,
    options: dict[str, Any],
    model: tiny.Model,
    cache: Cache,
    batch: int = 4,
) -> tuple[base.Backend, base.Session]:
    backend = base.get(name)
    cell = tiny.cell(
        name, device="cuda", cores=0, precision=precision, options=options, batch_size=batch
    )
    assert backend.unsupported(cell) is None
    try:
        backend.probe()
        artefact = backend.prepare(cell, model, cache)  # type: ignore[arg-type]
        return backend, backend.open(cell, artefact, base.Device("cuda", 0))
    except Unavailable as error:
        pytest.skip(f"{error.reason}; {error.remedy}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.Model:
    return tiny.Model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "load_module", lambda state: tiny.module())


@pytest.mark.parametrize(("name", "precision", "options"), CASES)
def test_contract(
    name: str, precision: str, options: dict[str, Any], model: tiny.Model, cache: Cache
) -> None:
    backend, session = _open(name, precision, options, model, cache)
    with session:
        contract.check(backend, session, 4, precision)
        if name == "torch-compile":  # opening must only load what preparing compiled
            assert session.facts["inductor_cache_hits"] > 0
            assert session.facts["inductor_cache_misses"] == 0
        if options.get("provider") == "tensorrt":
            assert session.facts["engines"]
            assert not session.facts["engine_built_at_open"]


@pytest.mark.parametrize(
    "name",
    ["torch-eager", "torch-compile", "aot-inductor", "onnxruntime", "tensorrt", "torch-tensorrt"],
)
def test_fp32_is_not_tf32(name: str, model: tiny.Model, cache: Cache) -> None:
    """In a batch large enough that tensor cores pay, or tf32 would prove nothing about fp32."""
    images = tiny.images(256)
    exact = tiny.reference(images)
    for precision in ("fp32", "tf32"):
        _, session = _open(name, precision, {}, model, cache, len(images))
        with session:
            got = contract.answer(session, images)
        assert contract.same(got, exact, contract.TOLERANCE["tf32"])
        assert contract.same(got, exact, EXACT) is (precision == "fp32")


@pytest.mark.parametrize("name", ["torch-eager", "onnxruntime"])
def test_a_captured_graph_writes_its_output(name: str, model: tiny.Model, cache: Cache) -> None:
    """Before the first replay the output is poison, so a stale buffer cannot pass for an answer."""
    import numpy as np

    _, session = _open(name, "fp32", {"cuda_graph": True}, model, cache)
    with session:
        if name == "onnxruntime":
            assert np.isnan(session.copy_out()).all()
        assert np.isfinite(contract.answer(session, tiny.images(4))).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torch-eager", {}),
        ("torch-eager", {"cuda_graph": True}),
        ("torch-compile", {}),
        ("aot-inductor", {}),
        ("onnxruntime", {}),
        ("tensorrt", {}),
    ],
)
def test_run_returns_before_the_work_is_done(
    name: str, options: dict[str, Any], cache: Cache, model: tiny.Model
) -> None:
    """Enqueuing must not synchronise. Each run takes the GPU about a millisecond (8192 images,
    36 GFLOP in fp32), and 50 of them fit into the driver's queue of launches.
    """
    import time

    _, session = _open(name, "fp32", options, model, cache, 8192)
    with session:
        contract.answer(session, tiny.images(8192))
        start = time.perf_counter()
        for _ in range(50):
            session.run()
        enqueued = time.perf_counter() - start
        session.sync()
        assert enqueued < 0.5 * (time.perf_counter() - start)

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpubench.backends.base import Device
from gpubench.backends.torch_eager import TorchEager, _captured
from gpubench.cache import Cache
from gpubench.errors import CellFailed, Unavailable
from tests.backends import contract, tiny

pytestmark = pytest.mark.usefixtures("tiny_network")
BACKEND = TorchEager()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": "tf32"}, "tensor cores"),
        ({"precision": "int8"}, "int8"),
        ({"precision": "int8", "device": "cuda"}, "int8"),
        ({"model": "mine.onnx"}, "'mine.onnx' is an ONNX file"),
        ({"options": {"cuda_graph": True}}, "cuda_graph needs"),
        ({"options": {"cudnn_benchmark": True}}, "cudnn_benchmark needs"),
    ],
)
def test_unsupported_says_why(changes: dict[str, object], reason: str) -> None:
    assert reason in (BACKEND.unsupported(tiny.cell("torch-eager", **changes)) or "")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "amp"])
def test_everything_on_cuda_is_supported(precision: str) -> None:
    cell = tiny.cell("torch-eager", device="cuda", precision=precision)
    assert BACKEND.unsupported(cell) is None


@pytest.mark.parametrize(
    ("precision", "options", "facts"),
    [
        ("fp32", {}, {"dtype": "float32", "autocast": None, "channels_last": False}),
        ("fp32", {"memory_format": "channels_last"}, {"channels_last": True}),
        ("bf16", {}, {"dtype": "bfloat16", "autocast": None}),
        ("fp16", {}, {"dtype": "float16", "autocast": None}),
        ("amp", {}, {"dtype": "float32", "autocast": "bfloat16"}),
    ],
)
def test_it_runs_as_it_says(
    precision: str,
    options: dict[str, object],
    facts: dict[str, object],
    model: tiny.Model,
    cache: Cache,
) -> None:
    cell = tiny.cell("torch-eager", precision=precision, options=options)
    state = BACKEND.prepare(cell, model, cache)  # type: ignore[arg-type]
    with BACKEND.open(cell, state, Device("cpu", 0, (0,))) as session:
        contract.check(BACKEND, session, 4, precision)
        off = {"tf32_matmul": False, "tf32_cudnn": False, "threads": 1, "cuda_graph": False}
        assert session.facts.items() >= (off | facts).items()


def test_half_precision_is_not_fp32_in_disguise(model: tiny.Model) -> None:
    images = tiny.images(4)
    exact = tiny.reference(images)
    for precision in ("bf16", "fp16", "amp"):
        cell = tiny.cell("torch-eager", precision=precision)
        with BACKEND.open(cell, model.state(), Device("cpu", 0, (0,))) as session:
            assert not contract.same(contract.answer(session, images), exact, 1e-5), precision


def test_process_wide_state_is_restored(model: tiny.Model) -> None:
    import torch

    def state() -> tuple[object, ...]:
        return (
            torch.get_num_threads(),
            torch.is_inference_mode_enabled(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
        )

    before = state()
    cell = tiny.cell("torch-eager")
    with BACKEND.open(cell, model.state(), Device("cpu", 0, (0, 1, 2))):
        assert state() == (3, True, False, False, False)
    assert state() == before
    with pytest.raises(FileNotFoundError):  # fails half-way
        BACKEND.open(cell, model.state() / "missing", Device("cpu", 0, (0, 1, 2)))
    assert state() == before


@pytest.mark.parametrize("memory", [True, False])
def test_out_of_memory_in_a_capture_stays_that(
    monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    import torch

    error = torch.cuda.OutOfMemoryError if memory else RuntimeError

    def graph(*_: object, **__: object) -> object:
        raise error("CUDA out of memory" if memory else "operation not permitted")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    stream: Any = SimpleNamespace(synchronize=lambda: None)
    with pytest.raises(torch.cuda.OutOfMemoryError if memory else CellFailed):
        _captured(lambda x: x, torch.zeros(1), stream)


@pytest.mark.skipif(not tiny.no_cuda(), reason="there is a CUDA device")
def test_without_cuda_it_is_unavailable(model: tiny.Model) -> None:
    cell = tiny.cell("torch-eager", device="cuda")
    with pytest.raises(Unavailable, match="cannot use CUDA device 0") as caught:
        BACKEND.open(cell, model.state(), Device("cuda", 0))
    assert "nvidia-smi" in caught.value.remedy

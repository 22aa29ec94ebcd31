"""The session against a TensorRT and a torch.cuda that compute on the CPU and can refuse."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from gpubench.backends._trt_session import TrtSession, layer_types
from gpubench.backends.base import Device
from gpubench.errors import CellFailed
from tests.backends.fake_tensorrt import INSPECTED, FakeTorch, FakeTrt

BATCH = 2
IMAGES = np.arange(BATCH * 12, dtype=np.float32).reshape(BATCH, 3, 2, 2)
LOGITS = IMAGES.mean(axis=(1, 2, 3))[:, None] * np.arange(1, 5)
REFUSALS = [
    ("deserialize_cuda_engine", None, "cannot be loaded"),
    ("create_execution_context", None, "no execution context"),
    ("set_input_shape", False, "refuses the shape (2, 3, 2, 2)"),
    ("infer_shapes", ["logits"], "['logits'] are not determined"),
    ("set_tensor_address", False, "refuses its address"),
]


def session(
    monkeypatch: pytest.MonkeyPatch, trt: FakeTrt, flavour: str = "tensorrt", graph: bool = False
) -> TrtSession:
    monkeypatch.setitem(sys.modules, "torch", trt.torch)  # type: ignore[arg-type]
    return TrtSession(trt, flavour, b"a plan", BATCH, Device("cuda", 1), graph)


def fakes(torch: FakeTorch | None = None, **answers: Any) -> FakeTrt:
    return FakeTrt(torch or FakeTorch(), **answers)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_it_computes(monkeypatch: pytest.MonkeyPatch, graph: bool, flavour: str) -> None:
    trt = fakes()
    assert trt.torch
    with session(monkeypatch, trt, flavour, graph) as opened:
        assert trt.torch.scopes == ["device 1", "stream 77"]
        opened.copy_in(IMAGES)
        opened.run()
        opened.sync()
        np.testing.assert_allclose(opened.copy_out(), LOGITS)
        opened.copy_in(IMAGES + 1)
        opened.run()
        opened.sync()
        assert opened.copy_out()[0, 0] == pytest.approx(LOGITS[0, 0] + 1)
    assert trt.torch.scopes == []
    handles = {call[0] for call in trt.called("execute_async_v3")}
    assert handles == {77}, "only the session's own stream"


def test_the_facts_are_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    with session(monkeypatch, fakes(dtype="HALF")) as opened:
        facts = opened.facts
    assert facts["io"]["images"] == {"dtype": "fp16", "shape": [2, 3, 2, 2]}
    assert facts["io"]["logits"] == {"dtype": "fp16", "shape": [2, 4]}
    assert facts["layer_types"] == {"fp32": 1, "fp16": 2}
    assert facts["cuda_graph"] is False


def test_outputs_are_poisoned_until_the_engine_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for graph in (False, True):
        with session(monkeypatch, fakes(), graph=graph) as opened:
            assert np.isnan(opened.copy_out()).all()


def test_one_plain_run_then_one_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fakes()
    with session(monkeypatch, trt, graph=True) as opened:
        assert trt.called("execute_async_v3") == [(77, False), (77, True)]
        opened.run()
        assert len(trt.called("execute_async_v3")) == 2, "replays do not go through TensorRT"
        assert opened.facts["cuda_graph"] is True


def test_rtx_compiles_its_kernels_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fakes()
    with session(monkeypatch, trt, "tensorrt_rtx"):
        ((settings,),) = trt.called("create_execution_context")
    assert settings.dynamic_shapes_kernel_specialization_strategy == "EAGER"
    assert trt.called("is_stream_capturable") == []


@pytest.mark.parametrize(("name", "answer", "words"), REFUSALS)
def test_a_refusal_raises_with_tensorrts_words(
    monkeypatch: pytest.MonkeyPatch, name: str, answer: Any, words: str
) -> None:
    trt = fakes(**{name: answer})
    with pytest.raises(CellFailed) as caught:
        session(monkeypatch, trt)
    assert words in caught.value.reason
    assert f"{name} refused" in caught.value.reason
    assert "not of interest" not in caught.value.reason
    assert caught.value.kind == "error"
    assert trt.torch
    assert trt.torch.scopes == [], "device and stream are as before"


@pytest.mark.parametrize(
    ("answers", "graph", "words"),
    [
        ({"execute_async_v3": [False]}, True, "the engine did not run"),
        ({"execute_async_v3": [True, False]}, True, "while it was captured"),
        ({"is_stream_capturable": False}, True, "cannot be captured"),
        ({"tensors": ["images", "more", "logits"]}, False, "expected one input"),
        ({"tensors": ["images"]}, False, "expected one input"),
        ({"dtype": "FP4"}, False, "unexpected type FP4"),
    ],
)
def test_other_failures(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], graph: bool, words: str
) -> None:
    with pytest.raises(CellFailed, match=words):
        session(monkeypatch, fakes(**answers), "tensorrt_rtx", graph)


def test_a_run_that_fails_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "did not run: execute_async_v3 refused"
    opened = session(monkeypatch, fakes(execute_async_v3=[False]))
    with opened, pytest.raises(CellFailed, match=words):
        opened.run()


@pytest.mark.parametrize(
    ("torch", "words"),
    [
        (FakeTorch(broken_graph=True), "does not answer as the engine"),
        (FakeTorch(capture_error="operation not permitted"), "cannot be captured: operation not"),
    ],
)
def test_a_bad_graph_is_an_error_not_a_fallback(
    monkeypatch: pytest.MonkeyPatch, torch: FakeTorch, words: str
) -> None:
    with pytest.raises(CellFailed, match=words):
        session(monkeypatch, fakes(torch), graph=True)
    assert torch.scopes == []


def test_a_misaligned_tensor_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CellFailed, match="misaligned"):
        session(monkeypatch, fakes(FakeTorch(misaligned=True)))


def test_out_of_memory_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = FakeTorch(capture_error="CUDA out of memory")
    with pytest.raises(CellFailed) as caught:
        session(monkeypatch, fakes(torch), graph=True)
    assert caught.value.kind == "out-of-memory"


def test_on_leaving_the_newest_object_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []

    class Tracked:
        def __init__(self, name: str) -> None:
            self.name = name

        def __del__(self) -> None:
            gone.append(self.name)

    opened = session(monkeypatch, fakes())
    for name in ("_runtime", "_engine", "_context"):
        setattr(opened, name, Tracked(name))
    opened.__exit__(None, None, None)
    assert gone == ["_context", "_engine", "_runtime"]
    assert opened.facts["layers"] == 3, "facts outlive the engine"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"Layers": ["name only"]}', '{"Bindings": []}', "null"]
)
def test_an_inspector_of_another_form_tells_nothing(text: str) -> None:
    assert layer_types(text) == {}


def test_layer_types() -> None:
    assert layer_types(INSPECTED) == {"fp32": 1, "fp16": 2}

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace as Bag
from typing import Any

import pytest

from gpubench.backends import _ort_session
from gpubench.backends import onnxruntime as module
from gpubench.backends.base import Device
from gpubench.backends.onnxruntime import OnnxRuntime
from gpubench.cache import Cache
from gpubench.errors import CellFailed, Unavailable
from tests.backends import contract, tiny

BACKEND = OnnxRuntime()
CPU = Device("cpu", 0, (0,))
TENSORRT = {"provider": "tensorrt"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": "fp16"}, "casts to fp32"),
        ({"precision": "bf16"}, "casts to fp32"),
        ({"precision": "tf32"}, "casts to fp32"),
        ({"precision": "amp", "device": "cuda"}, "amp"),
        ({"precision": "bf16", "device": "cuda"}, "lacks kernels, MaxPool's"),
        ({"options": {"provider": "tensorrt"}}, "'tensorrt' does not run on cpu"),
        ({"options": {"provider": "openvino"}, "device": "cuda"}, "does not run on cuda"),
        ({"options": {"provider": "tensorrt"}, "device": "cuda"}, "say tf32"),
        ({"options": {"cuda_graph": True}}, "option of the CUDA provider"),
        ({"options": {"cudnn_conv_algo_search": "DEFAULT"}}, "option of the CUDA provider"),
    ],
)
def test_unsupported_says_why(changes: dict[str, object], reason: str) -> None:
    assert reason in (BACKEND.unsupported(tiny.cell("onnxruntime", **changes)) or "")


def test_bf16_is_left_to_the_tensorrt_provider() -> None:
    cell = tiny.cell("onnxruntime", device="cuda", precision="bf16", options=TENSORRT)
    assert BACKEND.unsupported(cell) is None


def test_fp16_on_a_cpu_really_is_fp32_in_disguise(tmp_path: Path) -> None:
    """The reason that `unsupported` gives, seen in the graph that ONNX Runtime executes."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    half = tiny.write_onnx(tmp_path / "half.onnx", "fp16")
    onnxruntime.InferenceSession(half, options, providers=["CPUExecutionProvider"])
    casts = [n for n in onnx.load(tmp_path / "optimised.onnx").graph.node if n.op_type == "Cast"]
    if not casts:
        pytest.skip("this CPU has fp16 kernels: OnnxRuntime.unsupported could allow fp16 on it")
    assert casts[0].input[0] == "images"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"graph_optimization": "disable"},
        {"execution_mode": "parallel", "spinning": False},
    ],
)
def test_it_runs_as_it_says(options: dict[str, object], onnx_file: Path) -> None:
    cell = tiny.cell("onnxruntime", options=options)
    with BACKEND.open(cell, onnx_file, CPU) as session:
        contract.check(BACKEND, session, 4, "fp32")
        assert session.facts["providers"] == ["CPUExecutionProvider"]
        assert session.facts["threads"] == 1
        assert set(session.facts["nodes"]) == {"CPUExecutionProvider"}


def test_run_allocates_no_output(onnx_file: Path) -> None:
    with BACKEND.open(tiny.cell("onnxruntime"), onnx_file, CPU) as session:
        assert session._binding.get_outputs()[0].data_ptr() == session._logits.ctypes.data
        contract.answer(session, tiny.images(4))
        assert session._binding.get_outputs()[0].data_ptr() == session._logits.ctypes.data


def test_a_file_of_another_batch_size_is_refused(tmp_path: Path) -> None:
    fixed = tiny.write_onnx(tmp_path / "fixed.onnx", batch=8)
    with pytest.raises(CellFailed, match=r"\[8, 3, 32, 32\], not \(4"):
        BACKEND.open(tiny.cell("onnxruntime"), fixed, CPU)


@pytest.mark.skipif(not tiny.no_cuda(), reason="there is a CUDA device")
def test_cuda_without_cuda_never_becomes_the_cpu(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = tiny.cell("onnxruntime", device="cuda")
    with pytest.raises(Unavailable, match="CUDA device 0"):
        BACKEND.open(cell, onnx_file, Device("cuda", 0))
    monkeypatch.setattr("gpubench.backends._torch.enter_device", lambda stack, device: None)
    with pytest.raises(CellFailed, match="CUDAExecutionProvider cannot run") as caught:
        BACKEND.open(cell, onnx_file, Device("cuda", 0))
    assert caught.value.kind == "fallback"


class _Session:
    """What ONNX Runtime would report after a fallback."""

    def __init__(self, providers: list[str], nodes: dict[str, int]) -> None:
        self._providers, self._nodes = providers, nodes

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> list[Any]:
        class Part:
            def __init__(self, name: str, count: int) -> None:
                self.ep_name, self._count = name, count

            def get_nodes(self) -> list[int]:
                return list(range(self._count))

        return [Part(name, count) for name, count in self._nodes.items()]


@pytest.mark.parametrize(
    ("providers", "nodes", "message"),
    [
        (["CPUExecutionProvider"], {"CPUExecutionProvider": 9}, "ONNX Runtime made CPU"),
        (
            ["CUDAExecutionProvider", "CPUExecutionProvider"],
            {"CUDAExecutionProvider": 60, "CPUExecutionProvider": 2},
            r"\{'CPUExecutionProvider': 2\}",
        ),
    ],
)
def test_fallbacks_are_failures(providers: list[str], nodes: dict[str, int], message: str) -> None:
    with pytest.raises(CellFailed, match=message) as caught:
        module._verify(_Session(providers, nodes), "CUDAExecutionProvider")
    assert caught.value.kind == "fallback"


def test_a_session_that_fails_leaves_no_device_behind(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []

    def enter(stack: contextlib.ExitStack, device: Device) -> None:
        stack.callback(left.append, device)

    monkeypatch.setattr(module._torch, "enter_device", enter)
    monkeypatch.setattr(module, "_session", lambda *_: None)
    monkeypatch.setattr(module, "_facts", lambda *_: {})
    monkeypatch.setattr(module, "CudaSession", _raise)
    with pytest.raises(CellFailed, match="does not fit"):
        BACKEND.open(tiny.cell("onnxruntime", device="cuda"), onnx_file, Device("cuda", 0))
    assert left == [Device("cuda", 0)]


def _raise(*_: object) -> None:
    raise CellFailed("error", "does not fit")


def test_without_tensorrt_its_provider_is_unavailable(model: tiny.Model, cache: Cache) -> None:
    import onnxruntime

    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is built without TensorRT")
    with contextlib.suppress(Unavailable):
        module._load_tensorrt()
        pytest.skip("TensorRT 10 is installed")
    cell = tiny.cell("onnxruntime", device="cuda", precision="fp16", options=TENSORRT)
    with pytest.raises(Unavailable, match=r"needs libnvinfer\.so\.10") as caught:
        BACKEND.prepare(cell, model, cache)  # type: ignore[arg-type]
    assert "TensorRT 10" in caught.value.remedy


@pytest.mark.skipif(not tiny.no_cuda(), reason="there is a CUDA device")
def test_the_real_tensorrt_provider_reads_its_options(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime looks at them before it loads TensorRT, and then would go on on the CPU."""
    import onnxruntime

    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is built without TensorRT")
    own = onnxruntime.InferenceSession
    monkeypatch.setattr(own, "_register_ep_custom_ops", lambda *_: None)  # which loads it first
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    cell = tiny.cell("onnxruntime", device="cuda", precision="fp16", options=TENSORRT)
    monkeypatch.setattr(module, "_load_tensorrt", lambda: None)
    monkeypatch.setattr(module._torch, "enter_device", lambda *_: None)
    entry = onnx_file.parent
    (entry / "onnx.json").write_text(f'"{onnx_file.name}"')
    with pytest.raises(CellFailed, match="TensorrtExecutionProvider cannot run"):
        BACKEND.open(cell, entry, Device("cuda", 0))


def test_the_tensorrt_provider_builds_its_engine_once(
    model: tiny.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While preparing, in an entry of its own for each file, precision and batch size."""
    built = []

    def session(file: Path, cell: Any, device: Any, options: Any, provider: str, settings: Any):  # type: ignore[no-untyped-def]
        assert file.suffix == ".onnx"
        assert settings["trt_engine_cache_enable"] == "True"
        engine = Path(settings["trt_engine_cache_path"], f"{file.stem}.engine")
        if not engine.exists():
            built.append(cell.batch_size)
            engine.touch()

    class Opened(contextlib.AbstractContextManager[Any]):
        def __init__(self, session: None, batch: int, facts: Any, *_: object) -> None:
            self.facts = facts

        def run(self) -> None: ...
        def sync(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(module, "_load_tensorrt", lambda: None)
    monkeypatch.setattr(module._torch, "enter_device", lambda stack, device: None)
    monkeypatch.setattr(module, "_session", session)
    monkeypatch.setattr(module, "_facts", lambda *_: {})
    monkeypatch.setattr(module, "CudaSession", Opened)
    cache, seen = Cache(tmp_path / "cache"), set()
    for batch in (4, 8, 4):
        cell = tiny.cell(
            "onnxruntime", device="cuda", precision="fp16", batch_size=batch, options=TENSORRT
        )
        entry = BACKEND._engine(cell, model.onnx("fp16"), cache)
        seen.add(entry)
        assert BACKEND.open(cell, entry, Device("cuda", 0)).facts == {
            "engines": ["fp16-None.engine"],
            "engine_built_at_open": False,
        }
    assert built == [4, 8]
    assert len(seen) == 2


def test_the_rest_of_int8_is_the_tensorrt_providers_choice_too() -> None:
    device = Device("cuda", 0)
    for rest, used in (("tf32", {"int8"}), ("fp16", {"int8", "fp16"}), ("bf16", {"int8", "bf16"})):
        said = module._cuda("TensorrtExecutionProvider", "int8", device, {"int8_rest": rest})
        assert {key[4:-7] for key, value in said.items() if value == "True"} == used


def test_a_missing_provider_is_unavailable(model: tiny.Model) -> None:
    import onnxruntime

    if "OpenVINOExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has OpenVINO built in")
    cell = tiny.cell("onnxruntime", options={"provider": "openvino"})
    with pytest.raises(Unavailable, match="without OpenVINOExecutionProvider") as caught:
        BACKEND.prepare(cell, model, None)  # type: ignore[arg-type]
    assert "onnxruntime-openvino" in caught.value.remedy


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_replay_that_waits_is_found(monkeypatch: pytest.MonkeyPatch, synchronous: bool) -> None:
    queue: list[int] = []
    stream = Bag(query=lambda: not queue, synchronize=queue.clear)
    monkeypatch.setitem(sys.modules, "torch", Bag(cuda=Bag(_sleep=queue.append)))  # type: ignore[arg-type]

    def run() -> None:
        queue.append(1)
        if synchronous:
            queue.clear()

    assert _ort_session.waits(run, stream) is synchronous
    assert not queue

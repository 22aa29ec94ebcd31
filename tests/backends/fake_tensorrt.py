"""TensorRT and torch.cuda for tests without a GPU: they compute, record calls, and can refuse.

The fake engine has one input and one output; an image's logits are its mean times 1, 2, 3...
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace as Bag
from typing import Any, Self

import numpy as np

CLASSES = 4
OWN_MEMORY = b"a plan that allocates nothing"
DEVICE_MEMORY = 1024
"""Of all shapes that an engine takes; for those of one context it is less."""


class FakeTrt:
    """``answers`` replaces what a method gives: FakeTrt(set_input_shape=False)."""

    __version__ = "10.16.1"
    NetworkDefinitionCreationFlag = Bag(STRONGLY_TYPED=1)
    BuilderFlag = Bag(TF32="TF32", REQUIRE_USER_ALLOCATION="REQUIRE_USER_ALLOCATION")
    MemoryPoolType = Bag(WORKSPACE="WORKSPACE")
    ProfilingVerbosity = Bag(DETAILED="DETAILED")
    ComputeCapability = Bag(CURRENT="CURRENT", __members__=("CURRENT", "SM80", "SM89"))
    ExecutionContextAllocationStrategy = Bag(USER_MANAGED="USER_MANAGED")
    DynamicShapesKernelSpecializationStrategy = Bag(EAGER="EAGER")
    LayerInformationFormat = Bag(JSON="JSON")
    TensorIOMode = Bag(INPUT="in", OUTPUT="out")
    DataType = Bag(
        FLOAT="FLOAT", HALF="HALF", BF16="BF16", UINT8="UINT8", INT32="INT32", INT64="INT64"
    )

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def __init__(self, torch: FakeTorch | None = None, **answers: Any) -> None:
        self.torch = torch
        self.answers = answers
        self.calls: list[Any] = []
        self.log: Any = None

    def say(self, name: str, default: Any, *arguments: Any) -> Any:
        self.calls.append((name, *arguments))
        if name in self.answers and self.log is not None:
            self.log.log(self.ILogger.WARNING, "not of interest")
            self.log.log(self.ILogger.ERROR, f"{name} refused ")
        return self.answers.get(name, default)

    def called(self, name: str) -> list[Any]:
        return [call[1:] for call in self.calls if call[0] == name]

    def _given(self, default: Any, **methods: Any) -> Any:
        """An object whose methods answer ``methods``; other attributes come from ``default``."""
        ours = {
            name: (lambda *a, name=name, value=value: self.say(name, value, *a))
            for name, value in methods.items()
        }
        return Bag(**default, **ours)

    # building

    def Builder(self, log: Any) -> Any:  # noqa: N802
        self.log = log
        inputs = [Bag(name="images", shape=self.answers.get("shape", (-1, 3, 2, 2)))]
        network = Bag(num_inputs=self.answers.get("num_inputs", 1), get_input=inputs.__getitem__)
        self.flags = {"TF32"}
        self.config = self._given(
            {"get_flag": lambda flag: flag in self.flags},
            set_memory_pool_limit=None,
            add_optimization_profile=0,
            set_timing_cache=True,
            set_compute_capability=True,
        )
        self.config.set_flag = self.flags.add
        self.config.clear_flag = self.flags.discard
        self.config.create_timing_cache = lambda content: self.say(
            "create_timing_cache", Bag(serialize=lambda: content + b"+"), content
        )
        profile = self._given({}, set_shape=None)
        builder = self._given(
            {},
            create_network=network,
            create_builder_config=self.config,
            create_optimization_profile=profile,
        )
        own = {"REQUIRE_USER_ALLOCATION"}
        builder.build_serialized_network = lambda *given: self.say(
            "build_serialized_network", OWN_MEMORY if own <= self.flags else b"a plan", *given
        )
        return builder

    def OnnxParser(self, network: Any, log: Any) -> Any:  # noqa: N802
        errors = [Bag(desc=lambda: "unknown operator Foo")]
        return self._given({"num_errors": 1, "get_error": errors.__getitem__}, parse_from_file=True)

    # running

    def Runtime(self, log: Any) -> Any:  # noqa: N802
        self.log = log
        names = self.answers.get("tensors", ["images", "logits"])
        dtype = self.answers.get("dtype", "FLOAT")
        self.context = _Context(self)
        engine = self._given(
            {
                "num_io_tensors": len(names),
                "get_tensor_name": names.__getitem__,
                "get_tensor_mode": lambda n: "out" if n == "logits" else "in",
                "get_tensor_dtype": lambda n: dtype,
                "get_tensor_shape": lambda n: (-1, 3, 2, 2) if n == "images" else (-1, CLASSES),
                "num_layers": 3,
                "device_memory_size_v2": DEVICE_MEMORY,
            },
            create_execution_context=self.context,
            create_engine_inspector=Bag(get_engine_information=lambda _: INSPECTED),
        )
        engine.create_runtime_config = lambda: self._settings(engine)

        def deserialize(plan: bytes) -> Any:
            engine.own_memory = plan == OWN_MEMORY
            self.context.needs = 64 if engine.own_memory else 0
            return self.say("deserialize_cuda_engine", engine, plan)

        return Bag(deserialize_cuda_engine=deserialize)

    def _settings(self, engine: Any) -> Any:
        """For a context of TensorRT for RTX, which holds to that library's own rules."""
        kernels = self._given({}, serialize=b"kernels", deserialize=True)
        settings = self._given({}, create_runtime_cache=kernels, set_runtime_cache=True)
        strategies: list[str] = []
        settings.set_execution_context_allocation_strategy = strategies.append

        def context(given: Any) -> Any:
            managed = strategies == ["USER_MANAGED"]
            answer = self.context if engine.own_memory == managed else None
            return self.say("create_execution_context", answer, given)

        engine.create_execution_context = context
        return settings


class _Context:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt
        self._batch = 0
        self._tensors: dict[str, FakeTensor] = {}
        self.needs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> Any:
        self._batch = shape[0]
        return self._trt.say("set_input_shape", True, name, shape)

    def infer_shapes(self) -> Any:
        return self._trt.say("infer_shapes", [])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._batch, 3, 2, 2) if name == "images" else (self._batch, CLASSES)

    def set_tensor_address(self, name: str, address: int) -> Any:
        torch = self._trt.torch
        assert torch is not None
        self._tensors[name] = torch.memory[address]
        return self._trt.say("set_tensor_address", True, name)

    def update_device_memory_size_for_shapes(self) -> int:
        assert self._batch, "it has to know its shapes"
        return self.needs

    def set_device_memory(self, address: int, size: int) -> None:
        torch = self._trt.torch
        assert torch is not None
        assert size == torch.memory[address].numel() >= DEVICE_MEMORY
        self.needs = 0

    def is_stream_capturable(self, stream: int) -> Any:
        return self._trt.say("is_stream_capturable", True, stream)

    def execute_async_v3(self, stream: int) -> Any:
        torch = self._trt.torch
        assert torch is not None
        assert self.needs == 0, "no memory for its activations"
        answers = self._trt.say("execute_async_v3", [True], stream, bool(torch.capturing))
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer and torch.capturing is not None:
            torch.capturing.work.append(self._compute)
        elif answer:
            self._compute()
        return answer

    def _compute(self) -> None:
        images, logits = self._tensors["images"].array, self._tensors["logits"].array
        logits[:] = images.mean(axis=(1, 2, 3))[:, None] * np.arange(1, CLASSES + 1)


INSPECTED = json.dumps(
    {
        "Layers": [
            {"Name": "a", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},
            {"Name": "b", "Outputs": [{"Format/Datatype": "Half"}]},
            {"Name": "c", "Outputs": [{"Format/Datatype": "Channel major FP16 format"}]},
            {"Name": "d", "Outputs": []},
        ]
    }
)


class FakeTensor:
    def __init__(self, array: Any, address: int) -> None:
        self.array, self.address, self.contiguous = array, address, True

    def data_ptr(self) -> int:
        return self.address

    def is_contiguous(self) -> bool:
        return self.contiguous

    def is_floating_point(self) -> bool:
        return True

    def fill_(self, value: float) -> None:
        self.array[...] = value

    def copy_(self, other: FakeTensor, non_blocking: bool = False) -> None:
        self.array[...] = other.array.reshape(self.array.shape)

    def view(self, _: int) -> FakeTensor:
        return FakeTensor(self.array.reshape(-1), 0)

    def numel(self) -> int:
        return int(self.array.size)

    def clone(self) -> FakeTensor:
        return FakeTensor(self.array.copy(), 0)

    def to(self, *_: Any, copy: bool = False, **__: Any) -> FakeTensor:
        return self.clone() if copy else self

    def numpy(self) -> Any:
        return self.array


class FakeGraph:
    def __init__(self, broken: bool) -> None:
        self.work: list[Callable[[], None]] = []
        self._broken = broken

    def replay(self) -> None:
        for step in [] if self._broken else self.work:
            step()


class FakeTorch:
    """What the session uses of torch. ``broken_graph``: its replays do nothing."""

    float32, float16, bfloat16 = np.float32, np.float16, np.float32
    int32, int64, uint8 = np.int32, np.int64, np.uint8
    contiguous_format = None
    __version__ = "fake"

    def __init__(
        self, broken_graph: bool = False, capture_error: str = "", misaligned: bool = False
    ) -> None:
        self.memory: dict[int, FakeTensor] = {}
        self.capturing: FakeGraph | None = None
        self.scopes: list[str] = []
        self.streams: list[Any] = []
        self.cuda = Bag(
            is_available=lambda: True,
            device_count=lambda: 2,
            device=lambda index: self._scope(f"device {index}"),
            stream=lambda stream: self._scope(f"stream {stream.cuda_stream}"),
            Stream=self._stream,
            Event=lambda: Bag(synchronize=lambda: None, record=lambda stream: None),
            CUDAGraph=lambda: FakeGraph(broken_graph),
            graph=self._graph,
        )
        self._error, self._offset = capture_error, 16 if misaligned else 0

    def _stream(self) -> Any:
        assert self.scopes, "a stream belongs to the current device"
        stream = Bag(cuda_stream=77, synced=0)

        def synchronize() -> None:
            stream.synced += 1

        stream.synchronize = synchronize
        self.streams.append(stream)
        return stream

    @contextmanager
    def _scope(self, name: str) -> Iterator[None]:
        self.scopes.append(name)
        try:
            yield
        finally:
            assert self.scopes.pop() == name

    @contextmanager
    def _graph(self, graph: FakeGraph, stream: Any, capture_error_mode: str) -> Iterator[Self]:
        assert stream in self.streams
        assert capture_error_mode == "thread_local"
        if self._error:
            raise RuntimeError(self._error)
        self.capturing = graph
        try:
            yield self
        finally:
            self.capturing = None

    def zeros(self, shape: tuple[int, ...], dtype: Any, **_: Any) -> FakeTensor:
        address = 4096 * (len(self.memory) + 1) + self._offset
        self.memory[address] = FakeTensor(np.zeros(shape, dtype), address)
        return self.memory[address]

    empty = zeros

    def linspace(self, start: float, stop: float, count: int, device: str) -> FakeTensor:
        return FakeTensor(np.linspace(start, stop, count), 0)

    def from_numpy(self, array: Any) -> FakeTensor:
        return FakeTensor(array, 0)

    def allclose(self, a: FakeTensor, b: FakeTensor, rtol: float, atol: float) -> bool:
        return bool(np.allclose(a.array, b.array, rtol, atol))

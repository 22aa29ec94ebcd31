"""Running a TensorRT engine: one plan, one execution context, one stream, fixed addresses."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gpubench.backends import _torch
from gpubench.backends._trt_build import RTX, failed, make_log
from gpubench.errors import CellFailed

if TYPE_CHECKING:
    from gpubench.backends.base import Device, Facts

ALIGNMENT = 256
"""Bytes; what TensorRT asks of the address of every tensor."""


class TrtSession(_torch.TensorSession):
    """An engine on ``device``; raises CellFailed wherever TensorRT says no.

    The stream of the session is the current one from the construction to the exit.
    """

    def __init__(
        self, trt: Any, flavour: str, plan: bytes, batch: int, device: Device, graph: bool,
        *, user_memory: bool = False, kernels: bytes = b"", shared: TrtSession | None = None,
    ) -> None:  # fmt: skip
        """``user_memory``: as the engine was built; ``kernels``: as `compiled_rtx` gave them;
        ``shared``: another session, with the same engine."""
        self._stack = ExitStack()
        self._user_memory, self._kernels, self._kept = user_memory, kernels, False
        try:
            self._log = make_log(trt)
            stream = _torch.enter_device(self._stack, device)  # before the engine is loaded
            assert stream is not None, "TensorRT cells are CUDA cells"  # noqa: S101
            self._stream = stream
            self._handle = stream.cuda_stream
            self._load(trt, flavour, plan, shared)
            self._bind(trt, batch)
            if flavour == RTX:
                self._give_memory_rtx()
            self._execute = self._context.execute_async_v3
            self._replay: Callable[[], None] | None = None
            if graph:
                if flavour == RTX:
                    self._check_capture_rtx()
                self._replay = self._capture()
            self.facts = self._facts(trt, graph)
            if kernels:
                self.facts["kernels_loaded"] = self._kept
        except BaseException:
            self.close()
            raise

    def _load(self, trt: Any, flavour: str, plan: bytes, shared: Any) -> None:
        if shared is not None:
            engine = shared._engine
        else:
            self._runtime = trt.Runtime(self._log)
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failed("the engine cannot be loaded")
        context = (
            self._context_rtx(trt, engine) if flavour == RTX else engine.create_execution_context()
        )
        if context is None:
            raise self._failed("no execution context")
        self._engine, self._context = engine, context

    def _context_rtx(self, trt: Any, engine: Any) -> Any:
        """By default this flavour swaps faster kernels in while it runs: not under our clock."""
        settings = engine.create_runtime_config()
        settings.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        if self._user_memory:
            settings.set_execution_context_allocation_strategy(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
        self._cache = settings.create_runtime_cache()
        self._kept = bool(self._kernels) and self._cache.deserialize(self._kernels)
        if not settings.set_runtime_cache(self._cache):
            raise self._failed("a cache of kernels is refused")
        return engine.create_execution_context(settings)

    def _give_memory_rtx(self) -> None:
        """What such an engine wants for its activations, once it knows its shapes.

        No less than for all shapes that it takes, which `set_device_memory` asks for.
        """
        import torch

        if self._user_memory:
            size = self._context.update_device_memory_size_for_shapes()
            size = max(1, size, self._engine.device_memory_size_v2)
            self._scratch = torch.zeros((size,), dtype=torch.uint8, device="cuda")
            self._context.set_device_memory(self._scratch.data_ptr(), size)

    def compiled_rtx(self) -> bytes:
        """The kernels that this flavour has compiled for this GPU, of what ran so far."""
        content = self._cache.serialize()
        return b"" if content is None else bytes(content)

    def _bind(self, trt: Any, batch: int) -> None:
        """Give every tensor of the engine an address that lives as long as the session."""
        import torch

        types = _types(trt, torch)
        engine, context = self._engine, self._context
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        outputs = [n for n in names if n not in inputs]
        if len(inputs) != 1 or not outputs:
            raise CellFailed("error", f"expected one input, found {inputs} -> {outputs}")
        shape = (batch, *tuple(engine.get_tensor_shape(inputs[0]))[1:])
        if not context.set_input_shape(inputs[0], shape):
            raise self._failed(f"input {inputs[0]!r} refuses the shape {shape}")
        if missing := context.infer_shapes():
            raise self._failed(f"shapes of {missing} are not determined")
        self._io: Facts = {}
        self._tensors: dict[str, Any] = {}
        for name in [*inputs, *outputs]:
            of = engine.get_tensor_dtype(name)
            if of not in types:
                raise CellFailed("error", f"tensor {name!r} has the unexpected type {of}")
            word, dtype = types[of]
            size = tuple(context.get_tensor_shape(name))
            if name == inputs[0]:
                super().__init__(_torch.Input(size, dtype, self._stream))
                tensor = self._input.tensor
            else:
                tensor = torch.zeros(size, dtype=dtype, device="cuda")
            address = tensor.data_ptr()
            if address % ALIGNMENT or not tensor.is_contiguous():
                raise CellFailed("error", f"tensor {name!r} is misaligned or not contiguous")
            if not context.set_tensor_address(name, address):
                raise self._failed(f"tensor {name!r} refuses its address")
            self._tensors[name] = tensor
            self._io[name] = {"dtype": word, "shape": list(size)}
        self._logits = self._tensors[outputs[0]]
        self._poison()

    def _poison(self) -> None:
        """An output that the engine does not write must not pass for an answer."""
        if self._logits.is_floating_point():
            self._logits.fill_(float("nan"))

    def _check_capture_rtx(self) -> None:
        if not self._context.is_stream_capturable(self._handle):
            raise self._failed("this engine cannot be captured in a CUDA graph")

    def _capture(self) -> Callable[[], None]:
        """Run once plainly, capture, and check that a replay answers the same."""
        import torch

        flat = self._input.tensor.view(-1)
        least, most = (-2, 2) if flat.is_floating_point() else (0, 255)
        flat.copy_(torch.linspace(least, most, flat.numel(), device="cuda"))
        self.run()  # whatever is done at the first run only must not be captured
        self._stream.synchronize()
        expected = self._logits.clone()
        graph = torch.cuda.CUDAGraph()
        captured = False
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                captured = self._execute(self._handle)
        except RuntimeError as error:
            reasons = [*self._log.errors, str(error)]
            raise failed("the CUDA graph cannot be captured", reasons) from error
        if not captured:
            raise self._failed("the engine did not run while it was captured")
        self._poison()
        graph.replay()
        self._stream.synchronize()
        if not torch.allclose(self._logits, expected, rtol=1e-2, atol=1e-2):
            raise CellFailed("error", "the CUDA graph does not answer as the engine itself does")
        self._poison()
        self._graph = graph  # replay() alone does not keep it alive
        return graph.replay  # type: ignore[no-any-return]

    def _facts(self, trt: Any, graph: bool) -> Facts:
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        facts = {"io": self._io, "cuda_graph": graph, "layers": self._engine.num_layers}
        facts["context_bytes"] = self._engine.device_memory_size_v2
        if found := layer_types(text):
            facts["layer_types"] = found
        return facts

    def _failed(self, what: str) -> CellFailed:
        return failed(what, self._log.errors)

    def close(self) -> None:
        """The newest first, so that what uses goes before what is used, and the device last."""
        held = vars(self)
        stack = held.pop("_stack", None)
        for name in reversed(list(held)):
            if name != "facts":
                del held[name]
        if stack is not None:
            stack.close()

    def counters(self) -> dict[str, int]:
        return {"compiled_at_open": int(bool(self._kernels) and not self._kept)}

    def run(self) -> None:
        if self._replay is not None:
            self._replay()
        elif not self._execute(self._handle):
            raise self._failed("the engine did not run")


def _types(trt: Any, torch: Any) -> dict[Any, tuple[str, Any]]:
    return {
        trt.DataType.FLOAT: ("fp32", torch.float32),
        trt.DataType.HALF: ("fp16", torch.float16),
        trt.DataType.BF16: ("bf16", torch.bfloat16),
        trt.DataType.UINT8: ("uint8", torch.uint8),
        trt.DataType.INT32: ("int32", torch.int32),
        trt.DataType.INT64: ("int64", torch.int64),
    }


_WORDS = {"float": "fp32", "half": "fp16", "bfloat16": "bf16"}
_TYPE = re.compile(r"\b(FP32|FP16|BF16|FP8|FP4|INT8|INT4|Float|Half|BFloat16|Int8)\b", re.I)


def layer_types(text: str) -> dict[str, int]:
    """How many layers write each data type, from the engine inspector's JSON.

    The text is for people and varies between releases: {} when it is of another form.
    """
    try:
        layers = json.loads(text)["Layers"]
        formats = [layer["Outputs"][0]["Format/Datatype"] for layer in layers if layer["Outputs"]]
        words = [match[0].lower() for match in map(_TYPE.search, formats) if match]
    except (ValueError, KeyError, TypeError, IndexError):
        return {}
    return dict(Counter(_WORDS.get(word, word) for word in words))

"""ONNX Runtime's sessions: inputs and outputs are bound once, ``run()`` is one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gpubench.backends import _torch
from gpubench.backends.base import Session, alike
from gpubench.errors import CellFailed

if TYPE_CHECKING:
    import onnxruntime

    from gpubench.backends.base import Device, Facts, Images, Logits

_TYPES = {"tensor(float)": ("float32", 1), "tensor(float16)": ("float16", 10)} | {
    "tensor(bfloat16)": ("bfloat16", 16), "tensor(uint8)": ("uint8", 2)
}  # fmt: skip
"""Type of an input or output -> torch's name and ONNX's number."""
_CYCLES = 1 << 25
"""Of a GPU's clock, 20 ms or so: longer than it takes to enqueue a graph."""


class CpuSession(Session):
    """Input and output bound to two host arrays: ``run()`` allocates nothing for them."""

    def __init__(self, session: onnxruntime.InferenceSession, batch: int, facts: Facts) -> None:
        import numpy as np
        import onnxruntime

        self.facts = facts
        (source,), (target,) = session.get_inputs(), session.get_outputs()
        self._images = np.zeros(_shape(source, batch), _TYPES[source.type][0])
        self._logits = np.full(_shape(target, batch), np.nan, _TYPES[target.type][0])
        self._session: Any = session
        self._names = source.name, target.name
        self._value: Any = onnxruntime.OrtValue.ortvalue_from_numpy
        self._attached: dict[int, tuple[Images, Any]] = {}
        """By the array's id, which is its own as long as it is held here: what is bound to it."""
        self._binding = self._own = self._bound(self._images)
        self._run: Any = session.run_with_iobinding

    def _bound(self, images: Images) -> Any:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._names[0], self._value(images))
        binding.bind_ortvalue_output(self._names[1], self._value(self._logits))
        return binding

    def close(self) -> None:
        self._attached.clear()
        self._session = self._binding = self._own = self._run = None

    def attach(self, arrays: Sequence[Images]) -> bool:
        """Bind each of the arrays; see `Session.attach`."""
        if not alike(arrays, self._images):
            return False
        self._attached = {id(array): (array, self._bound(array)) for array in arrays}
        return True

    def copy_in(self, images: Images) -> None:
        if (held := self._attached.get(id(images))) is not None:
            self._binding = held[1]
            return
        self._binding = self._own
        self._images[...] = images

    def run(self) -> None:
        """Run to the end: the CPU provider is synchronous."""
        self._run(self._binding)

    def sync(self) -> None:
        """Nothing is ever outstanding."""

    def copy_out(self) -> Logits:
        return self._logits.astype("float32")  # a copy in any case


class CudaSession(_torch.TensorSession):
    """Input and output bound to device memory; ``run()`` enqueues on the session's own stream."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        batch: int,
        facts: Facts,
        device: Device,
        stream: Any,
    ) -> None:
        import onnxruntime
        import torch

        self.facts = facts
        self.stack = ExitStack()
        """Closed with the session: its device and stream."""
        (source,), (target,) = session.get_inputs(), session.get_outputs()
        dtype, number = _TYPES[source.type]
        super().__init__(_torch.Input(_shape(source, batch), getattr(torch, dtype), stream))
        dtype_out, number_out = _TYPES[target.type]
        self._logits = torch.full(
            _shape(target, batch), float("nan"), dtype=getattr(torch, dtype_out), device="cuda"
        )
        stream.synchronize()
        self._binding: Any = session.io_binding()
        for bind, node, kind, tensor in (
            (self._binding.bind_input, source, number, self._input.tensor),
            (self._binding.bind_output, target, number_out, self._logits),
        ):
            shape = list(tensor.shape)
            bind(node.name, "cuda", device.index, kind, shape, tensor.data_ptr())
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._run: Any = session.run_with_iobinding
        if facts["provider_options"].get("enable_cuda_graph") == "1":
            self.run()  # captures; what it wrote is poisoned, as below
            self.sync()
            facts["replay_waits"] = waits(self.run, stream)
            self._logits.fill_(float("nan"))
            self.sync()

    def close(self) -> None:
        self._binding = self._run = None
        self.stack.close()

    def counters(self) -> dict[str, int]:
        return {"compiled_at_open": int(self.facts.get("engine_built_at_open", False))}

    def run(self) -> None:
        self._run(self._binding, self._options)


def waits(run: Callable[[], object], stream: Any) -> bool:
    """Whether ``run`` returns only once ``stream`` has done all its work.

    Replays of a CUDA graph did in older releases (until microsoft/onnxruntime, pull request 28686
    of 2026), whatever the options of the run said: batches then never queue up.
    """
    import torch

    torch.cuda._sleep(_CYCLES)
    run()
    done = bool(stream.query())
    stream.synchronize()
    return done


def _shape(node: Any, batch: int) -> tuple[int, ...]:
    """A node's shape with the batch filled in. Raises CellFailed when the file does not fit."""
    first, *rest = node.shape
    other_batch = isinstance(first, int) and first != batch
    if other_batch or not all(isinstance(size, int) for size in rest):
        raise CellFailed(
            "error", f"{node.name!r} of the ONNX file has shape {node.shape}, not ({batch}, ...)"
        )
    return (batch, *rest)

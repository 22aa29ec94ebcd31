"""ONNX Runtime's sessions: inputs and outputs are bound once, ``run()`` is one call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gpubench.backends._session import Closing
from gpubench.errors import CellFailed

if TYPE_CHECKING:
    import onnxruntime

    from gpubench.backends import _torch
    from gpubench.backends.base import Device, Facts, Images, Logits

_TYPES = {"tensor(float)": ("float32", 1), "tensor(float16)": ("float16", 10)} | {
    "tensor(bfloat16)": ("bfloat16", 16)
}
"""Type of an input or output -> torch's name and ONNX's number."""


class CpuSession(Closing):
    """Input and output bound to two host arrays: ``run()`` allocates nothing for them."""

    def __init__(self, session: onnxruntime.InferenceSession, batch: int, facts: Facts) -> None:
        import numpy as np
        import onnxruntime

        self.facts = facts
        (source,), (target,) = session.get_inputs(), session.get_outputs()
        self._images = np.zeros(_shape(source, batch), np.float32)
        self._logits = np.full(_shape(target, batch), np.nan, np.float32)
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._binding: Any = session.io_binding()
        self._binding.bind_ortvalue_input(source.name, value(self._images))
        self._binding.bind_ortvalue_output(target.name, value(self._logits))
        self._run: Any = session.run_with_iobinding

    def close(self) -> None:
        """Let ONNX Runtime's session go."""
        self._binding = self._run = None

    def copy_in(self, images: Images) -> None:
        """Copy into the bound array."""
        self._images[...] = images

    def run(self) -> None:
        """Run to the end: the CPU provider is synchronous."""
        self._run(self._binding)

    def sync(self) -> None:
        """Nothing is ever outstanding."""

    def copy_out(self) -> Logits:
        """A copy of the bound output, (batch, classes) float32."""
        return self._logits.copy()


class CudaSession(Closing):
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

        from gpubench.backends import _torch

        self.facts = facts
        self.stack = ExitStack()
        """Closed with the session: its device and stream."""
        (source,), (target,) = session.get_inputs(), session.get_outputs()
        dtype, number = _TYPES[source.type]
        self._input: _torch.Input = _torch.Input(
            _shape(source, batch), getattr(torch, dtype), stream
        )
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
        self.copy_in: Callable[[Images], None] = self._input.copy_in
        self.sync: Callable[[], None] = self._input.sync
        if facts["provider_options"].get("enable_cuda_graph") == "1":
            self.run()  # captures; what it wrote is poisoned, as above
            self._logits.fill_(float("nan"))
            self.sync()

    def close(self) -> None:
        """Let ONNX Runtime's session go, then leave its device and stream."""
        self._binding = self._run = None
        self.stack.close()

    def run(self) -> None:
        """Enqueue the network on the session's stream."""
        self._run(self._binding, self._options)

    def copy_out(self) -> Logits:
        """The last batch's logits, (batch, classes) float32."""
        from gpubench.backends import _torch

        return _torch.logits_of(self._logits)


def _shape(node: Any, batch: int) -> tuple[int, ...]:
    """A node's shape with the batch filled in. Raises CellFailed when the file does not fit."""
    first, *rest = node.shape
    other_batch = isinstance(first, int) and first != batch
    if other_batch or not all(isinstance(size, int) for size in rest):
        raise CellFailed(
            "error", f"{node.name!r} of the ONNX file has shape {node.shape}, not ({batch}, ...)"
        )
    return (batch, *rest)

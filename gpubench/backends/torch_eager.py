"""PyTorch as most people run it: one kernel launch after another.

`TorchCompile` and this share everything but one call. A session sets torch's process-wide state
(device, stream, threads, TF32, inference mode) when it is opened and restores it when it is left,
so one process holds one session at a time, and ``run()`` is one call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench import plugins
from gpubench.backends import _torch
from gpubench.backends.base import Backend
from gpubench.errors import CellFailed, Unavailable
from gpubench.suite.types import Cell, Option

if TYPE_CHECKING:
    import torch

    from gpubench.backends.base import Device, Facts
    from gpubench.cache import Cache
    from gpubench.workload.data.preprocess import Spec
    from gpubench.workload.models.base import Model

    Forward = Callable[[torch.Tensor], torch.Tensor]

_DTYPES = {"fp32": "float32", "tf32": "float32", "amp": "float32", "fp16": "float16"} | {
    "bf16": "bfloat16"
}
_AUTOCAST = {"cpu": "bfloat16", "cuda": "float16"}
"""What ``amp`` computes in: torch's own defaults."""


class TorchEager(Backend):
    """Eager execution on CPU and CUDA."""

    name = "torch-eager"
    summary = "PyTorch, eager; CPU and CUDA; fp32, tf32, fp16, bf16, amp"
    options: tuple[Option, ...] = (
        Option.choice(
            "memory_format",
            "layout of weights and activations: NCHW or NHWC",
            ("contiguous", "channels_last"),
            search=("contiguous", "channels_last"),
        ),
        Option.flag(
            "cuda_graph",
            "capture the network once and replay it; CUDA only",
            when={"device": ("cuda",)},
        ),
        Option.flag(
            "cudnn_benchmark",
            "let cuDNN time its algorithms and keep the fastest; CUDA only",
            when={"device": ("cuda",)},
        ),
    )
    preload: tuple[str, ...] = ("torch", "torchvision")

    def probe(self) -> Facts:
        return plugins.installed("torch", "torchvision")

    def unsupported(self, cell: Cell) -> str | None:
        if cell.model.endswith(".onnx"):
            return f"model {cell.model!r} is an ONNX file; {self.name} runs networks of PyTorch"
        if cell.precision not in _DTYPES:
            return (
                f"{cell.precision}: eager networks are not quantised; onnxruntime and openvino do"
            )
        if cell.device != "cuda":
            if cell.precision == "tf32":
                return "tf32 is a mode of NVIDIA's tensor cores; on a CPU use fp32 or bf16"
            for option in ("cuda_graph", "cudnn_benchmark"):
                if cell.options.get(option):
                    return f"{option} needs device = 'cuda'"
        return None

    def prepare(self, cell: Cell, model: Model, cache: Cache) -> Path:  # noqa: ARG002
        return model.state()

    def open(self, cell: Cell, artefact: Path, device: Device) -> TorchSession:
        with ExitStack() as stack:
            session = self._open(cell, artefact, device, stack)
            session.stack = stack.pop_all()
        return session

    def _open(self, cell: Cell, state: Path, device: Device, stack: ExitStack) -> TorchSession:
        import torch

        from gpubench.workload.models import builder

        stream = self._enter(cell, device, stack)
        module = self._module(cell, state)
        images = self._input(cell, builder.card(state).spec, stream)
        stack.enter_context(torch.inference_mode())
        forward = self._compiled(module, cell, images.tensor)
        dtype = str(next(module.parameters()).dtype)
        return self._session(cell, forward, images, dtype)

    def _enter(self, cell: Cell, device: Device, stack: ExitStack) -> torch.cuda.Stream | None:
        """Set torch's process-wide state as the cell says, until ``stack`` closes."""
        stream = _torch.enter_device(stack, device)
        if device.kind == "cuda":
            _check_hardware(cell.precision)
        benchmark = bool(cell.options.get("cudnn_benchmark", False))
        _set_backends(stack, cell.precision == "tf32", benchmark)
        return stream

    def _module(self, cell: Cell, state: Path) -> torch.nn.Module:
        """The network in the type and layout that the cell says, on its device."""
        import torch

        from gpubench.workload.models import builder

        dtype = getattr(torch, _DTYPES[cell.precision])
        module = builder.load_module(state)
        module = module.to(cell.device, dtype, memory_format=self._layout(cell))
        return _autocast(module, cell) if cell.precision == "amp" else module

    def _input(self, cell: Cell, spec: Spec, stream: torch.cuda.Stream | None) -> _torch.Input:
        import torch

        own = _DTYPES[cell.precision] if spec.dtype == "float32" else spec.dtype
        shape = (cell.batch_size, *spec.shape)
        return _torch.Input(shape, getattr(torch, own), stream, self._layout(cell))

    def _layout(self, cell: Cell) -> torch.memory_format:
        import torch

        chosen = cell.options.get("memory_format")
        return torch.channels_last if chosen == "channels_last" else torch.contiguous_format

    def _session(
        self, cell: Cell, forward: Forward, images: _torch.Input, dtype: str
    ) -> TorchSession:
        """``forward`` as the cell says, ready to run; ``dtype``: of its weights."""
        import torch

        graph = bool(cell.options.get("cuda_graph", False))
        if graph and images.stream is not None:
            forward = _captured(forward, images.tensor, images.stream)
        images.sync()
        processor = f"cpu, {torch.backends.cpu.get_cpu_capability()}"
        facts: Facts = {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if images.stream else processor,
            "dtype": dtype.removeprefix("torch."),
            "input": str(images.tensor.dtype).removeprefix("torch."),
            "autocast": _AUTOCAST[cell.device] if cell.precision == "amp" else None,
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_cudnn": torch.backends.cudnn.allow_tf32,
            "channels_last": images.tensor.is_contiguous(memory_format=torch.channels_last),
            "threads": torch.get_num_threads(),
            "cuda_graph": graph,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }
        if images.stream is not None:
            facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        return TorchSession(forward, images, facts)

    def _compiled(self, forward: Forward, cell: Cell, example: torch.Tensor) -> Forward:  # noqa: ARG002
        """What `TorchCompile` overrides; ``example`` is the session's input tensor."""
        return forward


class TorchSession(_torch.TensorSession):
    """A network with its input tensor; ``run()`` is one call of it."""

    def __init__(self, forward: Forward, images: _torch.Input, facts: Facts) -> None:
        super().__init__(images)
        self.facts = facts
        self.stack = ExitStack()
        self.recompiled: Callable[[], dict[str, int]] = dict
        """What `counters` says; `TorchCompile` sets it."""
        self._forward = forward

    def close(self) -> None:
        """Restore torch's process-wide state."""
        self.stack.close()

    def counters(self) -> dict[str, int]:
        return self.recompiled()

    def run(self) -> None:
        self._logits = self._forward(self._input.tensor)


def _set_backends(stack: ExitStack, tf32: bool, cudnn_benchmark: bool) -> None:
    """Say explicitly what torch leaves to defaults, until ``stack`` closes.

    torch's default is TF32 on in convolutions and off in matrix products.
    """
    import torch

    settings = (
        (torch.backends.cuda.matmul, "allow_tf32", tf32),
        (torch.backends.cudnn, "allow_tf32", tf32),
        (torch.backends.cudnn, "benchmark", cudnn_benchmark),
    )
    for module, name, value in settings:
        stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)


def _check_hardware(precision: str) -> None:
    """Raise Unavailable where CUDA would silently compute in something else."""
    import torch

    if precision in ("tf32", "bf16") and torch.cuda.get_device_capability() < (8, 0):
        raise Unavailable(
            f"{torch.cuda.get_device_name()} has no {precision} units: torch would emulate it",
            "use fp32 or fp16, or a GPU of compute capability 8.0 or later",
        )


def _autocast(module: torch.nn.Module, cell: Cell) -> torch.nn.Module:
    """``module``, in autocast; entered in each call, as in deployment."""
    import torch

    dtype = getattr(torch, _AUTOCAST[cell.device])

    class Autocast(torch.nn.Module):  # type: ignore[misc]  # which torch.export takes, too
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            with torch.autocast(cell.device, dtype=dtype):
                return self.network(images)

    return Autocast().eval()


def _captured(forward: Forward, images: torch.Tensor, stream: torch.cuda.Stream) -> Forward:
    """``forward`` on ``images`` as one CUDA graph. Raises CellFailed when it cannot be captured."""
    import torch

    for _ in range(3):  # cuDNN and cuBLAS choose and allocate before the capture
        forward(images)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            logits = forward(images)
    except torch.cuda.OutOfMemoryError:  # a RuntimeError too, but a failure of its own kind
        raise
    except RuntimeError as error:
        raise CellFailed("error", f"the network cannot be captured: {error}") from error
    logits.fill_(float("nan"))  # a replay that does not write here cannot look right

    def replay(_: torch.Tensor) -> torch.Tensor:
        graph.replay()
        return logits

    return replay

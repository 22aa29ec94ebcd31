"""TensorRT through PyTorch: Torch-TensorRT, by torch.export or by torch.compile.

Torch-TensorRT leaves to PyTorch what TensorRT has no kernel for, and all of a network whose engine
cannot be built, with a line in a log. So a session is handed out only for a network that is in
engines as a whole; how many they are is among the facts.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench import plugins
from gpubench.backends import _inductor, _torch, _trt_build
from gpubench.backends.base import Device
from gpubench.backends.torch_eager import TorchEager, TorchSession
from gpubench.errors import CellFailed, Unavailable
from gpubench.machine import gpu
from gpubench.suite.types import Cell, Option

if TYPE_CHECKING:
    import torch

    from gpubench.backends.base import Facts
    from gpubench.backends.torch_eager import Forward
    from gpubench.cache import Cache
    from gpubench.workload.models.base import Model

_INSTALL = (
    "`pip install 'gpubench[torch-tensorrt]'` with NVIDIA's own package index as an extra index "
    "(docs, Backends and GPUs: TensorRT); it brings the PyTorch that it was built for"
)
_PROGRAM, _ENGINES = "program.ep", "engines"
_SHOWN = 3
"""Operators that a message names."""


class TorchTensorRT(TorchEager):
    """Engines for one batch size, GPU and precision, in a graph that PyTorch runs."""

    name = "torch-tensorrt"
    summary = "TensorRT through PyTorch, by export or torch.compile; CUDA; fp32, tf32, fp16, bf16"
    options = (
        Option.choice(
            "path",
            "export: compiled once and saved as a program; compile: torch.compile's backend, with "
            "engines that can be refitted, as only these are kept",
            ("export", "compile"),
        ),
        Option.flag("cuda_graph", "capture the network once and replay it"),
        _trt_build.OPTIMIZATION_LEVEL,
    )

    def probe(self) -> Facts:
        """Versions and GPU, from package metadata and the driver alone."""
        found = plugins.installed("torch", "torch-tensorrt", remedy=_INSTALL)
        if find_spec("tensorrt") is None and find_spec("tensorrt_rtx") is None:
            raise Unavailable("torch-tensorrt is installed without TensorRT", _INSTALL)
        return found | {"gpu": gpu.first().name}

    def unsupported(self, cell: Cell) -> str | None:
        if reason := _trt_build.unsupported(cell):
            return reason
        if cell.precision == "int8":
            return "int8: Torch-TensorRT takes networks that are quantised already; tensorrt does"
        return super().unsupported(cell)

    def prepare(self, cell: Cell, model: Model, cache: Cache) -> Path:
        """A cache entry with the compiled program, or the engines that torch.compile built.

        Raises CellFailed for a network that is not in engines as a whole.
        """
        state, one = model.state(), gpu.first()
        versions = {name: version(name) for name in ("torch", "torch-tensorrt")}
        recipe = {
            "state": str(state),
            **versions,
            "gpu": one.name,
            "compute_capability": one.compute_capability,
            "driver": one.driver,
            "precision": cell.precision,
            "batch_size": cell.batch_size,
            "options": cell.options,
        }

        def make(at: Path) -> None:
            with ExitStack() as stack:
                if cell.chosen(self.options)["path"] == "export":
                    self._export(cell, state, at / _PROGRAM, stack)
                else:
                    work = _inductor.directory(stack)
                    self._compile(work, cell, state, Device(cell.device), stack)
                    shutil.copytree(work, at / _ENGINES)
                    (at / _inductor.STATE).write_text(json.dumps(str(state)))

        return cache.get_or_make(self.name, recipe, make)

    def export(self, artefact: Path, folder: Path) -> Path:
        if (artefact / _inductor.STATE).is_file():
            return _inductor.export(artefact, folder)
        return super().export(artefact, folder)

    def _open(self, cell: Cell, artefact: Path, device: Device, stack: ExitStack) -> TorchSession:
        if (artefact / _PROGRAM).is_file():
            return self._load(cell, artefact / _PROGRAM, device, stack)
        work = _inductor.directory(stack, artefact / _ENGINES)
        kept = len(_files(work))
        session = self._compile(work, cell, _inductor.state_of(artefact), device, stack)
        built, counted = len(_files(work)) - kept, session.recompiled
        session.facts["engines_built_at_open"] = built
        session.recompiled = lambda: counted() | {"compiled_at_open": built}
        return session

    # ------------------------------------------------------------------------ torch.export

    def _export(self, cell: Cell, state: Path, to: Path, stack: ExitStack) -> None:
        import torch
        import torch_tensorrt

        from gpubench.workload.models import builder

        stream = self._enter(cell, Device(cell.device), stack)
        images = self._input(cell, builder.card(state).spec, stream).tensor
        stack.enter_context(torch.no_grad())
        try:
            program = torch.export.export(self._module(cell, state), (images,))
            compiled = torch_tensorrt.dynamo.compile(
                program, arg_inputs=(images,), **self._settings(cell)
            )
        except Exception as error:  # whatever it meets in somebody's network
            raise CellFailed(
                "error", f"Torch-TensorRT refuses it: {_inductor.first_line(error)}"
            ) from error
        _whole(compiled)
        torch_tensorrt.save(compiled, str(to), arg_inputs=(images,))

    def _load(self, cell: Cell, file: Path, device: Device, stack: ExitStack) -> TorchSession:
        import torch
        import torch_tensorrt

        stream = self._enter(cell, device, stack)
        program = torch_tensorrt.load(str(file))
        [given] = [
            node.meta["val"] for node in program.graph.nodes
            if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
        ]  # fmt: skip
        module = program.module()
        engines = _whole(module)
        images = _torch.Input(tuple(given.shape), given.dtype, stream)
        stack.enter_context(torch.inference_mode())
        return self._told(cell, module, images, engines)

    # ------------------------------------------------------------------------ torch.compile

    def _compile(
        self, work: Path, cell: Cell, state: Path, device: Device, stack: ExitStack
    ) -> TorchSession:
        """A session whose engines are kept in, and taken from, ``work``."""
        import torch
        import torch_tensorrt  # noqa: F401  # which registers its backend
        from torch._dynamo.utils import counters

        from gpubench.workload.models import builder

        settings = self._settings(cell) | {
            "immutable_weights": False,
            "cache_built_engines": True,
            "reuse_cached_engines": True,
            "engine_cache_dir": str(work),
        }
        parts: list[Any] = []

        def convert(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Forward:
            backend = torch._dynamo.lookup_backend("torch_tensorrt")
            found: Forward = backend(graph, examples, options=settings)
            parts.append(found)
            return found

        torch._dynamo.reset()
        counters.clear()
        stream = self._enter(cell, device, stack)
        images = self._input(cell, builder.card(state).spec, stream)
        stack.enter_context(torch.inference_mode())
        module = self._module(cell, state)
        forward = torch.compile(module, backend=convert, fullgraph=True, dynamic=False)
        try:
            forward(images.tensor)
        except Exception as error:
            error = getattr(error, "inner_exception", error)  # dynamo's of the backend's own
            raise CellFailed(
                "error", f"Torch-TensorRT refuses it: {_inductor.first_line(error)}"
            ) from error
        session = self._told(cell, forward, images, sum(map(_whole, parts)))
        session.recompiled = lambda: {"recompilations": counters["frames"]["total"]}
        return session

    def _settings(self, cell: Cell) -> dict[str, Any]:
        """Of Torch-TensorRT, by its own names."""
        return {
            "disable_tf32": cell.precision != "tf32",
            "optimization_level": int(cell.chosen(self.options)["optimization_level"]),
            "min_block_size": 1,  # else whatever lies between two others stays with PyTorch
            "pass_through_build_failures": True,  # else all of it does, and nobody is told
        }

    def _told(
        self, cell: Cell, forward: Forward, images: _torch.Input, engines: int
    ) -> TorchSession:
        session = self._session(cell, forward, images, str(images.tensor.dtype))
        session.facts |= {
            "torch_tensorrt": version("torch-tensorrt"),
            "path": cell.chosen(self.options)["path"],
            "engines": engines,
        }
        return session


def _whole(module: torch.nn.Module) -> int:
    """Engines of a compiled network. Raises CellFailed where there are none, or others work too."""
    engines, left = 0, []
    for name, part in module.named_modules():
        if type(part).__name__ == "TorchTensorRTModule":
            engines += 1
        elif not name.startswith("_guards_fn"):  # of torch.export: it looks at the input's shape
            nodes = getattr(getattr(part, "graph", None), "nodes", ())
            calls = [str(node.target) for node in nodes if node.op == "call_function"]
            engines += sum("execute_engine" in call for call in calls)
            left += [call for call in calls if not any(own in call for own in _PLUMBING)]
    if left or not engines:
        listed = ", ".join(sorted({*left})[:_SHOWN])
        what = f"{len(left)} operators ({listed}{', ...' * (len({*left}) > _SHOWN)})"
        raise CellFailed(
            "fallback", f"PyTorch would compute {what if left else 'all of it'}, and not TensorRT"
        )
    return engines


_PLUMBING = ("execute_engine", "getitem")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]

"""PyTorch through ``torch.export`` and AOTInductor: machine code, made once and loaded.

Preparing exports the network for one batch size and compiles it into a package, which is an entry
of the cache; opening loads it. A package that the user brings is copied there, and run as it is.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gpubench.backends import _inductor, _torch
from gpubench.backends.base import Device
from gpubench.backends.torch_eager import TorchEager, TorchSession
from gpubench.errors import CellFailed, Unsupported
from gpubench.suite.types import Cell, Option
from gpubench.workload.models import compiled_package

if TYPE_CHECKING:
    import torch

    from gpubench.backends.base import Facts
    from gpubench.cache import Cache
    from gpubench.workload.models.base import Model

_PACKAGE, _ABOUT = "model.pt2", "package.json"
_KEPT = ("cuda_graph", "cudnn_benchmark")
"""Options that are not compiled in."""


class About(Struct, frozen=True, kw_only=True):
    """What a package takes, which it does not look at itself."""

    torch: str
    """The version that compiled it; '': not known, as it came as it is."""
    shape: tuple[int, ...]
    """Of a batch, as its ``dtype`` and ``channels_last``."""
    dtype: str
    channels_last: bool
    weights: str
    """The type that they have."""
    output: str | int | None = None
    """Which of its outputs has the answers; None: there is one."""
    flat: bool = True
    """Whether that has two dimensions."""


class AotInductor(TorchEager):
    """Compiled ahead of time, for CPU and CUDA; compiling is prepare time."""

    name = "aot-inductor"
    summary = "PyTorch, compiled ahead of time by AOTInductor; CPU and CUDA; as torch-compile"
    options = (
        # it is torch-compile's compiler, with which `tune` tries what is left out here
        *(o if o.name != "cudnn_benchmark" else replace(o, search=()) for o in _inductor.OPTIONS),
        Option.choice(
            "mode",
            "inductor's settings, as torch.compile's mode",
            ("default", "max-autotune-no-cudagraphs"),
        ),
    )
    preload = (*TorchEager.preload, "torch.export", "torch._inductor.package")

    def probe(self) -> Facts:
        return super().probe() | _inductor.compiler()

    def probe_to_open(self) -> Facts:
        return super().probe()

    def prepare(self, cell: Cell, model: Model, cache: Cache) -> Path:
        """A cache entry with the package for this cell.

        Raises CellFailed for a network that cannot be exported, Unsupported for a compiled package
        that would have to be compiled otherwise.
        """
        state = model.state()
        if compiled_package.is_package(cell.model):
            chosen = cell.chosen(self.options)
            compiled_in = [option for option in self.options if option.name not in _KEPT]
            if said := [o.name for o in compiled_in if chosen[o.name] != o.default]:
                raise Unsupported(f"model {cell.model!r} is compiled already: leave {said[0]} out")
            given = {"state": str(state), "batch_size": cell.batch_size}
            return cache.get_or_make(self.name, given, lambda at: _bring(cell, state, at))

        def make(at: Path) -> None:
            with ExitStack() as stack:
                settings = _settings(cell)
                _inductor.enter(stack, _inductor.directory(stack), cell.cores, **settings)
                device = Device(cell.device, 0, tuple(range(cell.cores)))
                self._compile(cell, state, device, at, stack)

        return cache.get_or_make(self.name, _inductor.recipe(cell, state), make)

    def _compile(self, cell: Cell, state: Path, device: Device, at: Path, stack: ExitStack) -> None:
        import torch

        from gpubench.workload.models import builder

        stream = self._enter(cell, device, stack)
        module = self._module(cell, state)
        images = self._input(cell, builder.card(state).spec, stream).tensor
        stack.enter_context(torch.inference_mode())
        try:
            program = torch.export.export(module, (images,))
        except Exception as error:  # whatever it meets in somebody's network
            first = _inductor.first_line(error)
            raise CellFailed("error", f"torch.export refuses the network: {first}") from error
        if stream is not None:
            stack.enter_context(_inductor.cuda_headers())
        torch._inductor.aoti_compile_and_package(program, package_path=str(at / _PACKAGE))
        last = images.is_contiguous(memory_format=torch.channels_last)
        about = About(
            torch=str(torch.__version__),
            shape=tuple(images.shape),
            dtype=str(images.dtype).removeprefix("torch."),
            channels_last=last and not images.is_contiguous(),
            weights=str(next(module.parameters()).dtype),
        )
        (at / _ABOUT).write_bytes(msgspec.json.encode(about))

    def _open(self, cell: Cell, artefact: Path, device: Device, stack: ExitStack) -> TorchSession:
        import torch

        about = msgspec.json.decode((artefact / _ABOUT).read_bytes(), type=About)
        if about.torch not in ("", torch.__version__):
            raise CellFailed(
                "error", f"compiled by torch {about.torch}, and this is {torch.__version__}"
            )
        stream = self._enter(cell, device, stack)
        layout = torch.channels_last if about.channels_last else torch.contiguous_format
        images = _torch.Input(about.shape, getattr(torch, about.dtype), stream, layout)
        stack.enter_context(torch.inference_mode())
        # it is unpacked where it is loaded from
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="gpubench-aot-inductor-"))
        with _inductor.variables(TMPDIR=place), _inductor.untried():
            package: Any = torch._inductor.aoti_load_package(
                str(artefact / _PACKAGE),
                # one thread and one stream order all: else each run would wait for the one before,
                # by an event, which no graph can hold either
                stream is not None,
                device.index if stream else -1,
            )
        target = package.get_metadata().get(
            "AOTI_COMPUTE_CAPABILITY" if stream else "AOTI_CPU_ISA", ""
        )
        here = target if stream else _inductor.vector_units()
        if not {*target.lower().split()} <= {*here.lower().split()}:
            raise CellFailed("error", f"compiled for {target}, and this CPU has {here}")
        forward = package
        if about.output is not None or not about.flat:
            from gpubench.workload.models import trial

            def forward(images: torch.Tensor) -> torch.Tensor:
                return trial.answers(package(images), about.output)

        session = self._session(cell, forward, images, about.weights)
        session.facts |= {
            "compiled_by": about.torch or "not known",
            "compiled_for": target,
            "package_bytes": (artefact / _PACKAGE).stat().st_size,
        }
        return session


def _settings(cell: Cell) -> dict[str, Any]:
    """Of inductor, for the options of ``cell``."""
    from torch._inductor import list_mode_options

    mode: dict[str, Any] = list_mode_options(str(cell.options.get("mode", "default")))
    # headers compiled beforehand cost more than the two files of a package gain by them
    return mode | {
        "freezing": bool(cell.options.get("freezing", False)),
        "aot_inductor.precompile_headers": False,
    }


def _bring(cell: Cell, state: Path, at: Path) -> None:
    """Copy the user's own package, which is looked into, and not run."""
    from gpubench.workload.models import builder

    found, card = compiled_package.read(cell.model), builder.card(state)
    shutil.copyfile(Path(cell.model).expanduser(), at / _PACKAGE)
    about = About(
        torch="",
        shape=(cell.batch_size, *found.shape),
        dtype=found.dtype,
        channels_last=found.channels_last,
        weights=found.precision,
        output=card.output,
        flat=card.flat,
    )
    (at / _ABOUT).write_bytes(msgspec.json.encode(about))

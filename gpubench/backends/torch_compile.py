"""PyTorch through ``torch.compile`` and inductor: `TorchEager` with one call more.

Preparing compiles the network and keeps inductor's cache as an entry of gpubench's; a session works
on a private copy of it, so that opening only traces and loads.
"""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from gpubench.backends.base import Device
from gpubench.backends.torch_eager import TorchEager, TorchSession
from gpubench.cache import copy_entry
from gpubench.errors import CellFailed, Unavailable
from gpubench.suite.types import Cell, Option

if TYPE_CHECKING:
    import torch

    from gpubench.backends.base import Facts
    from gpubench.backends.torch_eager import Forward
    from gpubench.cache import Cache
    from gpubench.workload.models.base import Model

_GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that use CUDA graphs themselves."""
_INDUCTOR = "inductor"
_NOT_KEPT = shutil.ignore_patterns("precompiled_headers", "locks", "triton")
"""Parts of inductor's cache that are left behind.

Headers take 100 MB. Triton's own cache holds absolute paths; inductor's entry bundles its kernels
and lays them out again where there is none.
"""


class TorchCompile(TorchEager):
    """Compiled execution on CPU and CUDA; compiling is prepare time."""

    name = "torch-compile"
    summary = "PyTorch, torch.compile with inductor; CPU and CUDA; fp32, tf32, fp16, bf16, amp"
    options = (
        # inductor gives the weights of frozen convolutions a layout of its own
        replace(TorchEager.options[0], when={"freezing": (False,)}),
        *TorchEager.options[1:],
        # reduce-overhead is default, and max-autotune this one, with cuda_graph = true
        Option.choice(
            "mode",
            "torch.compile's mode",
            ("default", "max-autotune-no-cudagraphs", *_GRAPH_MODES),
            search=("default", "max-autotune-no-cudagraphs"),
        ),
        # not searched: it fails, or it is the same code
        Option.flag(
            "fullgraph", "fail where the network does not compile as one graph", searched=False
        ),
        Option.flag(
            "freezing", "inline the weights as constants: folds batch-norm, packs weights on CPU"
        ),
    )
    preload = (*TorchEager.preload, "torch._dynamo", "torch._inductor.compile_fx")

    def probe(self) -> Facts:
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        if compiler is None:
            raise Unavailable(
                "inductor needs a C++ compiler, and there is no g++ on PATH",
                "apt-get install g++ (or set CXX to another one)",
            )
        if not Path(sysconfig.get_path("include"), "Python.h").is_file():
            raise Unavailable(
                "inductor compiles against Python.h, which this Python came without",
                "apt-get install python3-dev",
            )
        return super().probe() | {"c++": compiler}

    def unsupported(self, cell: Cell) -> str | None:
        mode = cell.options.get("mode", "default")
        if mode in _GRAPH_MODES and cell.device != "cuda":
            return f"mode = {mode!r} uses CUDA graphs and needs device = 'cuda'"
        if mode in _GRAPH_MODES and cell.options.get("cuda_graph"):
            return f"mode = {mode!r} makes CUDA graphs itself: leave cuda_graph = false"
        return super().unsupported(cell)

    def prepare(self, cell: Cell, model: Model, cache: Cache) -> Path:
        """A cache entry with inductor's own cache for this cell, filled by compiling here."""
        state = model.state()
        recipe = {
            "state": str(state),
            "torch": version("torch"),
            "triton": version("triton") if cell.device == "cuda" else None,
            "compiler": self.probe()["c++"],
            "device": [cell.device, _hardware(cell.device)],
            "precision": cell.precision,
            "batch_size": cell.batch_size,
            "threads": cell.cores,
            "options": cell.options,
        }

        def make(at: Path) -> None:
            with ExitStack() as stack:
                work = _directory(stack, at / _INDUCTOR)
                device = Device(cell.device, 0, tuple(range(cell.cores)))
                self._open_with(work, cell, state, device, stack)
                shutil.copytree(work, at / _INDUCTOR, ignore=_NOT_KEPT)
            (at / "state.json").write_text(json.dumps(str(state)))

        return cache.get_or_make("torch-compile", recipe, make)

    def export(self, artefact: Path, folder: Path) -> Path:
        """Both entries of the cache, the second naming the first by where it lies to it."""
        state = Path(json.loads((artefact / "state.json").read_text()))
        copy_entry(state, folder / "state")
        copied = copy_entry(artefact, folder / "compiled")
        (copied / "state.json").write_text(json.dumps("../state"))
        return copied

    def _open(self, cell: Cell, artefact: Path, device: Device, stack: ExitStack) -> TorchSession:
        state = artefact / json.loads((artefact / "state.json").read_text())
        work = _directory(stack, artefact / _INDUCTOR)
        return self._open_with(work, cell, state, device, stack)

    def _open_with(
        self, work: Path, cell: Cell, state: Path, device: Device, stack: ExitStack
    ) -> TorchSession:
        """A session whose inductor cache is ``work``."""
        for name, path in (
            ("TORCHINDUCTOR_CACHE_DIR", work),
            ("TRITON_CACHE_DIR", work / "triton"),  # inductor sets it for good if it is not set
        ):
            os.environ[name] = str(path)
            stack.callback(os.environ.pop, name, None)
        import torch._inductor.config
        from torch._dynamo.utils import counters

        settings: dict[str, Any] = {
            "freezing": bool(cell.options.get("freezing", False)),
            "cpp.threads": device.threads or -1,  # compiled in, so it must be part of the cache key
            "cpp.vec_isa_ok": True,  # else each process starts another one to try its vector unit
            "compile_threads": 1,  # no pool of compilers beside a measurement
        }
        stack.enter_context(torch._inductor.config.patch(settings))
        torch._dynamo.reset()
        counters.clear()
        session = super()._open(cell, state, device, stack)
        session.facts |= {
            "graphs": counters["stats"]["unique_graphs"],
            "graph_breaks": sum(counters["graph_break"].values()),
            "inductor_cache_hits": counters["inductor"]["fxgraph_cache_hit"],
            "inductor_cache_misses": counters["inductor"]["fxgraph_cache_miss"],
        }
        if not session.facts["graphs"] or counters["frames"]["ok"] < counters["frames"]["total"]:
            raise CellFailed("fallback", "torch.compile ran the network eagerly, uncompiled")
        session.recompiled = lambda: {"recompilations": counters["frames"]["total"]}
        return session

    def _compiled(self, forward: Forward, cell: Cell, example: torch.Tensor) -> Forward:
        import torch

        compiled: Forward = torch.compile(
            forward,
            mode=str(cell.options.get("mode", "default")),
            fullgraph=bool(cell.options.get("fullgraph", False)),
            dynamic=False,
        )
        compiled(example)  # it compiles when first called
        return compiled


def _hardware(device: str) -> str:
    """The GPU's name, or the CPU's vector units: what generated code depends on."""
    import torch

    if device == "cuda" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {torch.version.cuda}"
    return str(torch.backends.cpu.get_cpu_capability())


def _directory(stack: ExitStack, source: Path) -> Path:
    """A private directory with a copy of ``source`` (if there is one), until ``stack`` closes."""
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpubench-inductor-")))
    if source.is_dir():
        shutil.copytree(source, path, dirs_exist_ok=True)
    return path

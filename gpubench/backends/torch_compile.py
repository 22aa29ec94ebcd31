"""PyTorch through ``torch.compile`` and inductor: `TorchEager` with one call more.

Preparing compiles the network and keeps inductor's cache as an entry of gpubench's; a session works
on a private copy of it, so that opening only traces and loads.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.backends import _inductor
from gpubench.backends.base import Device
from gpubench.backends.torch_eager import TorchEager, TorchSession
from gpubench.errors import CellFailed
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
and lays them out again where there is none. The modules in C (``.so``) by which it calls the driver
are not in that bundle: they are kept, or each open would run the C compiler.
"""
_RECORDED = "recorded_non_static_inputs"
"""Inductor counts them of each graph that it records; the pictures are one."""
_TIMES = 3
"""Calls until a graph mode replays: the first runs, the second records."""


class TorchCompile(TorchEager):
    """Compiled execution on CPU and CUDA; compiling is prepare time."""

    name = "torch-compile"
    summary = "PyTorch, torch.compile with inductor; CPU and CUDA; fp32, tf32, fp16, bf16, amp"
    options = (
        *_inductor.OPTIONS,
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
    )
    preload = (*TorchEager.preload, "torch._dynamo", "torch._inductor.compile_fx")

    def probe(self) -> Facts:
        return super().probe() | _inductor.compiler()

    def probe_to_open(self) -> Facts:
        return super().probe()

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
        recipe = _inductor.recipe(cell, state)

        def make(at: Path) -> None:
            with ExitStack() as stack:
                work = _inductor.directory(stack, at / _INDUCTOR)
                device = Device(cell.device, 0, tuple(range(cell.cores)))
                self._open_with(work, cell, state, device, stack)
                keep(work, at / _INDUCTOR)
            (at / _inductor.STATE).write_text(json.dumps(str(state)))

        return cache.get_or_make("torch-compile", recipe, make)

    def export(self, artefact: Path, folder: Path) -> Path:
        return _inductor.export(artefact, folder)

    def _open(self, cell: Cell, artefact: Path, device: Device, stack: ExitStack) -> TorchSession:
        state = _inductor.state_of(artefact)
        work = _inductor.directory(stack, artefact / _INDUCTOR)
        return self._open_with(work, cell, state, device, stack)

    def _open_with(
        self, work: Path, cell: Cell, state: Path, device: Device, stack: ExitStack
    ) -> TorchSession:
        """A session whose inductor cache is ``work``."""
        _inductor.enter(stack, work, device.threads, freezing=bool(cell.options.get("freezing")))
        import torch._dynamo
        from torch._dynamo.utils import counters

        torch._dynamo.reset()
        counters.clear()
        helpers = _modules(work)
        session = super()._open(cell, state, device, stack)
        told = counters["inductor"]
        compiled = told["fxgraph_cache_miss"] + len(_modules(work) - helpers)
        session.facts |= {
            "graphs": counters["stats"]["unique_graphs"],
            "graph_breaks": sum(counters["graph_break"].values()),
            "inductor_cache_hits": told["fxgraph_cache_hit"],
            "inductor_cache_misses": told["fxgraph_cache_miss"],
            "compiled_at_open": compiled,
        }
        if not session.facts["graphs"] or counters["frames"]["ok"] < counters["frames"]["total"]:
            raise CellFailed("fallback", "torch.compile ran the network eagerly, uncompiled")
        if cell.options.get("mode") in _GRAPH_MODES:
            skips, recorded = (told[f"cudagraph_{n}"] for n in ("skips", _RECORDED))
            if skips or not recorded:
                raise CellFailed(
                    "fallback",
                    f"mode = {cell.options['mode']!r} ran without CUDA graphs: inductor skipped "
                    f"{skips} and recorded {'some' if recorded else 'none'} (its log says why); "
                    "use 'default' or 'max-autotune-no-cudagraphs', with cuda_graph = true",
                )
        session.recompiled = lambda: {
            "recompilations": counters["frames"]["total"],
            "compiled_at_open": compiled,
        }
        return session

    def _compiled(self, forward: Forward, cell: Cell, example: torch.Tensor) -> Forward:
        import torch

        compiled: Forward = torch.compile(
            forward,
            mode=str(cell.options.get("mode", "default")),
            fullgraph=bool(cell.options.get("fullgraph", False)),
            dynamic=False,
        )
        for _ in range(_TIMES if cell.options.get("mode") in _GRAPH_MODES else 1):
            compiled(example)  # it compiles when first called
        return compiled


def keep(work: Path, to: Path) -> None:
    """Copy what a session needs of inductor's cache."""
    shutil.copytree(work, to, ignore=_NOT_KEPT)
    for module in _modules(work):
        kept = to / module.relative_to(work)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, kept)


def _modules(work: Path) -> set[Path]:
    """Those that Triton had the C compiler make, each in a folder of its own."""
    return set((work / "triton").rglob("*.so"))

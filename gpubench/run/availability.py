"""What this machine and this installation lack for a cell: backends, decoders, models, devices."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from gpubench import plugins
from gpubench.backends import base
from gpubench.backends.base import Backend
from gpubench.errors import InputError, Unavailable
from gpubench.machine.cores import usable_cores
from gpubench.machine.gpu import visible_gpus
from gpubench.pipeline import loader
from gpubench.pipeline.decoders import base as decoders
from gpubench.pipeline.decoders.base import Decoder
from gpubench.suite.grid import combinations, expand
from gpubench.suite.types import Catalog, Cell, Suite
from gpubench.workload.models import given_input, registry
from gpubench.workload.models.onnx_model import refusal


class Export(Struct, frozen=True):
    """Of a source's networks to ONNX, for a backend that reads it."""

    source: registry.Source

    def probe(self) -> dict[str, str]:
        """As `Backend.probe`."""
        return plugins.installed(*self.source.onnx_with)


Part = Backend | Decoder | registry.Source | Export
"""What needs libraries."""
decoder = functools.cache(decoders.get)
"""By name; looking through what is installed takes longer than a plan has for each of its cells."""


def parts(cell: Cell) -> list[str]:
    """What a machine may lack for it, as keys of `gpubench.run.inventory.Node.lacks`."""
    path = [named(cell.decoder)] if cell.boundary == "pipeline" else []
    return [cell.backend, source(cell.model), exported(cell.backend, cell.model), *path]


def source(model: str) -> str:
    """What its network comes from, among backends that may be called the same."""
    return f"models of {registry.of(model).name}"


def exported(backend: str, model: str) -> str:
    """The model's network as that backend reads it."""
    return f"{source(model)} as ONNX, for {backend}"


def named(name: str) -> str:
    """A decoder, among backends that may be called the same."""
    return f"decoder {name}"


def preload(cells: Iterable[Cell], backends: Mapping[str, Backend]) -> list[str]:
    """Modules that their workers import."""
    found: dict[str, None] = {}
    for cell in cells:
        found |= dict.fromkeys(backends[cell.backend].preload)
        found |= dict.fromkeys(registry.of(cell.model).preload)
        if cell.boundary == "pipeline":
            found |= dict.fromkeys(decoder(cell.decoder).preload)
    return list(found)


def unsupported(cell: Cell, backend: Backend) -> str | Lack | None:
    """Why there is no such cell, or None; a Lack: a third party's module could not say.

    Raises InputError for an ONNX file that cannot be measured at all, as far as its graph says.
    """
    try:
        return backend.unsupported(cell) or _unsupported(cell, backend)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001
        return broken("unsupported", error)


def _unsupported(cell: Cell, backend: Backend) -> str | None:
    """Why its network cannot be had so, or why there is no such path, or None."""
    if network := registry.seen(cell.workload):
        if reason := network.refusal(cell):
            return reason
        if reason := given_input.refusal(cell.model, network.dtype, cell.input):
            return reason
        own = network.precision or cell.precision  # of fp32, others are made
        made = backend.casts_onnx or cell.precision in ("tf32", "amp", "int8")
        asked = own if own == "fp32" and made and not network.backend else cell.precision
        if reason := refusal(cell.model, own, network.batch, asked, cell.batch_size):
            return reason
    if cell.boundary != "pipeline":
        return None
    decodes = decoder(cell.decoder)
    if reason := decodes.unsupported(cell.device):
        return f"decoder {cell.decoder}: {reason}"
    if cell.scenario == "latency":
        return None
    if cell.dispatch != "independent":
        return f"dispatch {cell.dispatch}: with boundary pipeline each replica has its own loader"
    if cell.cores and cell.loader_cores >= cell.cores:
        return (
            f"loader_cores = {cell.loader_cores} of a replica's {cell.cores} core(s) leave none "
            "to compute"
        )
    return loader.unsupported(cell.loader, decodes)


def family(cell: Cell) -> str:
    """The same for cells that one artefact serves."""
    return replace(
        cell,
        replicas=1,
        replicas_per_device=1,
        sharing="auto",
        dispatch="independent",
        scenario="latency",
        boundary="compute",
        decoder="pil",
        loader="auto",
        loader_cores=0,
        labels="",
    ).key


class Lack(Struct, frozen=True):
    """Why a backend cannot run on a machine."""

    reason: str
    remedy: str


def lack(part: Part) -> Lack | None:
    """Why it cannot run here, by its own probe."""
    try:
        part.probe()
    except Unavailable as error:
        return Lack(error.reason, error.remedy)
    except Exception as error:  # noqa: BLE001  # a third party's module may raise anything
        return broken("probe", error)
    return None


def extras(lacks: Mapping[str, Lack]) -> list[str]:
    """Of gpubench, those that bring what is lacking."""
    named = (_EXTRAS.findall(lack.remedy) for lack in lacks.values())
    return sorted({extra for found in named for words in found for extra in words.split(",")})


_EXTRAS = re.compile(r"gpubench\[([\w,-]+)\]")


def broken(method: str, error: Exception) -> Lack:
    """The ``method`` of such a part raised what it should not."""
    return Lack(f"its {method} failed: {error!r}", "report it to the backend's authors")


def lacks(
    backends: Mapping[str, Backend], decoders: Iterable[str] = (), models: Iterable[str] = ()
) -> dict[str, Lack]:
    """What of these, and of what the models come from and are made into, cannot run here, named as
    in `parts`; and why."""
    read = [name for name, backend in backends.items() if backend.reads_onnx]
    used: dict[str, Part] = (
        dict(backends)
        | {named(name): decoder(name) for name in decoders}
        | {source(model): registry.of(model) for model in models}
        | {exported(name, model): Export(registry.of(model)) for model in models for name in read}
    )
    return {name: why for name, part in used.items() if (why := lack(part))}


def catalog() -> Catalog:
    """What a suite may name on this installation; imports no runtime."""
    backends = {}
    for name in base.names():
        try:
            backends[name] = tuple(base.get(name).options)
        except InputError:
            backends[name] = ()  # a broken plug-in; whoever names it is told
    models = registry.names() if registry.listed() else ()
    return Catalog(backends=backends, models=models, decoders=tuple(decoders.names()))


def device_of(suite: Suite, gpus: int) -> Literal["cpu", "cuda"]:
    """The one that its cells are for here."""
    wanted = suite.axes.device
    return wanted if wanted != "auto" else ("cuda" if gpus else "cpu")


def refusals(suite: Suite, device: Literal["cpu", "cuda"]) -> dict[str, str]:
    """Backend -> why it cannot take the suite's network in fp32, by the words alone; '': it can.

    Imports nothing, so that it works where no runtime is installed.
    """
    cell = next(combinations(suite, device, 1))
    found = {}
    for backend in filter(lambda one: one.computes, map(base.get, base.names())):
        asked = replace(cell, backend=backend.name, precision="fp32", batch_size=1, options={})
        found[backend.name] = backend.unsupported(asked) or ""
    return found


def backends_of(suite: Suite) -> dict[str, base.Backend]:
    """Those that it names."""
    return {name: base.get(name) for name in sorted(suite.axes.backend)}


def of_use(suite: Suite) -> tuple[dict[str, base.Backend], list[str], list[str]]:
    """As `named_by`, less what refuses all of its cells on this machine's device: to install that
    would bring nothing."""
    backends, decoders, models = named_by(suite)
    device = device_of(suite, len(visible_gpus()))
    cells = expand(suite, device, len(usable_cores()))
    used = {cell.backend for cell in cells if not _refuses(backends[cell.backend], cell)}
    serving = [name for name in decoders if not decoder(name).unsupported(device)]
    return {name: one for name, one in backends.items() if name in used}, serving, models


def _refuses(backend: Backend, cell: Cell) -> bool:
    try:
        return bool(backend.unsupported(cell))
    except Exception:  # noqa: BLE001  # a third party's, which a plan tells
        return False


def named_by(suite: Suite) -> tuple[dict[str, base.Backend], list[str], list[str]]:
    """Its backends, decoders and models, as `lacks` takes them."""
    decoders = sorted(suite.axes.decoder) if "pipeline" in suite.axes.boundary else []
    return backends_of(suite), decoders, [suite.workload.model]

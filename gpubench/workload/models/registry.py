"""Where networks come from: torchvision, timm, a file, own code; each is an entry point.

How a model is written says which source has it, see `gpubench.suite.types.source_of`; that of a
third party, registered as 'theirs', has what is written 'theirs/...'. What the driver asks imports
no library, and nothing of the user's.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from gpubench import plugins
from gpubench.errors import InputError, Unavailable
from gpubench.suite.types import model_path, source_of, weights_file

if TYPE_CHECKING:
    from gpubench.cache import Cache
    from gpubench.suite.types import Cell, Workload
    from gpubench.workload.models.base import Model

GROUP = "gpubench.models"


class Look(Struct, frozen=True):
    """What a file says of its network."""

    precision: str
    """'': whatever is asked for."""
    batch: int
    """0: any."""
    dtype: str
    """Of its input, as `Spec.dtype`."""
    backend: str = ""
    """The only one that runs it, as it is compiled; '': any."""
    device: str = ""
    """The only one, then."""
    literal: bool = False
    """Whether its graph may hold a batch size that its input does not say."""

    def refusal(self, cell: Cell) -> str | None:
        """Why a file that is compiled cannot be run as ``cell`` says, or None."""
        if not self.backend:
            return None
        what = f"model {cell.model!r} is a compiled package"
        if cell.backend != self.backend:
            return f"{what}, which only {self.backend} runs"
        if cell.device != self.device:
            return f"{what} for {self.device}: compile it for {cell.device}"
        if cell.input not in ("float32", self.dtype):
            return f"{what} that takes {self.dtype}: leave input = {cell.input!r} out"
        return None


class Source(ABC):
    """One place that networks come from. Its module imports its library in `model` only."""

    name: str
    summary: str
    """One line for ``gpubench list models``."""
    preload: tuple[str, ...] = ()
    """As `gpubench.backends.base.Backend.preload`."""
    onnx_with: tuple[str, ...] = ()
    """Packages that write its networks as ONNX; (): they are that already."""

    def probe(self) -> dict[str, str]:
        """Versions of what its networks are made with; raises `Unavailable`. For the driver."""
        return {}

    def names(self) -> tuple[str, ...]:
        """Models as they are written, as far as they can be listed at no cost. For the driver."""
        return ()

    def look(self, workload: Workload) -> Look | None:  # noqa: ARG002
        """What a file says; None: whatever is asked for.

        For the driver. Raises InputError for what cannot be measured, as far as that is cheap to
        tell.
        """
        return None

    @abstractmethod
    def model(self, workload: Workload, cache: Cache) -> Model:
        """The network; raises InputError where there is none. For workers: own code may run."""


@cache
def source(name: str) -> Source:
    """The source that is registered as ``name``. Raises InputError."""
    found: Source = plugins.get(GROUP, name)
    return found


def of(model: str) -> Source:
    """The source that has ``model``. Raises InputError, naming the nearest name, for none."""
    name = source_of(model)
    if name in plugins.names(GROUP):
        return source(name)
    for plain in () if name else (source("digits"), source("torchvision")):
        if model in plain.names():
            return plain
    if not name and not listed():  # its library is what tells
        return source("torchvision")
    prefixes = [f"{each}/" for each in plugins.names(GROUP) if source_of(f"{each}/x")]
    word, known = (f"{name}/", prefixes) if name else (model.rpartition("/")[2], names())
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(
        f"unknown model {model!r}: {hint}`gpubench list models` shows those there are; "
        "a path ending in .onnx or .pt2 is taken as a file, 'timm/NAME' and 'hf/FOLDER' come from "
        "those libraries, and 'model.py:build' is a callable"
    )


def listed() -> bool:
    """Whether it is known which names torchvision has: it is installed."""
    return bool(source("torchvision").names())


@cache
def names() -> tuple[str, ...]:
    """Models that need no more than their name, sorted."""
    return tuple(sorted([*source("digits").names(), *source("torchvision").names()]))


def seen(workload: Workload) -> Look | None:
    """`Source.look` of the workload's network; None where it has nothing to say.

    Raises InputError also where the source lacks its library.
    """
    path = Path(model_path(workload.model)).expanduser()
    found = path.stat() if path.is_file() else None
    return _seen(workload, found and (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=64)
def _seen(workload: Workload, version: object) -> Look | None:  # noqa: ARG001
    found = of(workload.model)
    try:
        found.probe()
    except Unavailable as error:
        words = f"model {workload.model!r}: {error.reason}; {error.remedy}"
        raise InputError(words) from error
    return found.look(workload)


def is_file(workload: Workload) -> bool:
    """Whether the network or its weights are the user's own, and may change."""
    weights = Path(weights_file(workload.weights)[0]).expanduser()
    own = source_of(workload.model) == "code" or Path(model_path(workload.model)).exists()
    return bool(model_path(workload.model) and own) or weights.is_file()


def resolve(workload: Workload, cache: Cache) -> Model:
    """The workload's network. Raises InputError, naming the nearest name, when there is none."""
    return of(workload.model).model(workload, cache)

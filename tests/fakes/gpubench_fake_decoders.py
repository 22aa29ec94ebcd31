"""Decoders that do as their names say, each beside Pillow's."""

from __future__ import annotations

import os
import signal
from typing import Any

from gpubench.errors import Unavailable
from gpubench.pipeline.decoders.pil import Pil, PilPreprocessor
from gpubench.workload.data.image_file import Unusable


class Exact(Pil):
    """As the reference."""

    name = "fake-exact"
    preload = ("json.tool",)
    wrapped: type[PilPreprocessor] = PilPreprocessor

    def open(self, spec: Any, index: int | None = None) -> PilPreprocessor:
        return self.wrapped(spec, {"fake": "1.0"})


class _Swapping(PilPreprocessor):
    def transform(self, pixels: Any, out: Any) -> None:
        super().transform(pixels[:, :, ::-1], out)


class Swapped(Exact):
    """Takes red for blue."""

    name = "fake-swapped"
    wrapped = _Swapping


class _Breaking(PilPreprocessor):
    def transform(self, pixels: Any, out: Any) -> None:
        raise RuntimeError("told to break")


class Breaking(Exact):
    """Raises what it should not."""

    name = "fake-breaking"
    wrapped = _Breaking


class _Killing(PilPreprocessor):
    """The twentieth picture of a process."""

    _seen = 0

    def decode(self, data: bytes) -> Any:
        self._seen += 1
        if self._seen == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode(data)


class Killing(Exact):
    """Kills its process in the middle of things."""

    name = "fake-killing"
    wrapped = _Killing


class _Picky(PilPreprocessor):
    def decode(self, data: bytes) -> Any:
        if sum(data) % 3 == 0:
            raise Unusable("not to my taste")
        return super().decode(data)


class Picky(Exact):
    """Does not take every picture."""

    name = "fake-picky"
    wrapped = _Picky


class Absent(Exact):
    """What this machine never has."""

    name = "fake-absent"

    def probe(self) -> Any:
        raise Unavailable("no such library", "pip install it")


class OnDevice(Exact):
    """What needs a GPU."""

    name = "fake-device"
    on_device = True

    def unsupported(self, device: str) -> str | None:
        return "it works on CUDA devices only" if device != "cuda" else None

"""A backend that computes nothing: what is measured with it is the harness itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.backends.base import Backend, Session
from gpubench.suite.types import Cell, Option

if TYPE_CHECKING:
    from gpubench.backends.base import Device, Facts, Images, Logits
    from gpubench.cache import Cache
    from gpubench.workload.models.base import Model


class Null(Backend):
    """Runs anywhere, in the time of a Python call."""

    name = "null"
    summary = "computes nothing: the overhead of the harness"
    options: tuple[Option, ...] = ()
    preload: tuple[str, ...] = ("numpy",)
    computes = False
    casts_onnx = True

    def probe(self) -> Facts:
        """Nothing is needed."""
        return {}

    def unsupported(self, cell: Cell) -> str | None:  # noqa: ARG002
        """Every cell will do."""
        return None

    def prepare(self, cell: Cell, model: Model, cache: Cache) -> Path:  # noqa: ARG002
        """The number of classes."""
        shape = {"classes": model.num_classes}

        def make(at: Path) -> None:
            (at / "shape.json").write_text(json.dumps(shape))

        return cache.get_or_make("null", shape, make)

    def open(self, cell: Cell, artefact: Path, device: Device) -> NullSession:  # noqa: ARG002
        classes = json.loads((artefact / "shape.json").read_text())["classes"]
        return NullSession((cell.batch_size, classes))


class NullSession(Session):
    """Does nothing."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.facts: Facts = {"computes": False}
        self._shape = shape

    def copy_in(self, images: Images) -> None:
        """Keep the array itself: not even a copy."""
        self._images = images

    def run(self) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def copy_out(self) -> Logits:
        import numpy as np

        return np.zeros(self._shape, np.float32)

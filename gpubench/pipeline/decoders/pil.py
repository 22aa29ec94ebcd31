"""Pillow, and the one definition of preprocessing: the reference."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from gpubench import plugins
from gpubench.pipeline.decoders.base import Decoder
from gpubench.workload.data import image_file, preprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.pipeline.decoders.base import Facts
    from gpubench.workload.data.preprocess import Inputs, Spec


class Pil(Decoder):
    """Decodes and preprocesses as the reference answers' images were."""

    name = "pil"
    summary = "Pillow; the reference that the others are compared with"
    preload: tuple[str, ...] = ("PIL.Image",)

    def probe(self) -> Facts:
        return plugins.installed("pillow")

    def open(self, spec: Spec, index: int | None = None) -> PilPreprocessor:  # noqa: ARG002
        return PilPreprocessor(spec, self.probe())


class PilPreprocessor:
    """`image_file.decode` and `preprocess.apply`."""

    def __init__(self, spec: Spec, facts: Facts) -> None:
        self.facts = facts
        self._spec = spec

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        return image_file.decode_file(BytesIO(data))

    def transform(self, pixels: NDArray[np.uint8], out: Inputs) -> None:
        out[...] = preprocess.apply(self._spec, pixels)

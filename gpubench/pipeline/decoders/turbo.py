"""libjpeg-turbo, through simplejpeg, tuned for speed where answers stay the same.

In a picture that is going to shrink, colour is brought to full resolution by repeating it, not by
interpolating; one far larger than the network's input is decoded at 1/2, 1/4 or 1/8 of its size,
in the very transform that decodes it; and nothing right of or below the crop is resized.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from gpubench import plugins
from gpubench.pipeline.decoders import jpeg_fallback
from gpubench.pipeline.decoders.base import Decoder
from gpubench.workload.data import image_file, preprocess

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from gpubench.pipeline.decoders.base import Facts
    from gpubench.workload.data.preprocess import Inputs, Spec

GAP = 2
"""A picture is decoded at no less than this many times the size that it is resized to."""
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Reach of a filter to either side, pixels of the coarser grid."""


class Turbo(Decoder):
    """On the host, with libjpeg-turbo bundled in simplejpeg's wheel."""

    name = "turbo"
    summary = "libjpeg-turbo (simplejpeg) with scaled decoding, torch's SIMD resize; host"
    preload: tuple[str, ...] = ("torch", "simplejpeg")

    def probe(self) -> Facts:
        return plugins.installed("simplejpeg", "torch")

    def open(self, spec: Spec, index: int | None = None) -> TurboPreprocessor:  # noqa: ARG002
        return TurboPreprocessor(spec, self.probe())


class Decoded(NamedTuple):
    """Pixels, perhaps at another scale than the reference has them."""

    pixels: NDArray[np.uint8]
    """(h, w, 3)"""
    width: int
    """Of the reference's pixels."""
    height: int
    scale: float
    """Pixels here for each of the reference's, along either side."""


class TurboPreprocessor:
    """Single-threaded on CPUs with AVX2; elsewhere as many threads as torch is set to."""

    def __init__(self, spec: Spec, facts: Facts) -> None:
        import numpy as np
        import simplejpeg
        import torch

        jpeg_fallback.check(Turbo.name, spec)
        self.facts = facts | {
            "upsampling": "fast where it shrinks",
            "scaled decoding": f"at least {GAP} x resize",
            "others": jpeg_fallback.OTHERS,
        }
        self._spec = spec
        self._jpeg = simplejpeg.decode_jpeg
        operators = {"bilinear": "_upsample_bilinear2d_aa", "bicubic": "_upsample_bicubic2d_aa"}
        self._resize = getattr(torch.ops.aten, operators[spec.interpolation]).default
        self._from_numpy = torch.from_numpy
        self._planes = np.empty((3, *spec.size), np.uint8)
        arranged = self._planes[::-1] if spec.channels == "bgr" else self._planes
        self._arranged = arranged if spec.layout == "NCHW" else arranged.transpose(1, 2, 0)
        self._factor, self._offset = spec.affine

    def decode(self, data: bytes) -> Decoded:
        """Pixels at the scale that is needed. Raises Unusable."""
        size = jpeg_fallback.size(data)
        if size:
            wide, high, _, _ = preprocess.geometry(self._spec, *size)
            divisor = _divisor(size, (wide, high))
            width, height = (ceil(side / divisor) for side in size)
            shrinks = size[0] > wide and size[1] > high
            try:  # strict: a warning of the decoder's is for the reference to judge
                pixels = self._jpeg(data, fastupsample=shrinks, min_height=height, min_width=width)
            except ValueError:
                pass
            else:
                return _decoded(pixels, *size, divisor)
        pixels = jpeg_fallback.reference(data)
        return Decoded(pixels, pixels.shape[1], pixels.shape[0], 1.0)

    def transform(self, pixels: Decoded, out: Inputs) -> None:
        import numpy as np

        spec, picture = self._spec, pixels.pixels
        wide, high, left, top = preprocess.geometry(spec, pixels.width, pixels.height)
        right, bottom = min(wide, left + spec.size[1]), min(high, top + spec.size[0])
        across, down = wide / (pixels.width * pixels.scale), high / (pixels.height * pixels.scale)
        reach = _SUPPORT[spec.interpolation]
        # What lies right of and below the crop is neither read nor made; what lies left of it is,
        # because the operator's grid begins where its input does.
        seen = self._tensor(picture)[
            :, :, : _read(bottom, down, reach), : _read(right, across, reach)
        ]
        made = self._resize(seen, [bottom, right], False, down, across)[0].numpy()
        kept = made[:, max(top, 0) :, max(left, 0) :]
        y, x, planes = max(-top, 0), max(-left, 0), self._planes
        if kept.shape != planes.shape:  # smaller than the crop: black around it
            planes.fill(0)
        planes[:, y : y + kept.shape[1], x : x + kept.shape[2]] = kept
        if spec.dtype == "uint8":
            np.copyto(out, self._arranged)
            return
        values = out if out.dtype == np.float32 else np.empty(spec.shape, np.float32)
        np.copyto(values, self._arranged)
        np.multiply(values, self._factor, out=values)
        np.add(values, self._offset, out=out)

    def _tensor(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """(1, 3, H, W), channels last also by its first stride: what the SIMD resize looks at."""
        height, width, _ = pixels.shape
        strides = (height * width * 3, 1, width * 3, 3)
        return self._from_numpy(pixels).as_strided((1, 3, height, width), strides)


def _divisor(size: tuple[int, int], needed: tuple[int, int]) -> int:
    """8, 4, 2 or 1: how much smaller to decode what is resized to ``needed``."""
    least = min(have / want for have, want in zip(size, needed, strict=True))
    return next((n for n in (8, 4, 2) if least >= n * GAP), 1)


def _decoded(pixels: NDArray[np.uint8], width: int, height: int, divisor: int) -> Decoded:
    """A picture of ``width`` x ``height`` that was decoded at 1 / ``divisor`` of it."""
    if divisor == 1:
        pixels = jpeg_fallback.averaged(pixels)
        return Decoded(pixels, pixels.shape[1], pixels.shape[0], 1.0)
    factor = max(1, image_file.averaging(width, height))
    return Decoded(pixels, ceil(width / factor), ceil(height / factor), factor / divisor)


def _read(made: int, scale: float, reach: float) -> int:
    """How many pixels of a line the first ``made`` of the resized one are computed from."""
    return ceil((made - 0.5) / scale + reach * max(1 / scale, 1.0)) + 1

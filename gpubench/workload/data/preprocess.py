"""The one definition of how an image becomes a network's input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Spec(Struct, frozen=True, kw_only=True):
    """Resize, centre crop, scale to [0, 1], normalise: torchvision's ``ImageClassification``.

    Resampling is Pillow's, whose filters always antialias when they shrink.
    """

    crop: int
    """Height and width of the network's input, pixels."""
    resize: int
    """The shorter side before the crop, pixels."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of R, G, B; ImageNet's by default."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def geometry(spec: Spec, width: int, height: int) -> tuple[int, int, int, int]:
    """(width, height) after the resize, (left, top) of the crop in it: torchvision's rounding.

    ``left`` and ``top`` are negative where the crop is larger.
    """
    short = min(width, height)
    wide, high = int(spec.resize * width / short), int(spec.resize * height / short)
    return wide, high, round((wide - spec.crop) / 2.0), round((high - spec.crop) / 2.0)


def apply(spec: Spec, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels (H, W, 3) uint8 -> network input (3, crop, crop) float32."""
    import numpy as np
    from PIL import Image

    wide, high, left, top = geometry(spec, image.shape[1], image.shape[0])
    filters = Image.Resampling[spec.interpolation.upper()]
    resized = Image.fromarray(image).resize((wide, high), filters)
    box = (left, top, left + spec.crop, top + spec.crop)  # outside the image: black, as torchvision
    pixels = np.asarray(resized.crop(box), np.float32) / np.float32(255)
    normal = (pixels - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))

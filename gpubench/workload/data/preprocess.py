"""The one definition of how an image becomes a network's input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Inputs = NDArray[np.float32 | np.uint8]
    """As a network takes them: of `Spec.shape` and `Spec.dtype`."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Spec(Struct, frozen=True, kw_only=True):
    """Resize, centre crop, map to ``range``, normalise; by default as torchvision's weights want.

    Resampling is Pillow's, whose filters always antialias when they shrink. Raises ValueError for
    what contradicts itself.
    """

    size: tuple[int, int]
    """Height and width of the network's input, pixels."""
    resize: int | None
    """The shorter side before the crop, pixels; None: each side straight to ``size``, no crop."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Of each channel in the network's order, after ``range``; ImageNet's by default."""
    std: tuple[float, ...] = IMAGENET_STD
    range: tuple[float, float] = (0.0, 1.0)
    """What the pixel values 0 and 255 are mapped to, before mean and std."""
    channels: Literal["rgb", "bgr", "grey"] = "rgb"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"
    """uint8: pixels as they are, with `RAW` for mean, std and range."""

    def __post_init__(self) -> None:
        low, high = self.range
        count = len(self.mean)
        if not (count == len(self.std) == self.depth):
            raise ValueError(f"{count} means, {len(self.std)} stds: {self.channels} needs as many")
        numbers = (*self.mean, *self.std, *self.range)
        if min(*self.size, *self.std) <= 0 or low >= high or not all(map(math.isfinite, numbers)):
            raise ValueError("size and std are above 0, and range goes upwards")
        if self.dtype == "uint8" and (*self.mean, *self.std, *self.range) != (
            *(0.0,) * count, *(1.0,) * count, 0.0, 255.0,
        ):  # fmt: skip
            raise ValueError("a network that takes bytes normalises them itself")

    @property
    def depth(self) -> int:
        """Channels."""
        return 1 if self.channels == "grey" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one input, in the network's layout."""
        return (self.depth, *self.size) if self.layout == "NCHW" else (*self.size, self.depth)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of pixels in [0, 1] that do all that ``range``, ``mean`` and ``std`` do."""
        low, high = self.range
        return (
            tuple((value - low) / (high - low) for value in self.mean),
            tuple(value / (high - low) for value in self.std),
        )

    def per_channel(self, values: Sequence[float]) -> NDArray[np.float32]:
        """One value for each channel, in an array that broadcasts with an input."""
        import numpy as np

        return np.array(values, np.float32).reshape((-1, 1, 1) if self.layout == "NCHW" else (-1,))


def assumed(
    size: tuple[int, int],
    channels: Literal["rgb", "grey"] = "rgb",
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    dtype: Literal["float32", "uint8"] = "float32",
) -> Spec:
    """For a network that says no more than its input's shape: as most are trained on ImageNet.

    Not square: without a crop, which would show most pictures with a black border.
    """
    height, width = size
    resize = round(height * 256 / 224) if height == width else None
    mean, std, scale = IMAGENET_MEAN, IMAGENET_STD, 1.0
    if dtype == "uint8":
        mean, std, scale = (0.0,) * 3, (1.0,) * 3, 255.0
    if channels == "grey":
        mean, std = (round(sum(mean) / 3, 3),), (round(sum(std) / 3, 3),)  # type: ignore[assignment]
    return Spec(
        size=size, resize=resize, mean=mean, std=std, range=(0.0, scale), channels=channels,
        layout=layout, dtype=dtype,
    )  # fmt: skip


def geometry(spec: Spec, width: int, height: int) -> tuple[int, int, int, int]:
    """(width, height) after the resize, (left, top) of the crop in it: torchvision's rounding.

    ``left`` and ``top`` are negative where the crop is larger.
    """
    needed_high, needed_wide = spec.size
    if spec.resize is None:
        return needed_wide, needed_high, 0, 0
    short = min(width, height)
    wide, high = int(spec.resize * width / short), int(spec.resize * height / short)
    return wide, high, round((wide - needed_wide) / 2.0), round((high - needed_high) / 2.0)


def apply(spec: Spec, image: NDArray[np.uint8]) -> Inputs:
    """Pixels (H, W, 3) uint8 RGB -> the network's input, C-contiguous."""
    import numpy as np
    from PIL import Image

    wide, high, left, top = geometry(spec, image.shape[1], image.shape[0])
    picture = Image.fromarray(image)
    if spec.channels == "grey":
        picture = picture.convert("L")
    resized = picture.resize((wide, high), Image.Resampling[spec.interpolation.upper()])
    height, width = spec.size
    box = (left, top, left + width, top + height)  # outside the image: black, as torchvision
    pixels: NDArray[Any] = np.asarray(resized.crop(box)).reshape(height, width, spec.depth)
    if spec.channels == "bgr":
        pixels = pixels[..., ::-1]
    if spec.dtype == "float32":
        least, most = spec.range
        pixels = pixels.astype(np.float32) / np.float32(255 / (most - least)) + np.float32(least)
        pixels = (pixels - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if spec.layout == "NCHW" else pixels)


def shown(spec: Spec, inputs: Inputs) -> NDArray[np.uint8]:
    """What the network saw, for people: `apply` backwards, (H, W, 3) RGB or (H, W) grey."""
    import numpy as np

    values = inputs.transpose(1, 2, 0) if spec.layout == "NCHW" else inputs
    mean, std = spec.normalisation
    pixels: NDArray[np.uint8] = np.rint(
        np.clip(values * np.array(std) + np.array(mean), 0, 1) * 255
    ).astype(np.uint8)
    if spec.channels == "grey":
        return pixels[..., 0]
    return pixels[..., ::-1] if spec.channels == "bgr" else pixels

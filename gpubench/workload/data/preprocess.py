"""The one definition of how an image becomes a network's input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from gpubench.errors import InputError
from gpubench.suite.schema import show
from gpubench.suite.types import Channels, Input, Interpolation, Layout, Preprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Inputs = NDArray[np.float32 | np.float16 | np.uint8]
    """As a network takes them: of `Spec.shape` and `Spec.dtype`."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Spec(Struct, frozen=True, kw_only=True):
    """Resize, centre crop, map to ``range``, normalise; by default as torchvision's weights want.

    Resampling is Pillow's, whose filters always antialias when they shrink. Raises ValueError for
    what contradicts itself.
    """

    size: tuple[int, int]
    """Height and width of the network's input, pixels."""
    resize: int | tuple[int, int] | None
    """The shorter side before the crop, pixels; or height and width, to which pictures are
    stretched; None: straight to ``size``, no crop."""
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Of each channel in the network's order, after ``range``; ImageNet's by default."""
    std: tuple[float, ...] = IMAGENET_STD
    range: tuple[float, float] = (0.0, 1.0)
    """What the pixel values 0 and 255 are mapped to, before mean and std."""
    channels: Channels = "rgb"
    layout: Layout = "NCHW"
    dtype: Input = "float32"
    """Of the array, whatever the network computes in.

    uint8: pixels as they are, mean 0, std 1, range [0, 255].
    """
    source: str = ""
    """Who says so, in words."""
    assumed: bool = False
    """Whether nobody does, of some of it."""

    def __post_init__(self) -> None:
        low, high = self.range
        count = len(self.mean)
        if not (count == len(self.std) == self.depth):
            raise ValueError(f"{count} means, {len(self.std)} stds: {self.channels} needs as many")
        numbers = (*self.mean, *self.std, *self.range)
        before = (self.resize,) if isinstance(self.resize, int) else self.resize or self.size
        least = min(*self.size, *before, *self.std)
        if least <= 0 or low >= high or not all(map(math.isfinite, numbers)):
            raise ValueError("size, resize and std are above 0, and range goes upwards")
        if self.dtype == "uint8" and (*self.mean, *self.std, *self.range) != (
            *(0.0,) * count, *(1.0,) * count, 0.0, 255.0,
        ):  # fmt: skip
            raise ValueError("a network that takes bytes normalises them itself")

    def given(self, dtype: Input) -> Spec:
        """The same for a host that gives ``dtype``, and a network that normalises bytes itself."""
        if dtype != "uint8":
            return msgspec.structs.replace(self, dtype=dtype)
        mean, std = (0.0,) * self.depth, (1.0,) * self.depth
        return msgspec.structs.replace(self, dtype=dtype, mean=mean, std=std, range=(0.0, 255.0))

    @property
    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Factor and offset of each channel, as `per_channel`, that make the input of pixels."""
        mean, std = self.normalisation
        factor = [1 / (255 * one) for one in std]
        offset = [-value / one for value, one in zip(mean, std, strict=True)]
        return self.per_channel(factor), self.per_channel(offset)

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
    channels: Channels = "rgb",
    layout: Layout = "NCHW",
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
        layout=layout, dtype=dtype, source="assumed: the file does not say", assumed=True,
    )  # fmt: skip


def override(spec: Spec, said: Preprocess | None, network: str, *, fixed: bool) -> Spec:
    """``spec`` with what a suite says in its place. ``fixed``: the network has this size only.

    Who says mean, std or range says all three: 0, 1 and [0, 1] stand for what is left out. Raises
    InputError for what the network does not take.
    """
    if said is None or not said.given:
        return spec

    def wrong(key: str, takes: str) -> InputError:
        text = f"workload.preprocess.{key} = {show(said.plain(key))}: {network} takes {takes}"
        return InputError(text)

    size, resize = (said.size[0], said.size[-1]) if said.size else spec.size, spec.resize
    if size != spec.size:
        if fixed:
            raise wrong("size", f"{_size(spec.size)} only")
        if isinstance(resize, tuple):
            high, wide = (round(n * s / o) for n, s, o in zip(size, resize, spec.size, strict=True))
            resize = high, wide
        else:
            in_proportion = resize and size[0] == size[1]
            resize = round(size[0] * (resize or 0) / spec.size[0]) if in_proportion else None
    if said.crop and not resize and not said.resize and size[0] != size[1]:
        raise wrong("crop", f"{_size(size)}, which is not square: say resize, the shorter side of "
                    "pictures before it")  # fmt: skip
    if said.crop is not None:
        resize = (resize or size[0]) if said.crop else None
    if said.resize and said.resize < min(size):
        raise wrong("resize", f"{_size(size)}, and the crop would have black borders")
    changes: dict[str, Any] = {"size": size, "resize": said.resize or resize}
    if said.interpolation:
        changes["interpolation"] = said.interpolation
    if said.channels and said.channels != spec.channels:
        if "grey" in (said.channels, spec.channels):
            raise wrong("channels", f"{spec.depth} channel{'s' * (spec.depth > 1)}")
        changes |= {"channels": said.channels, "mean": spec.mean[::-1], "std": spec.std[::-1]}
    if said.layout and said.layout != spec.layout:
        raise wrong("layout", spec.layout)
    scaled = [key for key in ("mean", "std", "range") if key in said.given]
    if scaled and spec.dtype == "uint8":
        raise wrong(scaled[0], "bytes, and normalises them itself")
    if scaled:
        changes["range"] = said.range or (0.0, 1.0)
        for key, values in (("mean", said.mean or (0.0,)), ("std", said.std or (1.0,))):
            if len(values) not in (1, spec.depth):
                raise wrong(key, f"{spec.depth} channel{'s' * (spec.depth > 1)}")
            changes[key] = values * spec.depth if len(values) == 1 else values
    valued = scaled or spec.dtype == "uint8"
    whole = bool(valued and said.interpolation and {"resize", "crop"} & {*said.given})
    part = f"{', '.join(said.given)} given in the suite; the rest {spec.source}"
    changes |= {"source": "given in the suite" if whole else part}
    return msgspec.structs.replace(spec, **changes, assumed=spec.assumed and not whole)


def words(spec: Spec) -> str:
    """All of it on one line, with who says so: '224x224, resize 256, bilinear, ...'."""
    before = (spec.resize,) * 2 if isinstance(spec.resize, int) else spec.resize or spec.size
    told = str(spec.resize) if isinstance(spec.resize, int) else f"{_size(before)}, stretched"
    parts = [_size(spec.size), f"resize {told}" if spec.resize else "no crop"]
    if any(side < own for side, own in zip(before, spec.size, strict=True)):
        parts += ["black where that is smaller"]
    parts += [spec.interpolation]
    if (spec.mean, spec.std, spec.channels) == (IMAGENET_MEAN, IMAGENET_STD, "rgb"):
        parts += ["ImageNet's mean and std"]
    elif spec.dtype != "uint8":
        parts += [f"mean {_few(spec.mean)}, std {_few(spec.std)}"]
    if spec.dtype != "uint8" and spec.range != (0, 1):
        parts += [f"range {_few(spec.range)}"]
    parts += [spec.channels] if spec.channels != "rgb" else []
    parts += [spec.layout] if spec.layout != "NCHW" else []
    parts += {"uint8": ["bytes"], "float16": ["float16"]}.get(spec.dtype, [])
    return ", ".join(parts) + (f" ({spec.source})" if spec.source else "")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _few(values: Sequence[float]) -> str:
    """'0.5' where all are the same, else '[0.1, 0.2, 0.3]'."""
    shown = [f"{value:g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"[{', '.join(shown)}]"


def geometry(spec: Spec, width: int, height: int) -> tuple[int, int, int, int]:
    """(width, height) after the resize, (left, top) of the crop in it: torchvision's rounding.

    ``left`` and ``top`` are negative where the crop is larger.
    """
    needed_high, needed_wide = spec.size
    if isinstance(spec.resize, int):
        short = min(width, height)
        wide, high = int(spec.resize * width / short), int(spec.resize * height / short)
    else:
        high, wide = spec.resize or spec.size
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
    if spec.dtype != "uint8":
        least, most = spec.range
        pixels = pixels.astype(np.float32)
        pixels /= np.float32(255 / (most - least))
        pixels += np.float32(least)
        pixels -= np.array(spec.mean, np.float32)
        pixels /= np.array(spec.std, np.float32)
    arranged = pixels.transpose(2, 0, 1) if spec.layout == "NCHW" else pixels
    return np.ascontiguousarray(arranged, spec.dtype)


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

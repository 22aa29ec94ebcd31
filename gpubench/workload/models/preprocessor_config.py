"""Hugging Face's `preprocessor_config.json`: how pictures become a network's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gpubench import files
from gpubench.suite.schema import MOST_SIDE
from gpubench.workload.data.preprocess import Spec

NAME = "preprocessor_config.json"
MOST_BYTES = 2**20
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""


class _Size(Struct):
    height: int = 0
    width: int = 0
    shortest_edge: int = 0


class _Config(Struct):
    """What is read of it; a key that is missing or null has the meaning that it has there."""

    size: int | _Size | None = None
    crop_size: int | _Size | None = None
    crop_pct: float | None = None
    do_resize: bool | None = None
    do_center_crop: bool | None = None
    resample: int | None = None
    do_rescale: bool | None = None
    rescale_factor: float | None = None
    rescale_offset: bool | None = None
    do_normalize: bool | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    do_flip_channel_order: bool | None = None


def read(model: Path, spec: Spec, *, fixed: bool) -> Spec:
    """``spec`` as the file beside ``model`` has it (or above it, where its folder is called onnx).

    As it is where there is none. ``fixed``: the network takes this size only. Raises ValueError
    for what is not understood, OSError.
    """
    file = model.absolute().with_name(NAME)
    if not file.is_file() and file.parent.name == "onnx":
        file = file.parents[1] / NAME
    if not file.is_file():
        return spec
    with files.opened(file) as opened:
        data = opened.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} bytes")
    return of(data, spec, NAME, fixed=fixed)


def of(data: bytes, spec: Spec, who: str, *, fixed: bool = False) -> Spec:
    """``spec`` as JSON of that form has it, which is called ``who``. Raises ValueError likewise."""
    try:
        config = msgspec.json.decode(data, type=_Config)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"not understood ({error})") from error
    size, resize = _geometry(config)
    if max(*size, *(resize if isinstance(resize, tuple) else (resize or 0,))) > MOST_SIDE:
        raise ValueError(f"says more than {MOST_SIDE:,} pixels")
    if fixed and size != spec.size:
        said, own = ("x".join(map(str, each)) for each in (size, spec.size))
        raise ValueError(f"says {said}, and the network takes {own}")
    changes: dict[str, Any] = {"size": size, "resize": resize, "source": f"as {who} says"}
    if config.resample is not None:
        if config.resample not in _FILTERS:
            raise ValueError(f"says resample = {config.resample}, which is none of {_FILTERS}")
        changes["interpolation"] = _FILTERS[config.resample]
    if spec.dtype == "float32":
        changes |= _values(config, spec.depth)
    return replace(spec, **changes, assumed=False)


def _geometry(config: _Config) -> tuple[tuple[int, int], int | tuple[int, int] | None]:
    """`Spec.size` and `Spec.resize`."""
    size, crop = (
        _Size(shortest_edge=each) if isinstance(each, int) else each or _Size()
        for each in (config.size, config.crop_size)
    )
    inner = (crop.height or crop.shortest_edge, crop.width or crop.shortest_edge)
    side = size.shortest_edge
    if config.do_resize is False:
        raise ValueError("has do_resize = false: pictures have to become one size")
    if config.do_center_crop and side and all(inner):
        return inner, side
    if config.crop_pct and side:  # ConvNeXt's rule
        return (side, side), int(side / config.crop_pct) if side < 384 else None
    outer = (size.height or side, size.width or side)
    if not all(outer):
        raise ValueError("has no size")
    if isinstance(config.size, _Size) and side:
        raise ValueError("has no crop_size: pictures would become as wide as they are")
    if config.do_center_crop and inner != outer:
        if not all(inner):
            raise ValueError("has do_center_crop and no crop_size")
        return inner, outer
    return outer, None


def _values(config: _Config, depth: int) -> dict[str, Any]:
    """`Spec.range`, mean, std and channels."""
    scale = 255.0
    if config.do_rescale is not False:
        scale = round(255 * (config.rescale_factor or 1 / 255), 6)
    low = -1.0 if config.rescale_offset else 0.0
    mean, std = (0.0,) * depth, (1.0,) * depth
    if config.do_normalize is not False and config.image_mean and config.image_std:
        mean, std = config.image_mean, config.image_std
    found: dict[str, Any] = {"range": (low, low + scale), "mean": mean, "std": std}
    if config.do_flip_channel_order:
        found |= {"channels": "bgr", "mean": mean[::-1], "std": std[::-1]}
    return found

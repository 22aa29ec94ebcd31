"""torchvision's and timm's transforms, read as `workload.preprocess`; by the names of their
classes, so that neither is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpubench.errors import InputError
from gpubench.suite.types import Interpolation

_SCALED = ("ToTensor", "MaybeToTensor", "ConvertImageDtype", "ToDtype")
"""After them pixels are in [0, 1]."""
_PLAIN = ("PILToTensor", "MaybePILToTensor", "ToImage", "ToPureTensor", "Identity", "RGB")
"""They change no value."""
_SETS = ("Compose", "Sequential", "ModuleList")


def read(transform: Any) -> dict[str, Any]:
    """What a suite says in its place: ``size``, ``resize`` or ``crop``, ``interpolation``,
    ``mean``, ``std``, ``channels``. Raises InputError naming what cannot be said so."""
    if isinstance(transform, Mapping):
        return {str(key): value for key, value in transform.items()}
    said: dict[str, Any] = {}
    scaled, seen = False, set[str]()
    for step in _steps(transform):
        name = type(step).__name__
        if name in seen:
            raise _unread(step, "a second one")
        seen.update({name} & {"Resize", "CenterCrop", "Normalize"})
        if name == "ImageClassification":  # torchvision's, of published weights
            said |= {"resize": _side(step.resize_size, step), "size": _sides(step.crop_size),
                     "interpolation": _kind(step.interpolation, step)}  # fmt: skip
            said |= {"mean": _numbers(step.mean), "std": _numbers(step.std)}
            scaled = True
        elif name == "Resize":
            if getattr(step, "max_size", None):
                raise _unread(step, "max_size makes pictures of some shapes smaller")
            said |= {"interpolation": _kind(step.interpolation, step)}
            several = isinstance(step.size, tuple | list) and len(step.size) == 2
            said |= {"size": _sides(step.size), "crop": False} if several else {
                "resize": _side(step.size, step)}  # fmt: skip
        elif name == "CenterCrop":
            size = _sides(step.size)
            if "crop" in said and size != said["size"]:
                raise _unread(step, f"cuts {size} out of what was squeezed to {said['size']}")
            if "crop" not in said and "resize" not in said:
                raise _unread(step, "a crop without a Resize before: pictures differ in size")
            said |= {"size": size}
        elif name == "Grayscale" and step.num_output_channels == 1:
            said |= {"channels": "grey"}
        elif name == "Normalize":
            said |= {"mean": _numbers(step.mean), "std": _numbers(step.std)}
        elif name in _SCALED and getattr(step, "scale", True):
            scaled = True
        elif name not in _PLAIN:
            raise _unread(step, "only for training" if name.startswith("Random") else "")
    if "size" not in said:
        raise _unread(transform, "it leaves the size of the input open: no CenterCrop, and no "
                      "Resize to (height, width)")  # fmt: skip
    if not scaled:
        raise _unread(transform, "pixels stay 0 to 255: no ToTensor or ConvertImageDtype")
    return {"mean": [0.0], "std": [1.0]} | said


def _steps(transform: Any) -> Iterator[Any]:
    if type(transform).__name__ in _SETS:
        inside = getattr(transform, "transforms", transform)
        for each in inside:
            yield from _steps(each)
    else:
        yield transform


def _unread(step: Any, why: str) -> InputError:
    words = " ".join(str(step).split())[:120]
    return InputError(
        f"preprocess: cannot be read: {words}{why and f' ({why})'}; say it in words, such as "
        "preprocess={'size': 224, 'resize': 256, 'mean': [0.485, 0.456, 0.406], 'std': ...}"
    )


def _side(size: Any, step: Any) -> int:
    side = size[0] if isinstance(size, tuple | list) and len(size) == 1 else size
    if not isinstance(side, int):
        raise _unread(step, f"its size is {size!r}")
    return side


def _sides(size: Any) -> list[int]:
    listed = [size] if isinstance(size, int) else list(size)
    return [int(side) for side in (listed * 2)[:2]]


def _kind(mode: Any, step: Any) -> Interpolation:
    """Of torchvision's enum ('bilinear') or of Pillow's (BILINEAR)."""
    name = str(getattr(mode, "name", mode)).lower()
    known: dict[str, Interpolation] = {
        "nearest": "nearest", "nearest_exact": "nearest", "bilinear": "bilinear",
        "bicubic": "bicubic", "lanczos": "lanczos",
    }  # fmt: skip
    if name not in known:
        raise _unread(step, f"interpolation {mode!r}")
    return known[name]


def _numbers(values: Any) -> list[float]:
    """Also of a tensor."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    listed = listed if isinstance(listed, tuple | list) else [listed]
    return [round(float(value), 6) for value in listed]

"""Pictures that a caller holds, a data set of torch's or an array, as a folder for workers."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Sequence
from contextlib import suppress
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

MOST = 512
"""Pictures that are taken, evenly over the data set, unless more are asked for."""
LABELS = "labels.csv"
_EXPECTED = (
    "expected a picture of Pillow's, or an array of uint8, (H, W, 3) or (H, W), or a pair of that "
    "and its class"
)


def is_held(images: object) -> bool:
    """Whether it is a data set, or an array, and no words. Raises InputError for anything else."""
    if images is None or isinstance(images, str | Path):
        return False
    if isinstance(images, dict) or not (
        hasattr(images, "__getitem__") and hasattr(images, "__len__")
    ):
        raise InputError(
            f"images: of type {type(images).__name__}: expected a folder's name, a data set that "
            "has a length, or an array (N, H, W, 3) of uint8; of what gives one after another, "
            "list(...); of a loader, its dataset"
        )
    return True


def transform_of(images: object) -> Any:
    """What a data set of torchvision's makes of its pictures; None: nothing, or it is unknown."""
    return getattr(getattr(images, "dataset", images), "transform", None)


def store(images: Any, labels: Any, home: Path, count: int = 0) -> tuple[Path, Path | None]:
    """The folder below ``home``, named by its contents, and its labels' file, if there are any.

    ``images``: (N, H, W, 3) or (N, H, W) uint8, or a data set whose items are pictures, or
    (picture, class); the transform that torchvision's have is left out. ``labels``: N classes of
    an array. ``count``: pictures, at least; else `MOST`. Raises InputError that names the item.
    """
    plain, total = _without_transform(images), len(images)
    if labels is not None and len(labels) != total:
        raise InputError(f"labels: {len(labels)} of them, and images has {total} pictures")
    if getattr(images, "ndim", 0) == 3 and 3 in (images.shape[0], images.shape[2]):
        raise InputError(f"images: {tuple(images.shape)} is one picture; expected (N, H, W, 3)")
    if total < 2:
        raise InputError(f"images: {total} picture(s); give at least 2")
    taken = min(total, max(MOST, count))
    part = home / "images.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    digest, rows = hashlib.sha256(), list[str]()
    for n in (i * total // taken for i in range(taken)):
        try:
            item = plain[n]
        except Exception as error:  # own code's
            raise InputError(f"images[{n}]: {type(error).__name__}: {error}") from error
        picture, label = _item(item, n)
        if labels is not None:
            label = labels[n]
        file = part / f"{n:06d}.png"
        picture.save(file, compress_level=1)
        rows += [] if label is None else [f"{file.name},{_class(label, n)}\n"]
        digest.update(file.name.encode() + file.read_bytes())
    if rows:
        (part / LABELS).write_text("".join(rows))
        digest.update("".join(rows).encode())
    place = home / f"images-{digest.hexdigest()[:12]}"
    if place.exists():
        shutil.rmtree(part)
    else:
        part.rename(place)
    return place, place / LABELS if rows else None


def _without_transform(images: Any) -> Any:
    """A copy that gives pictures; the caller's is as it was."""
    inner, indices = getattr(images, "dataset", None), getattr(images, "indices", None)
    if inner is not None and indices is not None:  # torch.utils.data.Subset
        return _Part(_without_transform(inner), indices)
    if getattr(images, "transform", None) is None:
        return images
    plain = copy.copy(images)
    plain.transform = plain.transforms = None
    return plain


class _Part:
    def __init__(self, whole: Any, indices: Sequence[int]) -> None:
        self._whole, self._indices = whole, indices

    def __getitem__(self, n: int) -> Any:
        return self._whole[self._indices[n]]


def _item(item: Any, n: int) -> tuple[Image.Image, Any]:
    """(picture, its class or None)"""
    import numpy as np
    from PIL import Image

    pair = isinstance(item, tuple | list) and len(item) == 2
    picture, label = item if pair else (item, None)
    if isinstance(picture, Image.Image):
        return picture.convert("RGB"), label
    try:
        array = np.asarray(picture.cpu() if hasattr(picture, "cpu") else picture)
    except ValueError:  # a list of what differs in shape
        array = np.empty(0, object)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)  # as torch has them
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or array.shape[2:] not in ((), (1,), (3,))
    ):
        number = array.dtype.kind in "biuf"
        found = f"{array.dtype} {array.shape}" if number else f"of type {type(picture).__name__}"
        raise InputError(
            f"images[{n}] is {found}: {_EXPECTED}; what a transform has made of it belongs into "
            "preprocess="
        )
    squeezed = array[:, :, 0] if array.shape[2:] == (1,) else array
    return Image.fromarray(np.ascontiguousarray(squeezed)).convert("RGB"), label


def _class(label: Any, n: int) -> int:
    with suppress(TypeError, ValueError, RuntimeError):
        if (number := index(label.item() if hasattr(label, "item") else label)) >= 0:
            return number
    told = " ".join(repr(label).split())[:60]
    raise InputError(f"labels: that of images[{n}] is {told}: expected its class, from 0")

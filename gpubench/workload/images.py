"""Where images come from: scikit-learn's digits and photographs, a folder, or a seed.

Every source is deterministic in its seed and offline. Names say where a picture came from. A folder
may hold anything: what is no picture, or none that this could use, is left out and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from gpubench import escape
from gpubench.errors import InputError
from gpubench.workload import pictures

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

SOURCES = ("digits", "photos", "synthetic")
FITTED = 500
"""The first digits of a fixed shuffle: for fitting and judging probes, never in a pool."""


class Pool(Struct, frozen=True):
    """Decoded pictures: ``pixels[i]`` is (H, W, 3) uint8 of any size."""

    pixels: list[Pixels]
    names: list[str]
    labels: list[int]
    """Class of each picture by its source's own numbering; -1: it has none."""
    classes: int
    """How many classes the source's numbering has; 0 when pictures have no labels."""
    skipped: str = ""
    """'5 of 40: 3 truncated, 2 too large': what of a folder was tried and left out, and why."""


def load(source: str, count: int, seed: int) -> Pool:
    """``count`` distinct pictures of a source of SOURCES or of a folder.

    A folder with fewer usable pictures gives all it has. Raises InputError for a source that does
    not exist, and for a folder with fewer than two usable pictures, with what was wrong with them.
    """
    if source == "digits":
        pixels, labels = digits()
        if count > len(pixels) - FITTED:
            raise InputError(f"digits has {len(pixels) - FITTED} images, {count} were asked for")
        picked = (_rng(seed).permutation(len(pixels) - FITTED) + FITTED)[:count]
        names = [f"digit {i}" for i in picked]
        return Pool([pixels[i] for i in picked], names, [labels[i] for i in picked], 10)
    if source == "photos":
        return _photos(count, seed)
    if source == "synthetic":
        noise = _rng(seed).integers(0, 256, (count, 256, 256, 3), dtype="uint8")
        return Pool(list(noise), [f"noise {i}" for i in range(count)], [-1] * count, 0)
    return _folder(Path(source).expanduser(), count, seed)


def digits() -> tuple[list[Pixels], list[int]]:
    """All 1,797 of scikit-learn's digits (8x8, grey as RGB) in a fixed shuffle, with labels."""
    import numpy as np
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    grey = np.round(data.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    order = _rng(0).permutation(len(grey))
    return [np.repeat(grey[i], 3, axis=2) for i in order], [int(target[i]) for i in order]


def fingerprint(pool: Pool) -> str:
    """SHA-256 of the pictures, their names and their labels."""
    digest = hashlib.sha256(repr((pool.names, pool.labels, pool.classes)).encode())
    for pixels in pool.pixels:
        digest.update(repr(pixels.shape).encode() + pixels.tobytes())
    return digest.hexdigest()


def _rng(seed: int) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng(seed)


def _photos(count: int, seed: int) -> Pool:
    """Random square crops of two photographs, half of them mirrored."""
    from sklearn.datasets import load_sample_images

    photos, rng = load_sample_images(), _rng(seed)
    pixels: list[Pixels] = []
    names: list[str] = []
    while len(pixels) < count:
        which = len(pixels) % len(photos.images)
        image = photos.images[which]
        height, width = image.shape[:2]
        side = int(rng.integers(160, min(height, width) + 1))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        mirrored = bool(rng.integers(2))
        crop = image[top : top + side, left : left + side]
        name = f"{Path(photos.filenames[which]).name} {side}x{side}+{left}+{top}"
        name += " mirrored" if mirrored else ""
        if name not in names:
            pixels.append((crop[:, ::-1] if mirrored else crop).copy())
            names.append(name)
    return Pool(pixels, names, [-1] * count, 0)


def _folder(root: Path, count: int, seed: int) -> Pool:
    """ImageFolder layout (a folder per class, numbered in sorted order), or pictures in one."""
    if not root.is_dir():
        raise InputError(
            f"images {str(root)!r}: not a folder, and none of {', '.join(SOURCES)}; give a folder "
            "of pictures (one sub-folder per class gives labels) or one of those names"
        )
    files, skipped = pictures.find(root)
    pixels: list[Pixels] = []
    names: list[str] = []
    for at in _rng(seed).permutation(len(files)):
        if len(pixels) == count:
            break
        try:
            pixels.append(pictures.decode(files[at]))
        except pictures.Unusable as error:
            skipped[str(error)] += 1
        else:
            names.append(files[at].relative_to(root).as_posix())
    said = _said(skipped, len(pixels))
    if len(pixels) < 2:
        raise InputError(
            f"images {str(root)!r}: found {len(pixels)} usable picture(s) with a suffix of "
            f"{', '.join(sorted(pictures.SUFFIXES))}; at least 2 are needed"
            f"{said and f'. Skipped {said}'}"
        )
    # As in ImageFolder, every sub-folder is a class; a picture at the top means there are none.
    flat = any(p.parent == root for p in files)
    classes = [] if flat else sorted(p.name for p in root.iterdir() if p.is_dir())
    labels = [-1 if flat else classes.index(name.split("/")[0]) for name in names]
    return Pool(pixels, [escape.visible(name) for name in names], labels, len(classes), said)


def _said(skipped: Counter[str], used: int) -> str:
    """'5 of 40: 3 truncated, 2 too large', the most frequent first; '' where nothing was."""
    reasons = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    total = skipped.total()
    words = ", ".join(f"{n} {reason}" for reason, n in reasons)
    return f"{total} of {total + used}: {words}" if total else ""

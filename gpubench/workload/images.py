"""Where images come from: scikit-learn's digits and photographs, a folder, or a seed.

Every source is deterministic in its seed and offline. Names say where a picture came from.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from gpubench.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

SOURCES = ("digits", "photos", "synthetic")
FITTED = 500
"""The first digits of a fixed shuffle: for fitting and judging probes, never in a pool."""
_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class Pool(Struct, frozen=True):
    """Decoded pictures: ``pixels[i]`` is (H, W, 3) uint8 of any size."""

    pixels: list[Pixels]
    names: list[str]
    labels: list[int]
    """Class of each picture by its source's own numbering; -1: it has none."""
    classes: int
    """How many classes the source's numbering has; 0 when pictures have no labels."""


def load(source: str, count: int, seed: int) -> Pool:
    """``count`` distinct pictures of a source of SOURCES or of a folder.

    A folder with fewer pictures gives all it has (at least two). Raises InputError for a source
    that does not exist, for a folder without pictures and for a file that is no picture.
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
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    if len(files) < 2:
        raise InputError(
            f"images {str(root)!r}: found {len(files)} picture(s) with a suffix of "
            f"{', '.join(sorted(_SUFFIXES))}; at least 2 are needed"
        )
    # As in ImageFolder, every sub-folder is a class; a picture at the top means there are none.
    flat = any(p.parent == root for p in files)
    classes = [] if flat else sorted(p.name for p in root.iterdir() if p.is_dir())
    picked = [files[i] for i in _rng(seed).permutation(len(files))[:count]]
    names = [p.relative_to(root).as_posix() for p in picked]
    labels = [-1 if flat else classes.index(name.split("/")[0]) for name in names]
    return Pool([_decode(p) for p in picked], names, labels, len(classes))


def _decode(path: Path) -> Pixels:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"image {str(path)!r} cannot be decoded ({error}): replace or remove it"
        ) from error

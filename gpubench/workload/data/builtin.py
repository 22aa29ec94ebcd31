"""Pictures that need no data set: scikit-learn's digits and photographs, and noise.

Deterministic and offline. They are encoded once, as JPEG files in the cache, so that reading and
decoding them is what it is for anybody's folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gpubench.errors import InputError
from gpubench.workload.data.dataset_index import About, Kind, Pictures

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.cache import Cache

    Pixels = NDArray[np.uint8]

SOURCES: tuple[Kind, ...] = ("digits", "photos", "synthetic")
FITTED = 500
"""The first digits of a fixed shuffle: for fitting, judging and calibrating, never in a pool."""
FEWEST = 256
"""Photographs, and pictures of noise, of a data set."""
PHOTO = (500, 375)
"""Width and height of a photograph: ImageNet's most common size."""
_NARROWEST = 240
"""Of a crop that becomes a photograph, pixels."""
_LIST = "list.json"
_Listed = tuple[list[str], list[int]]
_QUALITY = {"digits": 100, "photos": 90, "synthetic": 90}


def digits() -> tuple[list[Pixels], list[int]]:
    """All 1,797 of scikit-learn's digits (8x8, grey as RGB) in a fixed shuffle, with labels."""
    import numpy as np

    table = np.loadtxt(_shipped("data/digits.csv.gz"), delimiter=",")
    data, target = table[:, :-1], table[:, -1]
    grey = np.round(data.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(grey))
    return [np.repeat(grey[i], 3, axis=2) for i in order], [int(target[i]) for i in order]


def _shipped(name: str) -> Path:
    """A file of scikit-learn's data sets. Importing it takes as long as all else of a reference."""
    found = find_spec("sklearn")
    if found is None or not found.origin:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    return Path(found.origin).parent / "datasets" / name


def dataset(source: Kind, cache: Cache, count: int) -> Pictures:
    """All digits that nothing is fitted to, or ``count`` (at least FEWEST) photographs or noises.

    Raises InputError for more digits than there are.
    """
    found = _kept(source, cache, count, int(source == "digits"))
    if count > len(found):
        raise InputError(f"{source} has {len(found)} images, {count} were asked for")
    return found


def training(source: Kind, cache: Cache, count: int) -> Pictures:
    """Pictures of the same kind, none of which is in `dataset`.

    The FITTED digits; ``count`` (at least FEWEST) other crops of the same photographs, or noises.
    """
    return _kept(source, cache, count, int(source != "digits"))


def _kept(source: Kind, cache: Cache, count: int, part: int) -> Pictures:
    """The JPEG files of a source, in the cache.

    ``part``: of digits 0 is the first FITTED, 1 the others; of the rest it is a seed.
    """
    count = FITTED if source == "digits" else max(count, FEWEST)
    recipe = {
        "format": 1,
        "source": source,
        "count": count,
        "part": part,
        "quality": _QUALITY[source],
        "pillow": version("pillow"),
    }
    names: list[str] = []
    labels: list[int] = []

    def make(at: Path) -> None:
        for name, label, pixels in _MAKERS[source](count, part):
            (at / f"{name}.jpg").write_bytes(encode(pixels, _QUALITY[source]))
            names.append(f"{name}.jpg")
            labels.append(label)
        (at / _LIST).write_bytes(msgspec.json.encode((names, labels)))

    root = cache.get_or_make("images", recipe, make)
    names, labels = msgspec.json.decode((root / _LIST).read_bytes(), type=_Listed)
    about = About(kind=source, root=str(root), classes=_CLASSES.get(source, ()))
    sizes = [(root / name).stat().st_size for name in names]
    return Pictures.of(about, names, labels, sizes)


def encode(pixels: Pixels, quality: int) -> bytes:
    """As JPEG; 4:2:0, but at quality 100 without loss of colour."""
    from PIL import Image

    out = BytesIO()
    subsampling = "4:4:4" if quality == 100 else "4:2:0"
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling=subsampling)
    return out.getvalue()


def _digits(count: int, part: int) -> Iterator[tuple[str, int, Pixels]]:
    pixels, labels = digits()
    for i in range(count, len(pixels)) if part else range(count):
        yield f"digit {i}", labels[i], pixels[i]


def _noise(count: int, part: int) -> Iterator[tuple[str, int, Pixels]]:
    import numpy as np

    rng = np.random.default_rng(part)
    for i in range(count):
        yield f"noise {i}", -1, rng.integers(0, 256, (256, 256, 3), np.uint8)


def _photos(count: int, part: int) -> Iterator[tuple[str, int, Pixels]]:
    """Random crops of two photographs (640x427), half of them mirrored, brought to PHOTO's size.

    Of many widths, because two crops of the same scale may be all but equal, and an answer that
    belongs to another picture would not show.
    """
    import numpy as np
    from PIL import Image

    files, rng = sorted(_shipped("images").glob("*.jpg")), np.random.default_rng(part)
    photos = [np.asarray(Image.open(file)) for file in files]
    seen: set[str] = set()
    while len(seen) < count:
        which = len(seen) % len(photos)
        rows, columns = photos[which].shape[:2]
        width = int(rng.integers(_NARROWEST, rows * PHOTO[0] // PHOTO[1] + 1))
        height = width * PHOTO[1] // PHOTO[0]
        top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
        mirrored = bool(rng.integers(2))
        name = f"{files[which].stem} {width}x{height}+{left}+{top}"
        name += " mirrored" if mirrored else ""
        if name in seen:
            continue
        seen.add(name)
        crop = photos[which][top : top + height, left : left + width]
        crop = np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)
        resized = Image.fromarray(crop).resize(PHOTO, Image.Resampling.LANCZOS)
        yield name, -1, np.asarray(resized)


_MAKERS = {"digits": _digits, "photos": _photos, "synthetic": _noise}
_CLASSES = {"digits": tuple("0123456789")}

"""Encoded pictures with labels, one by one: what the whole pipeline starts from."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from gpubench import escape
from gpubench.errors import CalibrationError, InputError
from gpubench.workload.data import builtin, image_file, image_folder, webdataset
from gpubench.workload.data.dataset_index import Pictures

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.cache import Cache
    from gpubench.suite.types import Workload


POOL = 64
"""Fewest pictures that answers are checked on, unless a folder has fewer."""
MOST_HELD = 2**26
"""Bytes of pixels that are kept between drawing a pool and preprocessing it."""
MOST_ASIDE = 1000
"""Pictures of a folder that int8 may be calibrated on."""
_TRAINING = {
    "digits": "digits that probes are fitted to",
    "photos": "other crops of the same two photographs",
    "synthetic": "other noise",
}


class Pool(Struct, frozen=True):
    """Usable pictures of a data set."""

    dataset: Pictures
    indices: list[int]
    sizes: list[int]
    digests: list[bytes]
    """SHA-256 of their bytes."""
    pixels: list[NDArray[np.uint8]] = []
    """Of the first of them, as far as MOST_HELD goes: what they were decoded to."""
    skipped: str = ""
    """'5 of 40: 3 truncated, 2 too large': what was tried and left out, and why."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the pictures, and of the names, labels and sizes of the whole data set.

        Pictures outside the pool may change their contents unnoticed.
        """
        words = repr((self.dataset.fingerprint, self.indices)).encode()
        return hashlib.sha256(words + b"".join(self.digests)).hexdigest()

    def decoded(self, place: int, data: bytes) -> NDArray[np.uint8]:
        """(H, W, 3) of the pool's picture ``place``, which ``data`` encodes."""
        if place < len(self.pixels):
            return self.pixels[place]
        return image_file.decode_file(BytesIO(data))

    def read(self, place: int) -> bytes:
        """The bytes of the pool's picture ``place``. Raises InputError where they have changed."""
        try:
            data = self.dataset.read(self.indices[place])
        except image_file.Unusable:
            data = b""
        if hashlib.sha256(data).digest() != self.digests[place]:
            name = self.dataset.name(self.indices[place])
            where = str(self.dataset.root)
            raise InputError(f"images {where!r}: '{name}' changed while it was used; start again")
        return data


class Calibration(Struct, frozen=True):
    """Encoded pictures, and where they are from."""

    encoded: list[bytes]
    source: str
    """In words, with their number: '128 digits that probes are fitted to'."""
    digest: str
    """SHA-256 of their names and contents."""


def find(workload: Workload, cache: Cache, count: int) -> Pictures:
    """The workload's data set; of those that are made here at least ``count`` pictures.

    Raises InputError for a source that does not exist, and for labels that do not fit it.
    """
    source = next((kind for kind in builtin.SOURCES if kind == workload.images), None)
    root = Path(workload.images).expanduser()
    if workload.labels and (source or not root.is_dir()):
        raise InputError(
            f"labels {workload.labels!r}: only for a folder of pictures, and images is "
            f"{workload.images!r}; leave labels out"
        )
    if source:
        return builtin.dataset(source, cache, count)
    if root.is_dir():
        return image_folder.find(
            root, Path(workload.labels).expanduser() if workload.labels else None
        )
    if os.path.lexists(root):
        return webdataset.find(root.parent, [root.name])
    raise InputError(
        f"images {str(root)!r}: not a folder, and none of {', '.join(builtin.SOURCES)}; give a "
        "folder of pictures (one sub-folder per class gives labels), WebDataset shards (.tar), or "
        "one of those names"
    )


def is_path(images: str) -> bool:
    """Whether ``workload.images`` names a folder or shards, not what is made here."""
    return images not in builtin.SOURCES


def draw(dataset: Pictures, count: int, seed: int) -> Pool:
    """``count`` usable pictures by a seeded permutation; all, where there are fewer.

    Those of a folder that int8 is calibrated on come last. Each is decoded, one at a time, because
    only that shows whether it is usable. Raises InputError for fewer than two.
    """
    import numpy as np

    skipped = Counter(dataset.about.skipped)
    pool = Pool(dataset, [], [], [], [])
    room = MOST_HELD
    order = np.random.default_rng(seed).permutation(len(dataset))
    if dataset.about.kind == "folder":
        order = order[np.argsort(_set_aside(len(dataset))[order], kind="stable")]
    for index, data, pixels in islice(_usable(dataset, order.tolist(), skipped), count):
        pool.indices.append(index)
        pool.sizes.append(len(data))
        pool.digests.append(hashlib.sha256(data).digest())
        room -= pixels.nbytes
        if room >= 0:
            pool.pixels.append(pixels)
    found = len(pool.indices)
    said = _said(skipped, found)
    if found < 2:
        raise InputError(
            f"images {str(dataset.root)!r}: found {found} usable picture(s) "
            f"({', '.join(image_file.FORMATS)}); give at least 2{said and f'. Skipped {said}'}"
        )
    return msgspec.structs.replace(pool, skipped=said)


def _usable(
    dataset: Pictures, order: list[int], skipped: Counter[str]
) -> Iterator[tuple[int, bytes, NDArray[np.uint8]]]:
    """(index, bytes, pixels) of what can be decoded; why the rest cannot is counted."""
    for index in order:
        try:
            data = dataset.read(index)
            pixels = image_file.decode_file(BytesIO(data))
        except image_file.Unusable as error:
            skipped[str(error)] += 1
        else:
            yield index, data, pixels


def calibration(workload: Workload, cache: Cache, count: int, seed: int) -> Calibration:
    """``count`` usable pictures for calibrating, by a seeded permutation.

    Of ``workload.calibration``, if it is given; of digits, photos and synthetic from what is no
    part of the data set; of a folder or shards from what `draw` takes last. Raises CalibrationError
    where there are fewer, or none can be found.
    """
    import numpy as np

    dataset, usable, words = _training(workload, cache, count)
    encoded: list[bytes] = []
    digest = hashlib.sha256()
    order = np.random.default_rng(seed).permutation(usable).tolist()
    for index, data, _ in islice(_usable(dataset, order, Counter()), count):
        digest.update(repr((dataset.name(index), len(data))).encode() + data)
        encoded.append(data)
    if len(encoded) < count:
        raise _too_few(count, len(encoded), words)
    return Calibration(encoded, f"{count} {words}", digest.hexdigest())


def uncalibrated(workload: Workload, cache: Cache, count: int) -> CalibrationError | None:
    """What `calibration` is sure to raise, by the number of pictures alone: none is decoded."""
    if not is_path(workload.calibration or workload.images):
        return None
    _, usable, words = _training(workload, cache, count)
    return _too_few(count, len(usable), words) if len(usable) < count else None


def _too_few(count: int, found: int, words: str) -> CalibrationError:
    return CalibrationError(
        f"calibration needs {count} pictures, and there are {found} {words}; set "
        "workload.calibration to a folder that has more, or option calibration_images lower"
    )


def _training(
    workload: Workload, cache: Cache, count: int
) -> tuple[Pictures, NDArray[np.int64], str]:
    """(data set, pictures of it that may be taken, in words)"""
    import numpy as np

    given, own = (Path(p).expanduser() for p in (workload.calibration, workload.images))
    if workload.calibration and given.resolve() != own.resolve():
        other = msgspec.structs.replace(workload, images=workload.calibration, labels="")
        try:
            dataset = find(other, cache, 0)
        except InputError as error:
            raise CalibrationError(f"workload.calibration: {error}") from error
        words = f"in {escape.visible(workload.calibration)}"
        return dataset, np.arange(len(dataset)), words
    for kind in builtin.SOURCES:
        if kind == workload.images:
            dataset = builtin.training(kind, cache, count)
            return dataset, np.arange(len(dataset)), _TRAINING[kind]
    dataset = find(workload, cache, 0)
    aside = np.flatnonzero(_set_aside(len(dataset)))
    where = escape.visible(str(dataset.root))
    return dataset, aside, f"of the {len(aside)} in {where} that answers are checked on last"


def _set_aside(count: int) -> NDArray[np.bool_]:
    """Which of ``count`` pictures are for calibrating: half of them, at most MOST_ASIDE.

    Whatever the suite's seed, so that what calibrates needs not know it.
    """
    import numpy as np

    aside = np.zeros(count, bool)
    aside[np.random.default_rng(0).permutation(count)[: min(count // 2, MOST_ASIDE)]] = True
    return aside


def _said(skipped: Counter[str], used: int) -> str:
    """'5 of 40: 3 truncated, 2 too large', the most frequent first; '' where nothing was."""
    reasons = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    total = skipped.total()
    words = ", ".join(f"{n} {reason}" for reason, n in reasons)
    return f"{total} of {total + used}: {words}" if total else ""

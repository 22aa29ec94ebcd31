"""Encoded pictures with labels, one by one: what the whole path starts from."""

from __future__ import annotations

import hashlib
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from gpubench.errors import InputError
from gpubench.workload import folders, images, pictures
from gpubench.workload.listing import Pictures

if TYPE_CHECKING:
    from gpubench.suite import Workload
    from gpubench.workload.cache import Cache


class Dataset(Protocol):
    """Encoded pictures in a fixed order; random access, so that any worker reads any of them.

    Cheap to open and to hold: of 100,000 pictures, names and places, never pixels.
    """

    classes: tuple[str, ...]
    """Names of the classes by number; empty: pictures have no labels."""

    def __len__(self) -> int:
        """Pictures."""

    def name(self, index: int) -> str:
        """Of one picture, for people; unique."""

    def label(self, index: int) -> int:
        """Its class; -1: none."""

    def read(self, index: int) -> bytes:
        """Its encoded bytes, from where it lies. Raises `pictures.Unusable`."""


class Pool(Struct, frozen=True):
    """Usable pictures of a data set."""

    dataset: Pictures
    indices: list[int]
    sizes: list[int]
    digests: list[bytes]
    """SHA-256 of their bytes."""
    skipped: str = ""
    """'5 of 40: 3 truncated, 2 too large': what was tried and left out, and why."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the pictures, and of the names, labels and sizes of the whole data set.

        Pictures outside the pool may change their contents unnoticed.
        """
        words = repr((self.dataset.fingerprint, self.indices)).encode()
        return hashlib.sha256(words + b"".join(self.digests)).hexdigest()

    def read(self, place: int) -> bytes:
        """The bytes of the pool's picture ``place``. Raises InputError where they have changed."""
        try:
            data = self.dataset.read(self.indices[place])
        except pictures.Unusable:
            data = b""
        if hashlib.sha256(data).digest() != self.digests[place]:
            name = self.dataset.name(self.indices[place])
            where = str(self.dataset.root)
            raise InputError(f"images {where!r}: {name!r} changed while it was used; start again")
        return data


def find(workload: Workload, cache: Cache, count: int) -> Pictures:
    """The workload's data set; of those that are made here at least ``count`` pictures.

    Raises InputError for a source that does not exist.
    """
    for source in images.SOURCES:
        if workload.images == source:
            return images.dataset(source, cache, count)
    root = Path(workload.images).expanduser()
    if not root.is_dir():
        raise InputError(
            f"images {str(root)!r}: not a folder, and none of {', '.join(images.SOURCES)}; give a "
            "folder of pictures (one sub-folder per class gives labels) or one of those names"
        )
    return folders.find(root)


def draw(dataset: Pictures, count: int, seed: int) -> Pool:
    """``count`` usable pictures by a seeded permutation; all, where there are fewer.

    Each is decoded on trial, one at a time. Raises InputError for fewer than two.
    """
    import numpy as np

    skipped = Counter(dataset.about.skipped)
    indices: list[int] = []
    sizes: list[int] = []
    digests: list[bytes] = []
    for index in np.random.default_rng(seed).permutation(len(dataset)):
        if len(indices) == count:
            break
        try:
            data = dataset.read(int(index))
            pictures.decode_file(BytesIO(data))
        except pictures.Unusable as error:
            skipped[str(error)] += 1
        else:
            indices.append(int(index))
            sizes.append(len(data))
            digests.append(hashlib.sha256(data).digest())
    said = _said(skipped, len(indices))
    if len(indices) < 2:
        raise InputError(
            f"images {str(dataset.root)!r}: found {len(indices)} usable picture(s) with a suffix "
            f"of {', '.join(sorted(pictures.SUFFIXES))}; at least 2 are needed"
            f"{said and f'. Skipped {said}'}"
        )
    return Pool(dataset, indices, sizes, digests, said)


def _said(skipped: Counter[str], used: int) -> str:
    """'5 of 40: 3 truncated, 2 too large', the most frequent first; '' where nothing was."""
    reasons = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    total = skipped.total()
    words = ", ".join(f"{n} {reason}" for reason, n in reasons)
    return f"{total} of {total + used}: {words}" if total else ""

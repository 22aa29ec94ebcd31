"""What a data set is once it has been found: names, classes and places of encoded pictures.

Saved beside a reference, it is opened again without walking a folder or reading an archive's
headers. 100,000 pictures are a few arrays of some megabytes, mapped from disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from gpubench import escape
from gpubench.workload.data import image_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

Kind = Literal["digits", "photos", "synthetic", "folder"]
_ABOUT, _ARRAYS = "about.json", ("blob", "ends", "labels", "sizes", "places")


class About(Struct, frozen=True, kw_only=True):
    """All but the arrays."""

    kind: Kind
    """Whose numbering of classes it is; shards count as a folder."""
    root: str
    """Where names begin; if relative, at the entry that the listing is saved in."""
    classes: tuple[str, ...] = ()
    """What the labels' classes are called; harmless to print, and UTF-8. Which of a network's
    classes they are `gpubench.workload.reference` knows."""
    archives: tuple[str, ...] = ()
    """Tar files, below ``root``, that the pictures lie in; (): they are files themselves."""
    skipped: dict[str, int] = {}
    """What was met and left out before any picture was opened: reason -> how often."""
    notes: str = ""
    """What is odd about the labels: '3 pictures have no label in val.csv'; why there are none."""


class Pictures:
    """Encoded pictures in a fixed order; random access, so that any worker reads any of them.

    Cheap to open and to hold: of 100,000 pictures, names and places, never pixels.
    """

    def __init__(self, about: About, arrays: Arrays, entry: Path | None = None) -> None:
        """``entry``: where it was loaded from."""
        self.about, self.arrays, self.classes = about, arrays, about.classes
        self.root = Path(entry or "", about.root)
        self._folder = str(self.root)

    @classmethod
    def of(
        cls,
        about: About,
        names: Iterable[str],
        labels: Sequence[int],
        sizes: Sequence[int],
        places: Sequence[tuple[int, int]] = (),
    ) -> Pictures:
        """``sizes``: bytes of each, -1: unknown. ``places``: archive and offset of each, or none.

        File names that are no UTF-8 keep their bytes.
        """
        import numpy as np

        encoded = [os.fsencode(name) for name in names]
        arrays: Arrays = {
            "blob": np.frombuffer(b"".join(encoded), np.uint8),
            "ends": np.cumsum([len(name) for name in encoded], dtype=np.int64),
            "labels": np.array(labels, np.int32),
            "sizes": np.array(sizes, np.int64),
            "places": np.array(places, np.int64).reshape(-1, 2),
        }
        return cls(about, arrays)

    def __len__(self) -> int:
        return len(self.arrays["ends"])

    def _name(self, index: int) -> str:
        return os.fsdecode(piece(self.arrays["blob"], self.arrays["ends"], index))

    def name(self, index: int) -> str:
        """Its path below the root, or its archive and its name there; harmless to print."""
        return escape.visible(self._name(index))

    def label(self, index: int) -> int:
        """Its class, a place in ``classes``; -1: none."""
        return int(self.arrays["labels"][index])

    def read(self, index: int) -> bytes:
        """Its encoded bytes. Raises Unusable, also where it is no longer what was found."""
        if not self.about.archives:
            # As text: a Path keeps parts of it, in a table that grows with the folder.
            return image_file.read(os.path.join(self._folder, self._name(index)))  # noqa: PTH118
        archive, offset = (int(n) for n in self.arrays["places"][index])
        path = self.root / self.about.archives[archive]
        return image_file.read(path, offset, int(self.arrays["sizes"][index]))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, classes, labels and sizes; neither of contents nor of where it lies."""
        about = msgspec.structs.replace(self.about, root="")
        digest = hashlib.sha256(msgspec.json.encode(about))
        for array in self.arrays.values():
            digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
        return digest.hexdigest()

    def save(self, at: Path, root: str | None = None) -> None:
        """Into the new folder ``at``, for `load`; ``root`` replaces its own."""
        import numpy as np

        at.mkdir()
        about = self.about if root is None else msgspec.structs.replace(self.about, root=root)
        (at / _ABOUT).write_bytes(msgspec.json.encode(about))
        for name, array in self.arrays.items():
            np.save(at / f"{name}.npy", array)


def load(at: Path) -> Pictures:
    """What `Pictures.save` left in ``at``; needs numpy only, and reads next to nothing."""
    import numpy as np

    about = msgspec.json.decode((at / _ABOUT).read_bytes(), type=About)
    arrays = {name: np.load(at / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    return Pictures(about, arrays, at)


def piece(blob: NDArray[np.uint8], ends: NDArray[np.int64], index: int) -> bytes:
    """One of many that lie in one array, one behind the other."""
    found: bytes = blob[ends[index - 1] if index else 0 : ends[index]].tobytes()
    return found

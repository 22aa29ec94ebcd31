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
from gpubench.workload import pictures

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["digits", "photos", "synthetic", "folder"]
_ABOUT, _ARRAYS = "about.json", ("blob", "ends", "labels", "sizes", "places")


class About(Struct, frozen=True, kw_only=True):
    """All but the arrays."""

    kind: Kind
    """Whose numbering of classes it is; shards count as a folder."""
    root: str
    """Where names begin; if relative, at the entry that the listing is saved in."""
    classes: tuple[str, ...] = ()
    """Names of the classes by number; harmless to print, and UTF-8."""
    numbered: bool = False
    """Whether classes came as numbers: there may be more of them than pictures show."""
    archives: tuple[str, ...] = ()
    """Tar files, below ``root``, that the pictures lie in; (): they are files themselves."""
    skipped: dict[str, int] = {}
    """What was met and left out before any picture was opened: reason -> how often."""
    notes: str = ""
    """What is odd about the labels: '3 pictures have no label in val.csv'."""


class Texts:
    """Many short texts in two arrays; file names that are no UTF-8 keep their bytes."""

    def __init__(self, blob: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """In their order."""
        import numpy as np

        encoded = [os.fsencode(text) for text in texts]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.blob[start : int(self.ends[index])].tobytes())


class Pictures:
    """Encoded pictures in a fixed order; random access, so that any worker reads any of them.

    Cheap to open and to hold: of 100,000 pictures, names and places, never pixels.
    """

    def __init__(
        self,
        about: About,
        names: Texts,
        labels: NDArray[np.int32],
        sizes: NDArray[np.int64],
        places: NDArray[np.int64],
        entry: Path | None = None,
    ) -> None:
        """``sizes``: bytes of each, -1: unknown. ``places`` (N, 2): archive and offset, or (0, 2).

        ``entry``: where it was loaded from.
        """
        self.about, self.classes = about, about.classes
        self.root = Path(entry or "", about.root)
        self._folder = str(self.root)
        self._names, self._labels, self._sizes, self._places = names, labels, sizes, places

    @classmethod
    def of(
        cls,
        about: About,
        names: Iterable[str],
        labels: Sequence[int],
        sizes: Sequence[int],
        places: Sequence[tuple[int, int]] = (),
    ) -> Pictures:
        """From lists."""
        import numpy as np

        return cls(
            about, Texts.of(names), np.array(labels, np.int32), np.array(sizes, np.int64),
            np.array(places, np.int64).reshape(-1, 2),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Its path below the root, or its archive and its name there; harmless to print."""
        return escape.visible(self._names[index])

    def label(self, index: int) -> int:
        """Its class; -1: none."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """Its encoded bytes. Raises Unusable, also where it is no longer what was found."""
        if not self.about.archives:
            # As text: a Path keeps parts of it, in a table that grows with the folder.
            return pictures.read(os.path.join(self._folder, self._names[index]))  # noqa: PTH118
        archive, offset = (int(n) for n in self._places[index])
        path = self.root / self.about.archives[archive]
        return pictures.read(path, offset, int(self._sizes[index]))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, classes, labels and sizes; neither of contents nor of where it lies."""
        about = msgspec.structs.replace(self.about, root="")
        digest = hashlib.sha256(msgspec.json.encode(about))
        for array in self.arrays().values():
            digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
        return digest.hexdigest()

    def save(self, at: Path, root: str | None = None) -> None:
        """Into the new folder ``at``, for `load`; ``root`` replaces its own."""
        import numpy as np

        at.mkdir()
        about = self.about if root is None else msgspec.structs.replace(self.about, root=root)
        (at / _ABOUT).write_bytes(msgspec.json.encode(about))
        for name, array in self.arrays().items():
            np.save(at / f"{name}.npy", array)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that it holds of the pictures, however many there are."""
        arrays: tuple[NDArray[Any], ...] = (
            self._names.blob, self._names.ends, self._labels, self._sizes, self._places
        )  # fmt: skip
        return dict(zip(_ARRAYS, arrays, strict=True))


def load(at: Path) -> Pictures:
    """What `Pictures.save` left in ``at``; needs numpy only, and reads next to nothing."""
    import numpy as np

    about = msgspec.json.decode((at / _ABOUT).read_bytes(), type=About)
    arrays = (np.load(at / f"{name}.npy", mmap_mode="r") for name in _ARRAYS)
    blob, ends, labels, sizes, places = arrays
    return Pictures(about, Texts(blob, ends), labels, sizes, places, at)

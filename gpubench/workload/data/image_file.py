"""One picture file, from anywhere, as pixels; or the reason why it cannot be used.

Formats are told by content, not by name, and only plain raster formats are read: a file called
x.jpg that holds PostScript must not start an interpreter.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import IO, TYPE_CHECKING

from gpubench import files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

SUFFIXES = frozenset({".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm"}) | {
    ".png", ".ppm", ".tif", ".tiff", ".webp"
}  # fmt: skip
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_BYTES = 2**28
"""Of a file."""
MOST_PIXELS = 80_000_000
"""Of a picture: below where Pillow warns of a decompression bomb."""
KEPT_PIXELS = 2**20
"""Larger pictures are averaged down by a whole factor, to no fewer than this; networks take less
than a third of it, and a pool of photographs as they are would need gigabytes."""
NARROWEST = 50
"""Longer side / shorter side, at most: resizing by the shorter side would make the longer vast."""
_ARCHIVE = re.compile(r".*\.(?:tgz|tar(?:\.(?:gz|bz2|xz|zst))?)", re.IGNORECASE | re.DOTALL)
_BEGINS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM....\0\0\0\0|II\*\0|MM\0\*|RIFF....WEBP|"
    rb"P[1-6]\s+(?:#|\d+\s)", re.DOTALL
)  # fmt: skip
"""Of a file in one of FORMATS, whatever it is called."""
_OTHER = re.compile(rb"....ftyp(?:hei|hev|mif|msf|avi)|\0\0\0\x0cj|\xff\x0a", re.DOTALL)
"""Of pictures that are not read: HEIF (phones), AVIF, JPEG 2000 and XL."""
_KEEPERS = frozenset({"__macosx", "__pycache__", "lost+found", "thumbs.db", "desktop.ini"}) | {
    "@eadir", "@recycle", "#recycle", "$recycle.bin", "#snapshot", "system volume information"
}  # fmt: skip
"""What file systems, archives and servers leave between a person's files."""


class _Quiet:
    """No warnings, while any thread is in here.

    One `warnings.catch_warnings` for each would restore what another thread has set, for good.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


_QUIET = _Quiet()


class Unusable(Exception):
    """Why a file cannot be used, in few words that others share: 'truncated'."""


def meant(path: str) -> bool:
    """Whether a person put it there: no part of ``path`` is hidden, or is of housekeeping."""
    return not any(p[:1] == "." or p.lower() in _KEEPERS for p in path.split("/") if p.strip("."))


def find(root: Path) -> tuple[list[str], list[str], Counter[str]]:
    """(pictures, tar files; both sorted paths below ``root``; what else was met, by reason).

    A picture has a suffix of SUFFIXES, or begins like one. Links are followed, but no folder is
    read twice, and none that ``root`` lies in. What is not `meant` is passed over.
    """
    files: list[str] = []
    archives: list[str] = []
    skipped: Counter[str] = Counter()

    def unreadable(_: OSError) -> None:
        skipped["unreadable folder"] += 1

    top = root.resolve()
    read = {top, *top.parents}
    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        folders[:] = sorted(filter(meant, folders))
        for name in list(folders):
            real = Path(os.path.realpath(Path(folder, name)))
            if real in read:
                folders.remove(name)
                skipped["link to a folder read already"] += 1
            read.add(real)
        below = os.path.relpath(folder, root)
        start = "" if below == "." else f"{below}/"
        for name in filter(meant, names):
            if Path(name).suffix.lower() in SUFFIXES:
                files.append(start + name)
            elif _ARCHIVE.fullmatch(name):
                archives.append(start + name)
            elif _BEGINS.match(begins := _beginning(Path(folder, name))):
                files.append(start + name)
            elif _OTHER.match(begins):
                skipped["of another format"] += 1
    return sorted(files), sorted(archives), +skipped


def _beginning(path: Path) -> bytes:
    try:
        with opened(path) as file:
            return file.read(16)
    except (Unusable, OSError):  # what has no name of a picture need not be one
        return b""


def read(path: Path | str, offset: int = 0, size: int = -1) -> bytes:
    """A file, or ``size`` bytes of an archive, from anywhere. Raises Unusable."""
    with opened(path, MOST_BYTES if size < 0 else None) as file:
        try:
            if size > MOST_BYTES:
                raise Unusable("too large")
            if size < 0:
                data = file.read(os.fstat(file.fileno()).st_size + 1)  # a buffer of that size
            else:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:  # a disk that fails
            raise Unusable("unreadable") from error
    if len(data) > MOST_BYTES:  # it grew
        raise Unusable("too large")
    if len(data) < size:
        raise Unusable("truncated")
    if not data:
        raise Unusable("empty")
    return data


def decode_file(file: IO[bytes]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 as torchvision's ImageFolder has it: transparency and rotation notes ignored.

    Of 16-bit grey the upper 8 bits; of what is larger than KEPT_PIXELS an average. Raises Unusable.
    """
    return _array(lambda: _image(file))


def pixels(image: Image) -> NDArray[np.uint8]:
    """As `decode_file`, of a picture that Pillow has opened already. Raises Unusable."""
    return _array(lambda: _kept(image))


def _array(image: Callable[[], Image]) -> NDArray[np.uint8]:
    import numpy as np

    with _QUIET:  # of odd metadata, by a library that guesses
        try:
            found = image()
        except Unusable:
            raise
        except MemoryError as error:
            raise Unusable("too large") from error
        except Exception as error:  # whatever a decoder trips over in bytes from a stranger
            cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
            raise Unusable("truncated" if cut else "damaged") from error
        return np.asarray(found)


def averaging(width: int, height: int) -> int:
    """The factor by which a picture of this size is averaged down; 0 and 1: not at all."""
    return isqrt(width * height // KEPT_PIXELS)


def opened(path: Path | str, most: int | None = None) -> IO[bytes]:
    """The file, when it is one: neither a pipe, which would never end, nor a device.

    ``most``: bytes that it may have. Raises Unusable.
    """
    try:
        file = files.opened(path)
    except FileNotFoundError as error:
        raise Unusable("broken link" if Path(path).is_symlink() else "no such file") from error
    except ValueError as error:  # a null in its name
        raise Unusable("unreadable") from error
    except OSError as error:  # permissions, a link to itself
        other = error.errno in files.NO_FILE
        raise Unusable("not a file" if other else "unreadable") from error
    size = os.fstat(file.fileno()).st_size
    if size == 0 or (most is not None and size > most):
        file.close()
        raise Unusable("too large" if size else "empty")
    return file


def _image(file: IO[bytes]) -> Image:
    """RGB. Raises Unusable for what is known to be no use, and whatever the decoder raises."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        pointer = file.read(len(files.POINTER)) == files.POINTER
        raise Unusable("not fetched (git lfs pull)" if pointer else "not an image") from error
    except Image.DecompressionBombError as error:
        raise Unusable("too large") from error
    check_size(*image.size)
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a phone's photo
        raise Unusable("several frames")
    return _kept(image)


def check_size(width: int, height: int) -> None:
    """Raises Unusable for a picture that is too large, or too narrow."""
    if width * height > MOST_PIXELS:
        raise Unusable("too large")
    if min(width, height) < 1 or max(width, height) > NARROWEST * min(width, height):
        raise Unusable("too narrow")


def _kept(image: Image) -> Image:
    """RGB, and averaged down where it is large."""
    check_size(*image.size)
    rgb = _rgb(image)
    factor = averaging(*image.size)
    return rgb.reduce(factor) if factor > 1 else rgb


def _rgb(image: Image) -> Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        import numpy as np
        from PIL.Image import fromarray

        grey = np.asarray(image).astype(np.uint32) >> 8
        return fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):  # what is white is not said
        raise Unusable("of an unknown range")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")

"""WebDataset shards: tar files of ``key.jpg`` with ``key.cls``, read where they lie.

An index of places is made once, so that any picture can be read at any time; nothing is extracted,
and no member but ``.cls`` and ``.json`` is looked into (others may be pickles, which run code).
"""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
from msgspec import Struct, field

from gpubench import escape
from gpubench.errors import InputError
from gpubench.workload.data import image_file, label_files
from gpubench.workload.data.dataset_index import About, Pictures

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_HEADERS = 2**20
"""Bytes that the headers of one member may take: long names, extended attributes."""
_SMALL = 2**20
"""Bytes of a ``.json``."""
_JSON_KEYS = ("cls", "label", "class")


class _Found(Struct):
    """Of all shards, in their order."""

    names: list[str] = []
    """Archive and name there."""
    places: list[tuple[int, int]] = []
    """Archive and offset."""
    sizes: list[int] = []
    numbers: dict[str, int] = {}
    """Key -> class."""
    skipped: Counter[str] = field(default_factory=Counter)


def find(root: Path, archives: list[str]) -> Pictures:
    """The pictures of tar files, named ``archives`` below ``root``.

    Classes are numbers, the network's own. Raises InputError for a file that is no tar file, is
    compressed, cut off or damaged, and for what is no class.
    """
    found = _Found()
    for number, archive in enumerate(archives):
        _index(found, root, number, archive)
    classes = [found.numbers.get(_key(name), -1) for name in found.names]
    most, without = max(classes, default=-1), classes.count(-1)
    about = About(
        kind="folder",
        root=str(root),
        classes=tuple(map(str, range(most + 1))),
        numbered=True,
        archives=tuple(archives),
        skipped=dict(found.skipped),
        notes=f"{without} pictures have no .cls" if without and most >= 0 else "",
    )
    return Pictures.of(about, found.names, classes, found.sizes, found.places)


def _index(found: _Found, root: Path, number: int, archive: str) -> None:
    path = root / archive

    def wrong(what: str) -> InputError:
        return InputError(f"images {escape.visible(str(path))!r}: {what}")

    if any("\ud800" <= character <= "\udfff" for character in str(path)):
        raise wrong("not UTF-8 text; rename that file or folder")
    try:
        file = image_file.opened(path)
    except image_file.Unusable as error:
        raise wrong(f"{error}; give a folder of pictures or .tar files, or a .tar file") from error
    with file:
        start = file.read(6)
        packed = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
        if packed:
            raise wrong(
                f"compressed ({packed}), so that no picture can be read by itself; decompress it: "
                "pictures do not get smaller"
            )
        names: set[str] = set()
        try:
            for member in _members(file):
                _take(found, number, archive, member, file)
                if member.name in names:
                    raise wrong(f"two members are called {member.name!r}; pack it again")
                names.add(member.name)
        except label_files.NoClass as error:
            raise wrong(str(error)) from error
        except InputError:
            raise
        except Exception as error:  # tarfile raises many kinds for bytes from a stranger
            raise wrong(
                f"no tar file, or damaged or cut off ({escape.line(str(error))}); give a folder "
                "of pictures, or of .tar files, or one .tar file, and pack it again if this is one"
            ) from error


class _Guarded:
    """A file for tarfile to read headers from, which may claim to be vast."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.left = file, _HEADERS
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError("a header of a vast size")
        return self._file.read(size)


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """In order, to the end of the archive. Raises whatever tarfile does, also where it is silent:
    at a damaged header, a size below zero, or a missing end."""
    total = file.seek(0, 2)
    file.seek(0)
    guarded = _Guarded(file)
    with tarfile.open(fileobj=guarded, mode="r:", encoding="utf-8") as tar:  # type: ignore[call-overload]
        before = -1
        while (member := tar.next()) is not None:
            if tar.offset <= before or member.size < 0:
                raise tarfile.ReadError("a member of a negative size")
            if tar.offset > total:
                raise tarfile.ReadError(f"{member.name!r} is cut off")
            yield member
            before, guarded.left = tar.offset, _HEADERS
            tar.members.clear()  # it would keep them all
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError(f"after {before:,} bytes there is neither a member nor the end")


def _take(
    found: _Found, number: int, archive: str, member: tarfile.TarInfo, file: IO[bytes]
) -> None:
    """Note a picture, or a class; count what has the name of one, but cannot be it."""
    suffix = Path(member.name).suffix.lower()
    if suffix in image_file.SUFFIXES:
        if member.isreg() and not member.issparse():
            found.names.append(f"{archive}/{member.name}")
            found.places.append((number, member.offset_data))
            found.sizes.append(member.size)
        else:
            link = member.issym() or member.islnk()
            found.skipped["link in an archive" if link else "not a file"] += 1
    elif suffix in (".cls", ".json") and member.isreg() and not member.issparse():
        if member.size > _SMALL:
            raise label_files.NoClass(
                f"{member.name!r} has {member.size:,} bytes, too many for a class"
            )
        file.seek(member.offset_data)
        said = _class(member.name, suffix, file.read(member.size))
        key = _key(f"{archive}/{member.name}")
        if said is not None and (suffix == ".cls" or key not in found.numbers):
            found.numbers[key] = said


def _class(name: str, suffix: str, data: bytes) -> int | None:
    if suffix == ".cls":
        return label_files.number(data.decode("utf-8", "replace").strip(), name)
    try:
        said = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None
    keys = _JSON_KEYS if isinstance(said, dict) else ()
    value = next((said[key] for key in keys if type(said.get(key)) is int), None)
    return None if value is None else label_files.number(str(value), name)


def _key(name: str) -> str:
    """What members of one example share: all before the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]

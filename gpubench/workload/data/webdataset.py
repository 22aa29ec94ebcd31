"""WebDataset shards: tar files of ``key.jpg`` with ``key.cls``, read where they lie.

All before the first dot of a name is the key of an example, the rest is what the member holds of
it: ``key.mask.png`` is no other picture. An index of places is made once, so that any picture can
be read at any time; nothing is extracted, and no member but ``.cls``, ``.json`` and a brief
``.txt`` is looked into (others may be pickles, which run code).
"""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from gpubench import escape
from gpubench.errors import InputError, check_text
from gpubench.workload.data import image_file, label_files
from gpubench.workload.data.dataset_index import About, Pictures

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_HEADERS = 2**20
"""Bytes that the headers of one member may take: long names, extended attributes."""
_SMALL = 2**20
"""Bytes of a ``.json``."""
_BRIEF = 16
"""Bytes of a ``.txt`` that may be a class, and no caption."""
_JSON_KEYS = label_files.HEADERS[:-1]  # but y, which is a place there
_IMAGE = ("image", "img")
_SURE = {".cls": 3, ".json": 2, ".txt": 1}


class _Class(Struct, frozen=True):
    sure: int
    """As _SURE says; 3 less for key.other.cls and the like."""
    number: int
    member: str
    clash: str = ""
    """What another member says, that is as sure."""


class _Found(Struct):
    """Of all shards, in their order."""

    names: list[str] = []
    """Archive and name there."""
    places: list[tuple[int, int]] = []
    """Archive and offset."""
    sizes: list[int] = []
    classes: dict[str, _Class] = {}
    """By key."""
    skipped: Counter[str] = field(default_factory=Counter)


def find(root: Path, archives: list[str]) -> Pictures:
    """The pictures of tar files, named ``archives`` below ``root``.

    Classes are numbers, the network's own. Raises InputError for a file that is no tar file, is
    compressed, cut off or damaged, for what is no class, and for two classes of one key.
    """
    found = _Found()
    for number, archive in enumerate(archives):
        _index(found, root, number, archive)
    own = _own(found)
    keys = [_key(found.names[i]) for i in own]
    plain = {key for key, i in zip(keys, own, strict=True) if _plain(found.names[i])}
    classes = {k: said for k, said in found.classes.items() if said.sure > 0 or k not in plain}
    for key, said in classes.items():
        if said.clash:
            raise InputError(
                f"images {str(root)!r}: {said.member!r} and {said.clash!r} have one key, "
                f"{key!r} (all before the first dot of a name), and two classes; pack it again "
                "under names without further dots"
            )
    said_of = [classes.get(key) for key in keys]
    numbers = sorted({one.number for one in said_of if one})
    places = {number: place for place, number in enumerate(numbers)}
    without = said_of.count(None)
    notes = "no picture has a .cls, or a .json or .txt with a class"
    about = About(
        kind="folder",
        root=str(root),
        classes=tuple(map(str, numbers)),
        archives=tuple(archives),
        skipped=dict(found.skipped),
        notes=notes if not numbers else f"{without} pictures have no .cls" if without else "",
    )
    return Pictures.of(
        about,
        [found.names[i] for i in own],
        [places[one.number] if one else -1 for one in said_of],
        [found.sizes[i] for i in own],
        [found.places[i] for i in own],
    )


def _own(found: _Found) -> list[int]:
    """One picture of each key: key.jpg, key.image.jpg, or else the only one. Others are counted."""
    of: dict[str, list[int]] = {}
    for i, name in enumerate(found.names):
        of.setdefault(_key(name), []).append(i)
    own = []
    for several in of.values():
        plain = [i for i in several if _plain(found.names[i])]
        plain = plain or [i for i in several if _word(found.names[i]) in _IMAGE]
        if len(several) == 1 or plain:
            own.append((plain or several)[0])
            found.skipped["other pictures of an example"] += len(several) - 1
        else:
            found.skipped["names with dots that share a key"] += len(several)
    found.skipped = +found.skipped
    return own


def _index(found: _Found, root: Path, number: int, archive: str) -> None:
    path = root / archive

    def wrong(what: str) -> InputError:
        return InputError(f"images {str(path)!r}: {what}")

    check_text(path)
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
    suffix, name = Path(member.name).suffix.lower(), f"{archive}/{member.name}"
    if not image_file.meant(member.name):
        return
    if suffix in image_file.SUFFIXES:
        if member.isreg() and not member.issparse():
            found.names.append(name)
            found.places.append((number, member.offset_data))
            found.sizes.append(member.size)
        else:
            link = member.issym() or member.islnk()
            found.skipped["link in an archive" if link else "not a file"] += 1
    elif suffix in _SURE and member.isreg() and not member.issparse():
        if suffix == ".txt" and member.size > _BRIEF:
            return
        if member.size > _SMALL:
            raise label_files.NoClass(
                f"{member.name!r} has {member.size:,} bytes, too many for a class"
            )
        file.seek(member.offset_data)
        said = _class(member.name, suffix, file.read(member.size))
        if said is None:
            return
        sure = _SURE[suffix] - (0 if _plain(name) else 3)
        before = found.classes.get(key := _key(name))
        if before is None or before.sure < sure:
            found.classes[key] = _Class(sure, said, member.name)
        elif before.sure == sure and before.number != said and not before.clash:
            found.classes[key] = replace(before, clash=member.name)


def _class(name: str, suffix: str, data: bytes) -> int | None:
    text = data.decode("utf-8", "replace").strip()
    if suffix == ".cls":
        return label_files.number(text, name)
    values = [text]
    if suffix == ".json":
        try:
            said = msgspec.json.decode(data)
        except (ValueError, RecursionError):
            return None
        named = said if isinstance(said, dict) else {_JSON_KEYS[0]: said}
        called = {label_files.plain(key): str(value) for key, value in named.items()}
        values = [called.get(key, "") for key in _JSON_KEYS]
    value = next(filter(label_files.is_number, values), None)
    return None if value is None else label_files.number(value, name)


def _key(name: str) -> str:
    """What members of one example share: all before the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _word(name: str) -> str:
    """What stands between the key and the suffix."""
    return name.rpartition("/")[2].partition(".")[2].rpartition(".")[0].lower()


def _plain(name: str) -> bool:
    """Whether it is its key and one word behind a dot."""
    return name.rpartition("/")[2].count(".") == 1

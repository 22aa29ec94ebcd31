"""A content-addressed cache: whatever is slow to make is made once.

An entry is a directory ``root/<kind>/<SHA-256 of the recipe>/`` holding files and a manifest with
their digests. It is made aside and renamed into place, so it exists whole or not at all, whatever
kills the maker; one process makes it while others wait on a lock. Files are verified against the
manifest every time an entry is asked for. Some entries are executable code (TensorRT engines), so
the root, and every folder below it that is read from, must be ours and writable by us only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct

from gpubench.errors import CacheError, check_text

_log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")
FULL = 1 << 20
"""Free bytes of a disk that is taken for full when writing to it has failed."""
REFS = "refs"
"""Folder of the environments that `gpubench.run.ab.interpreters` makes of git commits."""
_REF = re.compile(r"[0-9a-f]{12}-[0-9a-f]{8}")


class Entry(Struct, frozen=True):
    """One entry that a `Cache` object handed out."""

    kind: str
    path: Path
    seconds: float
    """What making it cost when it was made, less the entries made on the way."""
    hit: bool


class Usage(Struct, frozen=True):
    """What one kind of entry occupies."""

    kind: str
    entries: int
    bytes: int


class _File(Struct, frozen=True):
    sha256: str
    bytes: int


class _Manifest(Struct, frozen=True):
    recipe: dict[str, Any]
    files: dict[str, _File]
    seconds: float


class Cache:
    """The cache below ``root``; by default the user's cache directory (XDG on Linux).

    Raises CacheError where the root cannot be made, or where others may write to it.
    """

    def __init__(self, root: Path | None = None) -> None:
        if root is None:
            import platformdirs

            root = platformdirs.user_cache_path("gpubench")
        self.root = Path(root).expanduser().absolute()
        check_text(self.root)
        self.log: list[Entry] = []
        """Every entry touched through this object, once each, in order."""
        with _disk(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(self.root, self.root.stat())
            check_private(self.root, self.root.lstat())  # a link to it must be ours as well

    def get_or_make(
        self, kind: str, recipe: Mapping[str, Any], make: Callable[[Path], None]
    ) -> Path:
        """The directory of the entry that ``recipe`` (JSON-able) describes, verified.

        Where it is missing or damaged, ``make`` fills an empty directory with it first; what
        ``make`` raises is raised here, and nothing is kept. Raises CacheError when the disk fails.
        """
        canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":"), allow_nan=False)
        path = self.root / kind / hashlib.sha256(canonical.encode()).hexdigest()
        with _disk(path):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            check_private(path.parent, path.parent.lstat())
            lock = FileLock(_lock(path)).acquire()
        with lock:
            with _disk(path):
                manifest = _verified(path)
            hit = manifest is not None
            if manifest is None:
                manifest = self._make(path, dict(recipe), make)
        if all(entry.path != path for entry in self.log):
            self.log.append(Entry(kind, path, manifest.seconds, hit))
        return path

    def _make(self, path: Path, recipe: dict[str, Any], make: Callable[[Path], None]) -> _Manifest:
        aside = path.with_suffix(".tmp")
        with _disk(aside):
            shutil.rmtree(aside, ignore_errors=True)  # what a killed process left
            aside.mkdir(mode=0o700)
        touched, start = len(self.log), time.perf_counter()
        try:
            make(aside)
            nested = sum(entry.seconds for entry in self.log[touched:] if not entry.hit)
            seconds = max(0.0, time.perf_counter() - start - nested)
            with _disk(aside):
                manifest = _Manifest(recipe, {f: _hash(aside / f) for f in _files(aside)}, seconds)
                (aside / MANIFEST).write_bytes(msgspec.json.encode(manifest))
                aside.rename(path)
        except BaseException as error:
            free = shutil.disk_usage(aside).free
            shutil.rmtree(aside, ignore_errors=True)
            if isinstance(error, OSError) and free < FULL:  # not every library says it so
                with _disk(aside):
                    raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {error}") from error
            raise
        return manifest

    def info(self) -> list[Usage]:
        """Entries and bytes of every kind, by name; of REFS the environments that are ready."""
        kinds: dict[str, list[int]] = {}
        ready = [path for path in self._refs() if _ready(path).exists()]
        for path in [*self._entries(), *ready]:
            kinds.setdefault(path.parent.name, []).append(_size(path))
        return [Usage(kind, len(sizes), sum(sizes)) for kind, sizes in sorted(kinds.items())]

    def clear(self) -> int:
        """Remove every entry, and environment of REFS, that nobody is making right now.

        Returns the bytes freed; files of an environment that share theirs with uv's cache count.

        Touches nothing else, so a mistaken ``--cache-dir`` loses nothing.
        """
        freed = 0
        for path in [*self._entries(".tmp"), *self._refs()]:
            with _disk(path), suppress(Timeout), FileLock(_lock(path), timeout=0):
                _ready(path).unlink(missing_ok=True)  # first: half an environment is not ready
                if path.is_dir():  # still: another process may be clearing too
                    freed += _size(path)
                    shutil.rmtree(path)
        return freed

    def _refs(self) -> list[Path]:
        found = (self.root / REFS).glob("*")
        return sorted(path for path in found if _REF.fullmatch(path.name) and path.is_dir())

    def _entries(self, *suffixes: str) -> list[Path]:
        return [
            path
            for path in sorted(self.root.glob("*/*"))
            if _DIGEST.fullmatch(path.stem) and path.suffix in ("", *suffixes) and path.is_dir()
        ]


def check_private(path: Path, info: os.stat_result) -> None:
    """Raises CacheError unless the folder ``path`` is ours and nobody else may write to it."""
    others = 0 if stat.S_ISLNK(info.st_mode) else stat.S_IWGRP | stat.S_IWOTH
    if info.st_uid != os.getuid() or info.st_mode & others:
        raise CacheError(
            f"cache directory {path} (uid {info.st_uid}, {stat.filemode(info.st_mode)}) "
            f"must belong to uid {os.getuid()} and be writable by its owner only, because "
            "cached engines are executable code: change that, or choose another --cache-dir"
        )


def content(entry: Path) -> str:
    """SHA-256 over the names and contents of an entry's files, whatever recipe made them."""
    manifest = msgspec.json.decode((entry / MANIFEST).read_bytes(), type=_Manifest)
    return hashlib.sha256(msgspec.json.encode(manifest.files, order="sorted")).hexdigest()


def copy_entry(entry: Path, to: Path) -> Path:
    """A copy of an entry's files, no longer part of the cache; returns ``to``."""
    shutil.copytree(entry, to, ignore=shutil.ignore_patterns(MANIFEST))
    to.chmod(0o755)  # an engine's folder must be writable by its owner only
    return to


def digest(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"cache at {path}: {error}; free some space or permissions, or choose another "
            "--cache-dir"
        ) from error


def _verified(path: Path) -> _Manifest | None:
    """The entry's manifest; None when there is no entry, or a damaged one (then removed)."""
    if path.is_symlink():
        _log.warning("cache entry %s is a link, which this cache never makes: removed", path)
        path.unlink()
    if not path.exists():
        return None
    check_private(path, path.stat())
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=_Manifest)
        found = {name: _hash(path / name) for name in _files(path)}
        wrong = sorted(
            f for f in found.keys() | manifest.files if found.get(f) != manifest.files.get(f)
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        wrong = [MANIFEST]
    if not wrong:
        return manifest
    _log.warning("cache entry %s is damaged (%s): made again", path, ", ".join(wrong))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None


def _files(path: Path) -> list[str]:
    """Relative names of whatever an entry holds but folders and the manifest."""
    found = (p for p in path.rglob("*") if p.is_symlink() or not p.is_dir())
    return sorted(name for p in found if (name := str(p.relative_to(path))) != MANIFEST)


def _hash(path: Path) -> _File:
    """Of a link, or a pipe, what no file has: the cache makes neither."""
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        return _File("", -1)
    return _File(digest(path), info.st_size)


def _size(path: Path) -> int:
    """Bytes of the files below; what a link leads to is not ours."""
    files = (p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    return sum(p.stat().st_size for p in files)


def _ready(path: Path) -> Path:
    """What says that an environment of REFS is whole."""
    return path.with_suffix(".ready")


def _lock(path: Path) -> Path:
    return path.with_suffix(".lock")

"""A content-addressed cache: whatever is slow to make is made once.

An entry is a directory ``root/<kind>/<SHA-256 of the recipe>/`` holding files and a manifest with
their digests. It is made aside and renamed into place, so it exists whole or not at all, whatever
kills the maker; one process makes it while others wait on a lock. Files are verified against the
manifest every time an entry is asked for. Some entries are executable code (TensorRT engines), so
the root, and every folder below it that is read from, must be ours and writable by us only; a link
in its place is refused. Only what carries such a manifest, under the digest of the recipe in it, is
ever removed. Whoever is to find what it made as long as it runs holds the cache meanwhile (`hold`).
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
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct

from gpubench import files, units
from gpubench.errors import CacheError, InputError, check_text

_log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")
FULL = 1 << 20
"""Free bytes of a disk that is taken for full when writing to it has failed."""
REFS = "refs"
"""Folder of the environments that `gpubench.run.ab.interpreters` makes of git commits."""
_REF = re.compile(r"[0-9a-f]{12}-[0-9a-f]{8}")
_MADE = re.compile(f"{_DIGEST.pattern}|{_REF.pattern}")
HISTORY = "aa"
"""Folder of the A/A history, `gpubench.analysis.compare.aa_history`: measured, so never cleared."""
STORED = "content"
"""The one file of an entry whose content changes."""


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
            for kind in self._kinds():  # here, so that it is told before anything is measured
                _check_folder(kind)

    def get_or_make(
        self, kind: str, recipe: Mapping[str, Any], make: Callable[[Path], None]
    ) -> Path:
        """The directory of the entry that ``recipe`` (JSON-able) describes, verified.

        Where it is missing or damaged, ``make`` fills an empty directory with it first; what
        ``make`` raises is raised here, and nothing is kept. Raises CacheError when the disk fails.
        """
        path = self._place(kind, recipe)
        with self.locked(path):
            with _disk(path):
                manifest = _verified(path)
            hit = manifest is not None
            if manifest is None:
                manifest = self._make(path, dict(recipe), make)
        if all(entry.path != path for entry in self.log):
            self.log.append(Entry(kind, path, manifest.seconds, hit))
        return path

    def stored(self, kind: str, recipe: Mapping[str, Any]) -> bytes:
        """What `store` kept under ``recipe``; b"" where there is nothing, or it is damaged."""
        path = self._place(kind, recipe)
        if not path.exists():
            return b""
        with self.locked(path), _disk(path):
            return (path / STORED).read_bytes() if _verified(path) else b""

    def store(self, kind: str, recipe: Mapping[str, Any], change: Callable[[bytes], bytes]) -> None:
        """Keep what ``change`` makes of the content that is `stored` by now."""
        path = self._place(kind, recipe)
        with self.locked(path), _disk(path):
            body = change((path / STORED).read_bytes() if _verified(path) else b"")
            path.mkdir(mode=0o700, exist_ok=True)
            files.put(path / STORED, body)
            kept = _Manifest(dict(recipe), {STORED: _hash(path / STORED)}, 0.0)
            files.put(path / MANIFEST, msgspec.json.encode(kept))

    def _place(self, kind: str, recipe: Mapping[str, Any]) -> Path:
        return self.root / kind / _name(recipe)

    @contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """While one process reads or makes the entry or environment ``path``."""
        with _disk(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_folder(path.parent)
            lock = FileLock(_lock(path)).acquire()
        with lock:
            yield

    @contextmanager
    def hold(self, alone: bool = False) -> Iterator[None]:
        """Keeps `clear` from removing anything, which waits for nobody."""
        import fcntl  # not on Windows, which only reads

        path = self.root / "in-use.lock"
        with _disk(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(path, flags, 0o600)
        try:
            with _disk(path):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

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
            free = shutil.disk_usage(path.parent).free
            shutil.rmtree(aside, ignore_errors=True)
            if isinstance(error, OSError) and free < FULL:  # not every library says it so
                with _disk(aside):
                    raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {error}") from error
            raise
        return manifest

    def info(self) -> list[Usage]:
        """Entries and bytes of every kind, by name; of HISTORY the sessions."""
        found = {kind.name: self._made(kind) for kind in self._kinds()}
        found[HISTORY] = list((self.root / HISTORY).glob("*/*.jsonl"))
        return [
            Usage(kind, len(made), sum(map(_size, made)))
            for kind, made in sorted(found.items())
            if made
        ]

    def clear(self, kinds: Sequence[str] = (), note: Callable[[str], object] = _log.warning) -> int:
        """Remove every entry of ``kinds``, by default of all but HISTORY; returns the bytes freed.

        Files of an environment of REFS that share theirs with uv's cache count. Nothing goes that
        does not carry our manifest, so a mistaken ``--cache-dir`` loses nothing; ``note`` is told
        what looks like an entry and stays. Raises CacheError while somebody holds the cache.
        """
        known = sorted({REFS, *(usage.kind for usage in self.info())} - {HISTORY})
        if unknown := [kind for kind in kinds if kind not in known]:
            raise InputError(f"{unknown[0]!r}: not a kind to clear of {self.root}; it has {known}")
        try:
            with self.hold(alone=True):
                found = [kind for kind in self._kinds() if kind.name in (kinds or [kind.name])]
                return sum(self._clear(kind, note) for kind in found)
        except CacheError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            raise CacheError(
                f"cache {self.root}: a gpubench that is running uses it, so nothing was removed; "
                "clear it when that has ended"
            ) from error

    def _clear(self, kind: Path, note: Callable[[str], object]) -> int:
        """Remove what is ours in one folder, and the folder where nothing else is in it."""
        freed, ours = 0, self._made(kind, ".tmp")
        for path in ours:
            with _disk(path), suppress(Timeout), FileLock(_lock(path), timeout=0):
                _ready(path).unlink(missing_ok=True)  # first: half an environment is not ready
                freed += _size(path)
                shutil.rmtree(path)
        left = [p for p in kind.iterdir() if _DIGEST.fullmatch(p.stem) and p.suffix != ".lock"]
        if foreign := len(set(left) - set(ours)):
            words = "carries no manifest" if foreign == 1 else "carry no manifest"
            note(f"{kind}: {units.count(foreign, 'folder')} {words} of this cache, and stays")
        names = {path.stem for path in left}
        locks = [p for p in kind.glob("*.lock") if _MADE.fullmatch(p.stem) and _begun(p)]
        for lock in locks:
            if lock.stem not in names and not lock.with_suffix("").exists():
                with _disk(lock), suppress(Timeout), FileLock(lock, timeout=0):
                    lock.unlink()
        if ours or locks:
            with suppress(OSError):  # something is left in it
                kind.rmdir()
        return freed

    @staticmethod
    def _made(kind: Path, *suffixes: str) -> list[Path]:
        """Entries with their manifest; what was begun beside its lock: of ``suffixes``, and
        environments of REFS."""

        def ours(path: Path) -> bool:
            if _DIGEST.fullmatch(path.stem) and path.suffix not in suffixes:
                return _carries_manifest(path)  # which also knows its name
            environment = kind.name == REFS and _REF.fullmatch(path.name)
            return bool(environment or _DIGEST.fullmatch(path.stem)) and _begun(path)

        return [path for path in sorted(kind.iterdir()) if _folder(path) and ours(path)]

    def _kinds(self) -> list[Path]:
        """Folders below the root that are ours: with what is called like an entry, or empty."""
        return [path for path in sorted(self.root.iterdir()) if _is_kind(path)]


def _is_kind(path: Path) -> bool:
    if not path.is_dir():
        return False
    try:
        names = [inside.stem for inside in path.iterdir()]
    except OSError:  # somebody else's
        return False
    return path.name != HISTORY and (not names or any(map(_MADE.fullmatch, names)))


def _check_folder(path: Path) -> None:
    """Raises CacheError as `check_private`, and for a link."""
    if path.is_symlink():
        raise CacheError(
            f"cache directory {path} is a link, and links in a cache are not followed: remove it; "
            "to keep the cache elsewhere use --cache-dir, or link its root"
        )
    check_private(path, path.stat())


def check_private(path: Path, info: os.stat_result) -> None:
    """Raises CacheError unless the folder ``path`` is ours and nobody else may write to it."""
    if sys.platform == "win32":
        return  # where nothing is run from it
    others = 0 if stat.S_ISLNK(info.st_mode) else stat.S_IWGRP | stat.S_IWOTH
    if info.st_uid != os.getuid() or info.st_mode & others:
        raise CacheError(
            f"cache directory {path} (uid {info.st_uid}, {stat.filemode(info.st_mode)}) "
            f"must belong to uid {os.getuid()} and be writable by its owner only, because "
            "cached engines are executable code: change that, or choose another --cache-dir"
        )


def recipe_of(entry: Path) -> dict[str, Any]:
    """What an entry was made by."""
    return _manifest(entry).recipe


def content(entry: Path) -> str:
    """SHA-256 over the names and contents of an entry's files, whatever recipe made them."""
    return hashlib.sha256(msgspec.json.encode(_manifest(entry).files, order="sorted")).hexdigest()


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
    except (OSError, NotImplementedError) as error:  # the latter: of filelock, without flock
        number = error.errno if isinstance(error, OSError) else errno.ENOSYS
        remedy = _REMEDIES.get(number or 0, "look at that disk, or choose another --cache-dir")
        raise CacheError(f"cache at {path}: {error}; {remedy}") from error


_ROOM = "free some space there, or choose another --cache-dir"
_RIGHT = "give yourself the right to write there, or choose another --cache-dir"
_LOCKS = "files there cannot be locked: choose a --cache-dir on a file system that has locks"
_REMEDIES = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EACCES: _RIGHT, errno.EPERM: _RIGHT,
             errno.EROFS: _RIGHT, errno.ENOLCK: _LOCKS, errno.ENOSYS: _LOCKS,
             errno.EOPNOTSUPP: _LOCKS}  # fmt: skip


def _verified(path: Path) -> _Manifest | None:
    """The entry's manifest; None when there is no entry, or a damaged one (then removed)."""
    if path.is_symlink():
        _log.warning("cache entry %s is a link, which this cache never makes: removed", path)
        path.unlink()
    if not path.exists():
        return None
    check_private(path, path.stat())
    try:
        manifest = _manifest(path)
        found = {name: _hash(path / name) for name in _files(path)}
        wrong = sorted(
            f for f in found.keys() | manifest.files if found.get(f) != manifest.files.get(f)
        )
    except _NO_MANIFEST:
        wrong = [MANIFEST]
    if not wrong:
        return manifest
    _log.warning("cache entry %s is damaged (%s): made again", path, ", ".join(wrong))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None


_NO_MANIFEST = (
    FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError
)  # fmt: skip


def _manifest(path: Path) -> _Manifest:
    with files.opened(path / MANIFEST) as file:
        return msgspec.json.decode(file.read(), type=_Manifest)


def _carries_manifest(path: Path) -> bool:
    """Whether this cache has made the entry: what it was made from gives its name."""
    try:
        return _name(_manifest(path).recipe) == path.name
    except (OSError, *_NO_MANIFEST):
        return False


def _name(recipe: Mapping[str, Any]) -> str:
    canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _begun(path: Path) -> bool:
    lock = _lock(path)
    return lock.is_file() and not lock.is_symlink() and not lock.stat().st_size


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
    inside = [path, *path.rglob("*")]
    return sum(p.stat().st_size for p in inside if p.is_file() and not p.is_symlink())


def _ready(path: Path) -> Path:
    """What says that an environment of REFS is whole."""
    return path.with_suffix(".ready")


def _lock(path: Path) -> Path:
    return path.with_suffix(".lock")

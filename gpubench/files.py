"""Files: written whole or not at all, read because they are files, and what a wrong one is."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path
from typing import IO

NO_FILE = (errno.EINVAL, errno.EISDIR, errno.ENXIO)
"""Numbers of `opened`'s errors for what is not a regular file; the last is a socket's."""
POINTER = b"version https://git-lfs"
"""How what Git LFS leaves in a file's place begins."""
_STRANGE = (
    (POINTER, "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"<", "a page of HTML or XML, not the file itself: download it again, by its raw address"),
    (b"\x1f\x8b", "compressed with gzip: unpack it"),
)


def strange(begins: bytes, *others: tuple[bytes, str]) -> str:
    """What a file is that ``begins`` so, where it is surely not what somebody took it for; else ''.

    ``others``: how what cannot be meant in that place begins too, and what to say.
    """
    if not begins:
        return "an empty file (0 bytes): copy or download it again"
    text = begins.lstrip() if begins.lstrip()[:1] == b"<" else begins
    return next((words for start, words in _STRANGE + others if text.startswith(start)), "")


def put(path: Path, body: bytes) -> None:
    """Write ``body`` to disk, whole or not at all; a link stays one, and its target is written.

    It is written aside first, under a name that nobody foresees and that must be new: a link that
    somebody planted there would be followed. Raises OSError, also for a link that is not ours, and
    then leaves nothing.
    """
    if path.is_symlink() and path.lstat().st_uid != os.getuid():
        raise OSError(errno.EPERM, "a link that somebody else has put there", str(path))
    real = Path(os.path.realpath(path))
    mode = stat.S_IMODE(real.stat().st_mode) if real.exists() else 0o666
    aside = real.with_name(f".{secrets.token_hex(8)}.part")
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _flags("O_NOFOLLOW", "O_CLOEXEC")
    with os.fdopen(os.open(aside, new, mode), "wb") as file:
        try:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
            aside.replace(real)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def opened(path: str | Path) -> IO[bytes]:
    """A regular file, open for reading. Raises OSError for a pipe, which would be waited for."""
    fd = os.open(path, os.O_RDONLY | _flags("O_NONBLOCK", "O_CLOEXEC"))
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(fd, "rb")


def _flags(*names: str) -> int:
    """Of those flags, what this system has: Windows has none of them."""
    return sum(getattr(os, name, 0) for name in names)

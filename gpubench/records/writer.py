"""Writing a run's records: one line each, on disk before the next task begins."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from gpubench.errors import RecordError
from gpubench.records.reader import locate
from gpubench.records.record import BEGIN, RECORDS, Header, Record, encode


class Writer:
    """Appends records to a run's file, one line each on disk; one writer a file at a time."""

    def __init__(self, directory: Path, header: Header | None) -> None:
        """``header`` None: resume the file that is there (a cut-off last line is removed).

        A file without a whole header line is no run yet, but what a killed one left: it is begun.
        """
        self.path = locate(directory) if header is None else directory / RECORDS
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # unbuffered: nothing of a failed write may be flushed later
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be written: {error.strerror}") from error
        try:
            self._begin(header)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, header: Header | None) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecordError(f"{self.path}: another gpubench is writing to it") from error
        except OSError as error:
            raise RecordError(
                f"{self.path}: cannot be locked: {error.strerror}; choose an -o on a file system "
                "that has locks"
            ) from error
        whole = _whole_lines(self._file.fileno())
        head = os.pread(self._file.fileno(), len(BEGIN), 0)
        if header is not None and (whole or not BEGIN.startswith(head)):
            raise RecordError(
                f"{self.path}: holds a run already; --resume goes on with it, -o names another"
            )
        try:
            if whole or header is not None:
                self._file.truncate(whole)  # what a killed writer left
            if header is not None:
                self._write(encode("header", header))
        except OSError as error:
            if header is not None:
                self.path.unlink(missing_ok=True)
            raise RecordError(f"{self.path}: cannot be written: {error.strerror}") from error

    def append(self, record: Record) -> None:
        """Write one record; it is on disk when this returns. OSError leaves the file as it was."""
        self._write(encode("record", record))

    def _write(self, line: bytes) -> None:
        fd, rest = self._file.fileno(), memoryview(line)
        size = os.lseek(fd, 0, os.SEEK_END)
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        except BaseException:
            with suppress(OSError):  # else readers leave the cut line out
                os.ftruncate(fd, size)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _whole_lines(fd: int) -> int:
    """Bytes up to the last line's end."""
    end = os.fstat(fd).st_size
    while end > 0:
        begin = max(0, end - (1 << 16))
        place = os.pread(fd, end - begin, begin).rfind(b"\n")
        if place >= 0:
            return begin + place + 1
        end = begin
    return 0

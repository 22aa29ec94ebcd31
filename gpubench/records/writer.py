"""Writing a run's records: one line each, on disk before the next task begins."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from gpubench import escape, files
from gpubench.errors import GpubenchError, RecordError
from gpubench.records import validation
from gpubench.records.reader import LONGEST, header_of, locate, record_of
from gpubench.records.record import BEGIN, BESIDE, RECORDS, Header, Record, encode

LOG = "agent.log"
"""The workers' own, beside the records."""


def check_free(directory: Path) -> None:
    """RecordError where a new run would in the end write over what somebody has there."""
    linked = [LOG] if (directory / LOG).is_symlink() else []  # it would be appended to
    for name in (*BESIDE, *linked):
        if os.path.lexists(directory / name):
            raise RecordError(
                f"{directory / name}: is there already, and is not this run's: move it away, or "
                "name another directory with -o"
            )


class Writer:
    """Appends records to a run's file, one line each on disk; one writer a file at a time."""

    def __init__(self, directory: Path, header: Header | None) -> None:
        """``header`` None: resume the file that is there; a cut-off last line goes when the first
        record is appended, so that whoever reads the file first may still find it another's.

        A file without a whole header line is no run yet, but what a killed one left: it is begun.
        """
        self.path = locate(directory) if header is None else directory / RECORDS
        if header is not None and not self.path.exists():
            check_free(directory)
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
        import fcntl  # not on Windows, which only reads

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecordError(f"{self.path}: another gpubench is writing to it") from error
        except OSError as error:
            raise RecordError(
                f"{self.path}: cannot be locked: {error.strerror}; choose an -o on a file system "
                "that has locks"
            ) from error
        self._whole = _whole_lines(self._file.fileno())
        head = os.pread(self._file.fileno(), len(BEGIN), 0)
        if header is None:
            return
        if self._whole or not BEGIN.startswith(head):
            raise RecordError(
                f"{self.path}: holds a run already; --resume goes on with it, -o names another"
            )
        try:
            line = encode("header", header)
            header_of(line[:-1])
            self._write(line)
        except ValueError as error:
            self.path.unlink()
            raise RecordError(f"{self.path}: its header cannot be stored: {error}") from error
        except OSError as error:
            self.path.unlink(missing_ok=True)
            raise RecordError(f"{self.path}: cannot be written: {error.strerror}") from error

    def append(self, record: Record) -> Record:
        """Write one record, as its readers will take it, and return that.

        A fact that they would refuse is left out; of a record that they would refuse, only that
        stays. It is on disk when this returns. OSError leaves the file as it was; GpubenchError:
        another file has taken its place, or somebody has cut it.
        """
        stored, line = _readable(record)
        self._write(line)
        self._check_place()
        return stored

    def _write(self, line: bytes) -> None:
        fd, rest = self._file.fileno(), memoryview(line)
        size = os.fstat(fd).st_size
        if size < self._whole:
            raise GpubenchError(
                f"{self.path}: was cut to {size:,} bytes by something else during the run; what "
                "that has removed is measured again with --resume"
            )
        try:
            if size > self._whole:
                os.ftruncate(fd, self._whole)  # what a killed writer left
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        except BaseException as error:
            if rest or isinstance(error, OSError):  # a signal during the sync leaves a whole line
                with suppress(OSError):  # else readers leave the cut line out
                    os.ftruncate(fd, self._whole)
            raise
        self._whole += len(line)

    def _check_place(self) -> None:
        """Editors and tools put a new file in place of another: what we write would be lost."""
        own = os.fstat(self._file.fileno())
        with suppress(OSError):
            if os.path.samestat(own, self.path.stat()):
                return
        kept = self.path.with_name(f"{self.path.stem}-kept.jsonl")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            files.put(kept, Path(f"/proc/self/fd/{self._file.fileno()}").read_bytes())
            where = f"whole in {kept}: rename that to {self.path.name}, then go on with --resume"
        except OSError as error:
            where = f"lost: {kept} cannot be written: {error.strerror}"
        raise GpubenchError(
            f"{self.path}: was removed, or replaced by another file, during the run; its records "
            f"are {where}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _readable(record: Record) -> tuple[Record, bytes]:
    """As much of ``record`` as readers accept, and its line."""
    try:
        return record, _line(record)
    except _REFUSED:
        pass
    milder = validation.storable(record)
    try:
        return milder, _line(milder)
    except _REFUSED as error:
        why = f"what was measured cannot be stored: {escape.visible(str(error))}"
    lost = Record(cell=record.cell, repeat=record.repeat, status="failed", kind="error", reason=why,
                  order=record.order, started=record.started)  # fmt: skip
    return lost, _line(lost)


_REFUSED = (ValueError, TypeError, OverflowError, RecursionError)


def _line(record: Record) -> bytes:
    line = encode("record", record)
    if len(line) > LONGEST:
        raise ValueError(f"longer than {LONGEST:,} bytes: lower policy.max_samples")
    record_of(line[:-1])
    return line


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

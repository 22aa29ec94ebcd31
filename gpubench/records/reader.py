"""Reading record files: only what is whole, intact and could have been written by a run."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar, get_args

import msgspec
from msgspec import Struct

from gpubench import escape
from gpubench.errors import RecordError
from gpubench.records import validation
from gpubench.records.record import (
    NOTED,
    RECORDS,
    SCHEMA,
    Arm,
    Header,
    Record,
    RecordFile,
)

_Line = TypeVar("_Line", Header, Record)
_TAIL = len(b',"crc":"01234567"}')
LONGEST = 2**28
"""Bytes of a line: a million samples of a dozen replicas. A hole of gigabytes is none."""
_HEADER, _RECORD = msgspec.json.Decoder(Header), msgspec.json.Decoder(Record)


def locate(path: str | Path) -> Path:
    """The record file at ``path``, which may also be the directory of a run."""
    found = Path(path)
    try:
        found = found / RECORDS if found.is_dir() else found
        if found.is_file():
            return found
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    raise RecordError(f"{path}: no record file there; expected {RECORDS} or a run's directory")


def begun(path: str | Path) -> bool:
    """Whether there is a record file at ``path`` with a whole header line: else there was no run,
    or it was killed before it had begun."""
    with suppress(RecordError):
        try:
            with locate(path).open("rb") as file:
                return file.readline(LONGEST).endswith(b"\n")
        except OSError:
            return True  # whoever reads it says what is wrong
    return False


def read(path: str | Path) -> RecordFile:
    """Read a record file (or a run's directory). Of one cell and repeat, the last record counts.

    A cut-off last line is dropped and noted. Any other damage raises RecordError with the line.
    """
    damage: list[str] = []
    header, found = scan(path, damage)
    with _no_collector():
        records = {(record.cell.key, record.repeat): record for record in found}
    notes = list(damage)
    for fact, before in NOTED.items():
        said = dict.fromkeys(str(r.facts.get(fact, "")) for r in records.values())
        notes += [before + words for words in said if words]
    name = escape.visible(str(locate(path)))
    return RecordFile(name, header, list(records.values()), notes, damage)


@contextmanager
def _no_collector() -> Iterator[None]:
    """All that is read stays, and going through it again and again would cost more than reading."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def scan(path: str | Path, notes: list[str]) -> tuple[Header, Iterator[Record]]:
    """As `read`, but one record at a time and every one, so that no file is too large.

    ``notes`` is filled when the last record was taken.
    """
    found = locate(path)
    lines = _lines(found, notes)
    first = next(lines, None)
    if first is None:
        raise RecordError(
            f"{found}: has no complete header line; the run had not begun: start it again, "
            "without --resume"
        )
    _check_schema(found, first)
    header = _line(found, 1, first, header_of)
    return header, (_line(found, n, text, record_of) for n, text in enumerate(lines, 2))


def _lines(path: Path, notes: list[str]) -> Iterator[bytes]:
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
                if len(line) > LONGEST:
                    raise RecordError(f"{path}, line {number}: longer than {LONGEST:,} bytes")
                if line.endswith(b"\n"):
                    yield line[:-1].removesuffix(b"\r")  # git and mail may write CRLF
                else:
                    notes.append(f"line {number} was cut off and is left out")
    except OSError as error:
        raise RecordError(f"{path}, line {number + 1}: cannot be read: {error.strerror}") from error


def read_all(paths: Sequence[str | Path]) -> list[RecordFile]:
    """What ``paths`` stand for; the directory of an A/B is its two arms, the baseline first."""
    found: list[RecordFile] = []
    for path in map(Path, paths):
        arms = [path / arm for arm in get_args(Arm)]
        both = not (path / RECORDS).exists() and any((arm / RECORDS).exists() for arm in arms)
        found += [read(each) for each in (arms if both else [path])]
    return found


EVIDENCE = "evidence"
"""In the directory of a search: its A/B of the recommended cell against today's default."""


def read_arms(place: Path) -> tuple[RecordFile, RecordFile] | None:
    """(baseline, candidate) of the A/B in a directory; None where one of them has not begun."""
    arms = [place / arm for arm in get_args(Arm)]
    if not all(map(begun, arms)):
        return None
    baseline, candidate = map(read, arms)
    return baseline, candidate


def header_of(line: bytes) -> Header:
    """What the first line of a file holds, without its end. ValueError where no run wrote it."""
    return _checked("header", line, _HEADER, validation.header)


def record_of(line: bytes) -> Record:
    """The same of any other line."""
    return _checked("record", line, _RECORD, validation.record)


def _checked(
    kind: str, line: bytes, decoder: msgspec.json.Decoder[_Line], check: Callable[[_Line], None]
) -> _Line:
    start, end = b'{"%s":' % kind.encode(), len(line) - _TAIL
    if not line.startswith(start) or line[end : end + 8] != b',"crc":"':
        raise ValueError(f"this is not a line with a {kind}")
    payload = line[len(start) : end]
    if line[end + 8 :] != b'%08x"}' % zlib.crc32(payload):
        raise ValueError("its checksum does not match: it was damaged or edited")
    found = decoder.decode(payload)
    check(found)
    return found


def _line(path: Path, number: int, line: bytes, parse: Callable[[bytes], _Line]) -> _Line:
    """What an intact line holds."""
    try:
        return parse(line)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        rest = "; remove that line to use the rest" if number > 1 else ""
        raise RecordError(f"{path}, line {number}: {error}{rest}") from error


class _Version(Struct):
    schema: int


class _Peek(Struct):
    header: _Version


def _check_schema(path: Path, line: bytes) -> None:
    try:
        schema = msgspec.json.decode(line, type=_Peek).header.schema
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}, line 1: not the header of a record file ({error})") from error
    if schema != SCHEMA:
        raise RecordError(
            f"{path}: has schema {schema}, but this gpubench reads schema {SCHEMA}; measure again, "
            "or read it with the gpubench that wrote it"
        )

"""Reading record files: only what is whole, intact and could have been written by a run."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, get_args

import msgspec
from msgspec import Struct

from gpubench import escape
from gpubench.errors import RecordError
from gpubench.records import validation
from gpubench.records.record import (
    IMAGES_SKIPPED,
    NETWORK,
    RECORDS,
    SCHEMA,
    Arm,
    Header,
    Record,
    RecordFile,
)

_Line = TypeVar("_Line", Header, Record)
_TAIL = len(b',"crc":"01234567"}')


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


def read(path: str | Path) -> RecordFile:
    """Read a record file (or a run's directory). Of one cell and repeat, the last record counts.

    A cut-off last line is dropped and noted. Any other damage raises RecordError with the line.
    """
    notes: list[str] = []
    header, found = scan(path, notes)
    with _no_collector():
        records = {(record.cell.key, record.repeat): record for record in found}
    skipped = dict.fromkeys(str(r.facts.get(IMAGES_SKIPPED, "")) for r in records.values())
    notes += [f"images skipped: {words}" for words in skipped if words]
    notes += dict.fromkeys(f"network: {words}" for r in records.values() if (words := _made_of(r)))
    name = escape.visible(str(locate(path)))
    return RecordFile(name, header, list(records.values()), notes)


def _made_of(record: Record) -> str:
    """What is worth saying of its network, in words."""
    told = record.facts.get(NETWORK)
    if not isinstance(told, dict):
        return ""
    kind = told.get("answers", "logits")
    kinds = [] if kind == "logits" else [f"it answers with {kind}"]
    return "; ".join(map(str, [*kinds, *told.get("notes", ())]))


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
    header = _line(found, 1, first, msgspec.json.Decoder(Header), validation.header)
    decoder = msgspec.json.Decoder(Record)
    return header, (
        _line(found, n, text, decoder, validation.record) for n, text in enumerate(lines, 2)
    )


def _lines(path: Path, notes: list[str]) -> Iterator[bytes]:
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield line[:-1]
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


def read_evidence(path: str | Path) -> tuple[RecordFile, RecordFile] | None:
    """(baseline, candidate) of the A/B in a search's directory; None without both arms."""
    arms = [Path(path) / EVIDENCE / arm for arm in get_args(Arm)]
    if not all((arm / RECORDS).exists() for arm in arms):
        return None
    baseline, candidate = map(read, arms)
    return baseline, candidate


def _line(
    path: Path,
    number: int,
    text: bytes,
    decoder: msgspec.json.Decoder[_Line],
    check: Callable[[_Line], None],
) -> _Line:
    """What an intact line holds."""
    kind = "header" if number == 1 else "record"
    start, end = b'{"%s":' % kind.encode(), len(text) - _TAIL
    try:
        if not text.startswith(start) or text[end : end + 8] != b',"crc":"':
            raise ValueError(f"this is not a line with a {kind}")
        payload = text[len(start) : end]
        if text[end + 8 :] != b'%08x"}' % zlib.crc32(payload):
            raise ValueError("its checksum does not match: it was damaged or edited")
        found = decoder.decode(payload)
        check(found)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        rest = "; remove that line to use the rest" if number > 1 else ""
        raise RecordError(f"{path}, line {number}: {error}{rest}") from error
    return found


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

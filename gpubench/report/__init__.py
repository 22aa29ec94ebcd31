"""Reports: pure functions from record files to text, and files with it; nothing heavy loads before
one is made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from pathlib import Path

from gpubench import files as whole
from gpubench.errors import GpubenchError, InputError
from gpubench.records.record import RecordFile

Evidence = tuple[RecordFile, RecordFile]
_MODULES = {"text": "terminal", "html": "html", "md": "markdown", "csv": "csv_report",
            "json": "json_report"}  # fmt: skip
FORMATS = tuple(_MODULES)


def render(
    files: Sequence[RecordFile],
    format: str,  # noqa: A002 (the command's word)
    evidence: Evidence | None = None,
    keys: bool = False,
) -> str:
    """The whole report of one or several runs in one of `FORMATS`.

    ``evidence``: of a search that is reported alone, the A/B of what it recommends. ``keys``: text
    shows the keys of cells too, as all other formats always do.

    Raises InputError for another format and for an empty list of files.
    """
    if format not in _MODULES:
        raise InputError(f"unknown report format {format!r}; choose one of {', '.join(FORMATS)}")
    if not files:
        raise InputError("nothing to report: no record file was given")
    made: Callable[..., str] = import_module(f"{__name__}.{_MODULES[format]}").render
    searched = len(files) == 1 and files[0].header.search is not None and format != "csv"
    more = {"keys": True} if keys and format == "text" else {}
    return made(files, evidence, **more) if searched else made(files, **more)


ENDINGS = {"txt": "text", "text": "text", "html": "html", "htm": "html", "md": "md",
           "markdown": "md", "csv": "csv", "json": "json"}  # fmt: skip


def by_ending(
    form: str | None, output: Path | None, formats: Collection[str], otherwise: str = "text"
) -> str:
    """The format that was asked for, or the one that the file's ending names.

    ``otherwise``: of what has no ending. Raises InputError for one that names no format.
    """
    ending = output.suffix[1:].lower() if output else ""
    if form or not ending:
        return form or otherwise
    if (found := ENDINGS.get(ending)) in formats:
        return str(found)
    known = ", ".join(f".{known}" for known, form in ENDINGS.items() if form in formats)
    raise InputError(f"-o {output}: no format ends in .{ending}; known endings: {known}")


def save(path: Path, body: str | bytes) -> None:
    """Write ``body``, whole or not at all; InputError where that cannot be done."""
    content = body if isinstance(body, bytes) else body.encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # such as /dev/stdout
            path.write_bytes(content)
        else:
            whole.put(path, content)
    except OSError as error:
        raise InputError(f"-o {path}: cannot be written: {error.strerror}") from error


def save_report(directory: Path, body: str) -> None:
    """The report of a run that has just ended; GpubenchError where it cannot be written."""
    try:
        save(directory / "report.html", body)
    except InputError as error:
        raise GpubenchError(
            f"{error}; every record is kept: make room, then "
            f"gpubench report {directory} -o {directory / 'report.html'}"
        ) from error

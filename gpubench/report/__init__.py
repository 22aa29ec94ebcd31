"""Reports: pure functions from record files to text; nothing heavy loads before one is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from gpubench.errors import InputError
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

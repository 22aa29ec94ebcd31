"""What ``@pytest.mark.gpubench(...)`` says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench.errors import SuiteError
from gpubench.suite import file
from gpubench.suite.schema import hint, show
from gpubench.suite.types import Axes, Policy, Workload, weights_file

if TYPE_CHECKING:
    import pytest

KEYS = (*Workload.__struct_fields__, *Axes.__struct_fields__, *Policy.__struct_fields__)
MARK = "@pytest.mark.gpubench"


def read(marks: Sequence[pytest.Mark], directory: Path) -> tuple[str, dict[str, Any]]:
    """(suite, its overrides) of a test's marks, the closest first; the closest wins, key by key.

    Paths are relative to ``directory``, that of the test's file. Raises SuiteError.
    """
    merged: dict[str, Any] = {}
    for mark in reversed(marks):
        merged |= _keywords(mark)
    suite = merged.pop("suite", None)
    names = [path.stem for path in file.shipped()]
    if not isinstance(suite, str) or not suite:
        given = "is missing" if suite is None else f"is {suite!r}"
        raise SuiteError(
            f"{MARK}: suite {given}; expected a path relative to the test's file, or one of "
            f"{', '.join(names)}"
        )
    for key in ("model", "weights", "images"):
        if key in merged:
            merged[key] = _placed(merged[key], directory, folder=key == "images")
    return suite if suite in names else str(directory / suite), merged


def reworded(error: SuiteError, chosen: Mapping[str, Any]) -> SuiteError:
    """With the mark's keywords in place of the command line's options: ``--batch-size = 0``."""
    words = str(error)
    for key in chosen:
        option = re.escape("--" + key.replace("_", "-"))
        words = re.sub(rf"{option}(?:\[\d+\])? = (.*?): ", rf"{MARK}({key}=\1): ", words)
    return SuiteError(words)


def _keywords(mark: pytest.Mark) -> dict[str, Any]:
    given = dict(mark.kwargs)
    if mark.args:
        if len(mark.args) > 1 or "suite" in given:
            raise SuiteError(f"{MARK}{mark.args!r}: one suite, then only keywords")
        given["suite"] = mark.args[0]
    for key in given:
        if key not in ("suite", *KEYS):
            known = hint(key, ("suite", *KEYS))
            raise SuiteError(f"{MARK}({key}={show(given[key])}): unknown keyword; {known}")
    return given


def _placed(value: object, directory: Path, *, folder: bool) -> object:
    """A path, or the name of what lies in ``directory``, from there; other words as they are.

    gpubench's own words ('probe', 'digits') are never names of files, nor is that of a network the
    name of a folder; only where a ``folder`` is expected, one is looked for.
    """
    from gpubench.workload.data.builtin import SOURCES
    from gpubench.workload.models.torch_model import KEYWORDS

    if not isinstance(value, str) or value in (*KEYWORDS, *SOURCES):
        return value
    path = directory / Path(value).expanduser()
    there = path.is_dir() if folder else Path(weights_file(str(path))[0]).is_file()
    return str(path) if there or "/" in value or value.endswith((".onnx", ".pt2")) else value

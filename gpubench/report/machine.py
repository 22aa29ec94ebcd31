"""JSON for programs: every table and, where asked for, comparisons. Times in ns, shares in 0..1."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpubench.analysis.cells import run_names
from gpubench.analysis.compare import CAVEAT, Comparison, exit_code
from gpubench.analysis.tables import build
from gpubench.record import RecordFile

FORMAT = 1
"""Version of this layout; a change that breaks readers raises it."""


def render(files: Sequence[RecordFile]) -> str:
    """``{format, runs: [{run, path, header, notes}], tables: [{title, columns, rows, notes}]}``."""
    runs = [
        {"run": name, "path": f.path, "header": f.header, "notes": f.notes}
        for name, f in zip(run_names(files), files, strict=True)
    ]
    return _text({"format": FORMAT, "runs": runs, "tables": build(files)})


def comparisons(found: Sequence[Comparison]) -> str:
    """``{format, exit_code, note, comparisons: [...]}``."""
    code = exit_code(found)
    return _text({"format": FORMAT, "exit_code": code, "note": CAVEAT, "comparisons": list(found)})


def _text(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode() + "\n"

"""A row for every repeat of every cell: the frame of `gpubench.read` as CSV and Parquet.

`gpubench report --format csv` has a row per cell and metric, with intervals; this is what lies
below it. An unknown value is empty.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from gpubench import plugins
from gpubench.records.record import RecordFile
from gpubench.report.csv_report import delimited
from gpubench.report.frames import COLUMNS, frame, rows


def csv(files: Sequence[RecordFile]) -> bytes:
    """With a header line. Text that a spreadsheet would run as a formula gets a leading quote."""
    return delimited(COLUMNS, (row.values() for row in rows(files))).encode()


def parquet(files: Sequence[RecordFile]) -> bytes:
    """The frame as a Parquet file. Raises InputError without pandas and pyarrow, an extra."""
    for package in ("pandas", "pyarrow"):
        plugins.need("parquet", package, extra="parquet")
    out = io.BytesIO()
    frame(files).to_parquet(out, engine="pyarrow", index=False)
    return out.getvalue()

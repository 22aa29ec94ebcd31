"""A row for every repeat of every cell: the frame of `gpubench.read` as CSV and Parquet.

`gpubench report --format csv` has a row per cell and metric, with intervals; this is what lies
below it. An unknown value is empty.
"""

from __future__ import annotations

import csv as writing
import io
from collections.abc import Sequence

from gpubench.errors import InputError
from gpubench.records.record import RecordFile
from gpubench.report.csv_report import harmless
from gpubench.report.frames import COLUMNS, frame, rows


def csv(files: Sequence[RecordFile]) -> bytes:
    """With a header line. Text that a spreadsheet would run as a formula gets a leading quote."""
    out = io.StringIO()
    writer = writing.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows(files):
        writer.writerow([harmless(row[name]) for name in COLUMNS])
    return out.getvalue().encode()


def parquet(files: Sequence[RecordFile]) -> bytes:
    """The frame as a Parquet file; needs pyarrow, without which it raises InputError."""
    out = io.BytesIO()
    try:
        frame(files).to_parquet(out, engine="pyarrow", index=False)
    except ImportError as error:
        raise InputError(
            "parquet needs pyarrow, which is not installed: pip install 'gpubench[parquet]'"
        ) from error
    return out.getvalue()

"""A row for every repeat of every cell, computed from its raw samples: CSV and Parquet.

`gpubench report --format csv` has a row per cell and metric, with intervals; this is what lies
below it. Times are ns, memory is bytes; an unknown value is empty.
"""

from __future__ import annotations

import csv as writing
import io
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import msgspec

from gpubench import samples
from gpubench.analysis.cells import Summary, summarise
from gpubench.errors import InputError
from gpubench.record import Record, RecordFile
from gpubench.report.delimited import CELL, harmless

if TYPE_CHECKING:
    import pandas as pd

TEXT, COUNT, NUMBER, TRUTH = "string", "Int64", "Float64", "boolean"
_CELL_COUNTS = ("batch_size", "replicas", "cores", "replicas_per_device", "loader_cores")

COLUMNS: dict[str, str] = {
    "run": TEXT, "suite": TEXT, "session": TEXT, "arm": TEXT, "fingerprint": TEXT, "cell": TEXT,
    **{name: COUNT if name in _CELL_COUNTS else TEXT for name in CELL}, "options": TEXT,
    "repeat": COUNT, "stage": TEXT, "order": TEXT, "status": TEXT, "kind": TEXT, "reason": TEXT,
    "flags": TEXT, "ranked": TRUTH, "invalidated": COUNT, "started": TEXT, "wall_s": NUMBER,
    "latency_median_ns": NUMBER, "latency_mean_ns": NUMBER, "latency_min_ns": NUMBER,
    "latency_max_ns": NUMBER, "images_per_s": NUMBER, "samples": COUNT, "truncated": COUNT,
    "iterations_per_sample": COUNT, "stop_reason": TEXT, "prepare_ns": COUNT, "open_ns": COUNT,
    "first_inference_ns": COUNT, "peak_host_bytes": COUNT, "parity_passed": TRUTH,
    "relative_error": NUMBER, "top1_agreement": NUMBER, "labelled": COUNT, "correct": COUNT,
    "reference_correct": COUNT, "path_agreement": NUMBER, "path_labelled": COUNT,
    "path_correct": COUNT, "peak_bytes": COUNT, "joules_per_image": NUMBER,
    "joules_per_image_above_idle": NUMBER,
}  # fmt: skip
"""Name -> type in the frame. ``options`` is JSON; several flags are separated by '; '."""


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


def frame(files: Sequence[RecordFile]) -> pd.DataFrame:
    """The rows with the types of `COLUMNS`, in which a missing value is pandas' NA."""
    import pandas as pd

    return pd.DataFrame(rows(files), columns=list(COLUMNS), dtype=object).astype(COLUMNS)


def rows(files: Sequence[RecordFile]) -> Iterator[dict[str, Any]]:
    """Values by the names of `COLUMNS`. A planned cell without any record has one row."""
    for file in files:
        head, pairing = file.header, file.header.pairing
        lead = {"suite": head.suite.name, "fingerprint": head.fingerprint,
                "session": pairing.session if pairing else None,
                "arm": pairing.arm if pairing else None}  # fmt: skip
        for s in summarise([file]):
            cell = {name: getattr(s.cell, name) for name in CELL}
            options = msgspec.json.encode(s.cell.options, order="sorted").decode()
            same = {"run": s.run, **lead, "cell": s.key, **cell, "options": options}
            for told in [_repeat(s, r) for r in s.records] or [
                {"status": s.status, "ranked": False}
            ]:
                yield dict.fromkeys(COLUMNS) | same | told


def _repeat(s: Summary, r: Record) -> dict[str, Any]:
    ranked = s.ranked and r.status == "ok" and bool(r.replicas)
    told = {
        "repeat": r.repeat, "stage": r.stage or None, "order": r.order or None,
        "status": r.status, "kind": r.kind or None, "reason": r.reason or None,
        "flags": "; ".join(r.flags) or None, "ranked": ranked, "invalidated": r.invalidated,
        "started": r.started or None, "wall_s": r.wall_s,
    }  # fmt: skip
    if r.parity:
        told |= {"parity_passed": r.parity.passed, "relative_error": r.parity.relative_error,
                 "top1_agreement": r.parity.top1_agreement, "labelled": r.parity.labelled,
                 "correct": r.parity.correct,
                 "reference_correct": r.parity.reference_correct}  # fmt: skip
    if r.path:
        told |= {"path_agreement": r.path.top1_agreement, "path_labelled": r.path.labelled,
                 "path_correct": r.path.correct}  # fmt: skip
    return told | _timings(r) if r.replicas else told


def _timings(r: Record) -> dict[str, Any]:
    """From the samples that lie in the common window of all replicas, over all visits."""
    inside = [ns for visit in r.visits for ns in samples.latencies_ns(visit)]
    every = [x for visit in r.visits for x in visit]
    told: dict[str, Any] = {
        "images_per_s": r.images_per_s(), "samples": len(inside),
        "truncated": sum(x.truncated for x in every),
        "iterations_per_sample": round(median(x.iterations for x in every)),
        "stop_reason": "; ".join(dict.fromkeys(x.stop_reason for x in every if x.stop_reason)),
        "prepare_ns": sum(r.prepare_ns.values()),
        "open_ns": max(x.open_ns for x in r.replicas),
        "first_inference_ns": max(x.first_inference_ns for x in r.replicas),
        "peak_host_bytes": sum(x.peak_host_bytes for x in r.replicas) or None,
        "peak_bytes": r.peak_bytes(), "joules_per_image": r.joules_per_image(),
        "joules_per_image_above_idle": r.joules_per_image(above_idle=True),
    }  # fmt: skip
    if inside:
        told |= {"latency_median_ns": r.median_ns(), "latency_mean_ns": fmean(inside),
                 "latency_min_ns": min(inside), "latency_max_ns": max(inside)}  # fmt: skip
    return told

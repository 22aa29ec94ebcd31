"""Notebooks: runs as pandas frames, `gpubench.read` and `gpubench.tables`; by an extra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import msgspec

from gpubench import plugins
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, summarise
from gpubench.analysis.tables.run import of_cells
from gpubench.analysis.tables.table import Column, Part, Table
from gpubench.records.reader import read_all
from gpubench.records.record import Record, RecordFile
from gpubench.report.csv_report import CELL, cell_values
from gpubench.report.sections import compare

if TYPE_CHECKING:
    import pandas as pd

    from gpubench.analysis.compare.compare import View

Paths = str | Path | Sequence[str | Path]

TEXT, COUNT, NUMBER, TRUTH = "string", "Int64", "Float64", "boolean"
_CELL_COUNTS = ("batch_size", "replicas", "cores", "replicas_per_device", "loader_cores")

COLUMNS: dict[str, str] = {
    "run": TEXT, "suite": TEXT, "session": TEXT, "arm": TEXT, "fingerprint": TEXT, "cell": TEXT,
    **{name: COUNT if name in _CELL_COUNTS else TEXT for name in CELL}, "options": TEXT,
    "preprocessing": TEXT, "repeat": COUNT, "order": TEXT, "status": TEXT,
    "kind": TEXT, "reason": TEXT, "flags": TEXT, "ranked": TRUTH, "invalidated": COUNT,
    "started": TEXT, "wall_s": NUMBER,
    "latency_median_ns": NUMBER, "latency_mean_ns": NUMBER, "latency_min_ns": NUMBER,
    "latency_max_ns": NUMBER, "images_per_s": NUMBER, "samples": COUNT, "truncated": COUNT,
    "iterations_per_sample": COUNT, "stop_reason": TEXT, "prepare_ns": COUNT, "open_ns": COUNT,
    "first_inference_ns": COUNT, "peak_host_bytes": COUNT, "parity_passed": TRUTH,
    "relative_error": NUMBER, "top1_agreement": NUMBER, "labelled": COUNT, "correct": COUNT,
    "reference_correct": COUNT, "pipeline_agreement": NUMBER, "pipeline_labelled": COUNT,
    "pipeline_correct": COUNT, "peak_bytes": COUNT, "joules_per_image": NUMBER,
    "joules_per_image_above_idle": NUMBER,
}  # fmt: skip
"""Name -> type in the frame of `read`."""


def read(path: Paths) -> pd.DataFrame:
    """Every repeat of every cell as a row, computed from its raw samples.

    ``path``: a run's directory or its record file, the directory of an A/B (both arms), or several
    of these. A cell that was planned and has no record is one row, of status 'missing'; failed and
    skipped repeats have rows too, with their ``kind`` and ``reason``.

    Columns (the frame of `gpubench export --format csv` and ``parquet``, then the options):

    - which run: ``run``, ``suite``, ``session`` and ``arm`` (of an A/B), ``fingerprint`` (of the
      machine);
    - which cell: ``cell`` (its key), its axes, such as ``backend``, ``batch_size`` and
      ``scenario``, ``options`` (as JSON), and each option as a column, such as ``option_spinning``;
    - how it went: ``repeat``, ``order`` (of an A/B's pair), ``status``, ``kind``,
      ``reason``, ``flags`` (separated by '; '), ``ranked`` (may be compared), ``invalidated``
      (attempts), ``started``, ``wall_s``;
    - times of a batch, while all replicas ran: ``latency_median_ns``, ``.._mean_ns``, ``.._min_ns``
      and ``.._max_ns`` over ``samples`` samples; ``images_per_s`` of all replicas; ``prepare_ns``,
      ``open_ns``, ``first_inference_ns``;
    - what it took: ``peak_host_bytes``, ``peak_bytes`` (with the GPU's), ``joules_per_image``,
      ``joules_per_image_above_idle``;
    - answers: ``parity_passed``, ``relative_error``, ``top1_agreement`` (0 to 1), ``labelled``,
      ``correct``, ``reference_correct``, and of the whole pipeline ``pipeline_...``.

    A missing value is pandas' NA. Raises RecordError for what is no run, or a damaged one, and
    InputError without the extra ``gpubench[pandas]``.

    >>> import gpubench
    >>> runs = gpubench.read("reports/reference/quick-epyc-2core")
    >>> good = runs[runs["ranked"] & (runs["scenario"] == "latency")]
    >>> (good.groupby(["backend", "batch_size"])["latency_median_ns"].median() / 1e6).round(2)
    """
    return of_files(read_all([path] if isinstance(path, str | Path) else path))


def of_files(files: Sequence[RecordFile]) -> pd.DataFrame:
    """The same of runs that are read already."""
    made = frame(files)
    import pandas as pd

    chosen = [msgspec.json.decode(each) for each in made["options"]]
    options = pd.DataFrame(chosen, index=made.index, dtype=object)
    return made.join(options.add_prefix("option_").convert_dtypes())


def tables(path: Paths) -> dict[str, pd.DataFrame]:
    """The report's tables by their titles, such as 'Latency per batch'; only those with rows.

    ``path`` is as for `read`; of several runs the rows say which ``run`` they are of. Of an A/B
    'Verdicts' comes first: a row per cell, with the fields of `gpubench report --format json`.

    A column is named as in the report, with its unit: ``p50 [ns]``, ``host memory [bytes]``,
    ``images/s``; shares (``efficiency``) are 0 to 1, and ratios (``speed-up``) and counts have no
    unit. A 95 % interval has columns of its own, ``p50 low [ns]`` and ``p50 high [ns]``, and so has
    a stage's share of the sum, ``decode share``. ``cell`` is the key that `read` has too. A missing
    value is pandas' NA. Raises as `read` does.

    >>> import gpubench
    >>> found = gpubench.tables("reports/reference/quick-epyc-2core")
    >>> found["Throughput"].nlargest(3, "images/s")[["backend", "batch"]]
    """
    return tables_of(*compare.view(read_all([path] if isinstance(path, str | Path) else path)))


def tables_of(summaries: list[Summary], view: View | None) -> dict[str, pd.DataFrame]:
    """The same of what is summarised, and compared, already."""
    plugins.need("tables as frames", "pandas", extra="pandas")
    import pandas as pd

    made = {table.title: _table(table) for table in of_cells(summaries)}
    if view is None:
        return made
    rows = [msgspec.structs.asdict(c) for c in compare.ordered(view.rows)]
    found = pd.DataFrame(rows).convert_dtypes()
    return {"Verdicts": found.astype(dict.fromkeys(_VERDICT_NUMBERS, NUMBER)), **made}


def _table(table: Table) -> pd.DataFrame:
    import pandas as pd

    columns = [_split(c, [row[n] for row in table.rows]) for n, c in enumerate(table.columns)]
    return pd.DataFrame(dict(chain(*columns)))


def _split(column: Column, values: list[Any]) -> Iterator[tuple[str, pd.Series[Any]]]:
    """One column, or one for each part of what it holds."""
    plain = column.unit in ("", column.name, *NO_UNIT)  # 'images/s' need not say its unit twice
    unit = "" if plain else f" [{column.unit}]"
    if any(isinstance(v, Estimate) for v in values):
        each = [v if isinstance(v, Estimate) else Estimate(value=v) for v in values]
        yield column.name + unit, _series([e.value for e in each], column)
        yield f"{column.name} low{unit}", _series([e.low for e in each], column)
        yield f"{column.name} high{unit}", _series([e.high for e in each], column)
    elif any(isinstance(v, Part) for v in values):
        parts = [v if isinstance(v, Part) else None for v in values]
        yield column.name + unit, _series([p and p.value for p in parts], column)
        yield f"{column.name} share", _series([p and p.share for p in parts], column)
    else:
        yield column.name + unit, _series(values, column)


def _series(values: list[Any], column: Column) -> pd.Series[Any]:
    """``values`` with a type that follows from ``column``, not from what rows happen to hold."""
    import pandas as pd

    if column.unit == "flags":
        return pd.Series(["; ".join(v) for v in values], dtype=TEXT)
    values = [None if v == "" else v for v in values]
    if column.unit == "" or any(isinstance(v, list) for v in values):  # of each replica
        return pd.Series(values, dtype=object).convert_dtypes()
    kind = {"key": TEXT, "count": COUNT}.get(column.unit, NUMBER)
    return pd.Series(values, dtype=kind)


NO_UNIT = ("x", "fraction", "share", "share of n", "count", "flags", "key")
"""Of a `Column`: what is no unit."""
_VERDICT_NUMBERS = ("baseline", "candidate", "ratio", "difference", "low", "high",
                    "smallest_detectable", "pair_sd", "p")  # fmt: skip


def frame(files: Sequence[RecordFile]) -> pd.DataFrame:
    """The rows with the types of `COLUMNS`; a missing value is pandas' NA."""
    plugins.need("runs as frames", "pandas", extra="pandas")
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
            same = dict.fromkeys(COLUMNS) | lead | cell_values(s)
            unknown = {"status": s.status, "ranked": False}
            yield from (same | told for told in [_repeat(s, r) for r in s.records] or [unknown])


def _repeat(s: Summary, r: Record) -> dict[str, Any]:
    ranked = s.ranked and r.status == "ok" and bool(r.replicas)
    told = {
        "repeat": r.repeat, "order": r.order or None,
        "status": r.status, "kind": r.kind or None, "reason": r.reason or None,
        "flags": "; ".join(r.flags) or None, "ranked": ranked, "invalidated": r.invalidated,
        "started": r.started or None, "wall_s": r.wall_s,
    }  # fmt: skip
    if r.parity:
        told |= {"parity_passed": r.parity.passed, "relative_error": r.parity.relative_error,
                 "top1_agreement": r.parity.top1_agreement, "labelled": r.parity.labelled,
                 "correct": r.parity.correct,
                 "reference_correct": r.parity.reference_correct}  # fmt: skip
    if r.pipeline:
        told |= {"pipeline_agreement": r.pipeline.top1_agreement,
                 "pipeline_labelled": r.pipeline.labelled,
                 "pipeline_correct": r.pipeline.correct}  # fmt: skip
    return told | _timings(r) if r.replicas else told


def _timings(r: Record) -> dict[str, Any]:
    """From the samples that lie in the common window of all replicas, over all visits."""
    inside = r.latencies_ns()
    every = [x for visit in r.visits for x in visit]
    told: dict[str, Any] = {
        "images_per_s": r.images_per_s(), "samples": len(inside),
        "truncated": sum(x.truncated for x in every),
        "iterations_per_sample": round(median(x.iterations for x in every)),
        "stop_reason": "; ".join(dict.fromkeys(x.stop_reason for x in every if x.stop_reason)),
        "prepare_ns": sum(r.prepare_ns.values()),
        "open_ns": max(x.open_ns for x in r.replicas),
        "first_inference_ns": max(x.first_inference_ns for x in r.replicas),
        "peak_host_bytes": r.host_bytes(),
        "peak_bytes": r.peak_bytes(), "joules_per_image": r.joules_per_image(),
        "joules_per_image_above_idle": r.joules_per_image(above_idle=True),
    }  # fmt: skip
    if inside:
        told |= {"latency_median_ns": r.median_ns(), "latency_mean_ns": fmean(inside),
                 "latency_min_ns": min(inside), "latency_max_ns": max(inside)}  # fmt: skip
    return told

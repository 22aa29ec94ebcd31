"""What the functions of `gpubench` give: a run, a comparison, a search, a plan.

Each shows itself as text, and in a notebook as tables; each can be opened again from its directory,
by `gpubench.open`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from rich.console import Group, RenderableType
from rich.text import Text

from gpubench import escape, plugins, units
from gpubench.analysis.best import Best, best
from gpubench.analysis.compare import aa_history
from gpubench.analysis.compare.compare import View, view
from gpubench.analysis.compare.verdicts import exit_code
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, rated, summarise
from gpubench.analysis.tune import result
from gpubench.cache import Cache
from gpubench.errors import GpubenchError, InputError
from gpubench.records.reader import EVIDENCE, read_all, read_arms
from gpubench.records.record import Record, RecordFile
from gpubench.report import FORMATS, Evidence, by_ending, frames, render, save, terminal
from gpubench.report import history as trends
from gpubench.report.sections import recommendation
from gpubench.suite import gate, goal
from gpubench.suite.types import MOST_ALPHA, Cell, Rule

if TYPE_CHECKING:
    import pandas as pd

    from gpubench.analysis.history.trend import Trend
    from gpubench.run.driver import RunJob
    from gpubench.run.plan import Skip


class Shown:
    """Base of all that is shown as text and, in a notebook, as tables."""

    if TYPE_CHECKING:  # each has its own; no ABC, which a Struct cannot be

        def _parts(self) -> Sequence[RenderableType]:
            """What a terminal would show."""

    def __rich__(self) -> RenderableType:
        return Group(*self._parts())

    def __repr__(self) -> str:
        """As the command line prints it."""
        return terminal.printed(self._parts()).rstrip("\n")

    def _repr_html_(self) -> str:
        """The same as HTML: self-contained, without a script."""
        from gpubench.report.html import notebook

        return notebook.page(self._parts())


class Stored(Shown, ABC):
    """Base of what lies in a directory."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        """Where its records are, and what was made of them."""

    def frame(self) -> pd.DataFrame:
        """Every repeat of every cell as a row: `gpubench.read` of the directory."""
        return frames.read(self.directory)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The report's tables by their titles: `gpubench.tables` of the directory."""
        return frames.tables(self.directory)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the whole report and return where; ``path``: .html (the default, report.html in
        the directory), .md, .txt, .csv or .json. Raises InputError."""
        place = Path(path) if path else self.directory / "report.html"
        save(place, self.document(by_ending(None, place, FORMATS, "html")))
        return place

    @abstractmethod
    def document(self, form: str = "text") -> str:
        """The report in one of 'text', 'html', 'md', 'csv', 'json'."""


class Fastest(Struct, frozen=True):
    """A configuration and what was measured of it."""

    cell: Cell
    """Its ``backend``, ``precision``, ``batch_size``, ``replicas``, ``options`` and so on."""
    p50_ns: Estimate
    """Median time of a batch, ns, with its 95 % interval (``value``, ``low``, ``high``)."""
    images_per_s: Estimate
    """Of all replicas, with its 95 % interval."""
    ties: list[Cell]
    """Configurations that may be the best as well, the better ones first."""

    def __repr__(self) -> str:
        """'openvino fp32 b8 x1 latency: 5,120 images/s, p50 1.56 ms'."""
        time, rate = self.p50_ns.value, self.images_per_s.value
        said = [f"{units.significant(rate)} images/s"] if rate else []
        said += [f"p50 {units.duration(time)}"] if time else []
        more = f"; {units.count(len(self.ties), 'configuration')} may be as fast" * bool(self.ties)
        return f"{self.cell.label}: {', '.join(said)}{more}"


class Run(Stored):
    """A run: of `gpubench.run`, or one that is stored."""

    def __init__(self, directory: str | Path, file: RecordFile) -> None:
        super().__init__(directory)
        self.file = file
        """Its header and records, raw."""

    @cached_property
    def summaries(self) -> list[Summary]:
        """A summary of every cell: medians, rates, intervals, flags."""
        return summarise([self.file])

    @property
    def fastest(self) -> Fastest | None:
        """The cell with the most images/s, of those that may be ranked; None: there is none.

        As in the report, of those that cannot be told apart the simplest.
        """
        return _fastest(best(rated(self.summaries), latency=False))

    @property
    def lowest_latency(self) -> Fastest | None:
        """The cell whose batches take the least time (p50); None: none was measured for that."""
        rows = [s for s in self.summaries if s.cell.scenario == "latency"]
        return _fastest(best(rows, latency=True))

    @property
    def ok(self) -> bool:
        """Whether something was measured, and nothing failed."""
        return _ok(self.file.records)

    @property
    def problems(self) -> list[str]:
        """Why cells were skipped or failed, each cause once, with its remedy."""
        return terminal.problem_lines(self.summaries)

    def document(self, form: str = "text") -> str:
        return render([self.file], form)

    def _parts(self) -> Sequence[RenderableType]:
        return [terminal.summary([self.file])]


def _ok(records: Iterable[Record]) -> bool:
    states = {record.status for record in records}
    return "ok" in states and "failed" not in states


def _fastest(found: Best | None) -> Fastest | None:
    if found is None:
        return None
    s = found.summary
    return Fastest(s.cell, s.p50, s.throughput, [tie.cell for tie in found.ties])


class Comparison(Stored):
    """An interleaved A/B: of `gpubench.ab`, or one that is stored."""

    def __init__(
        self, directory: str | Path, files: tuple[RecordFile, RecordFile], **judged: Any
    ) -> None:
        super().__init__(directory)
        self.files = files
        """Baseline and candidate, raw."""
        self._judged = judged

    def frame(self) -> pd.DataFrame:
        """Every repeat of every cell of both as a row, as of `gpubench.read`."""
        return frames.of_files(self.files)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """'Verdicts', and both runs' tables by their titles, as of `gpubench.tables`."""
        return frames.tables_of(self.view.summaries, self.view)

    @cached_property
    def view(self) -> View:
        """Everything that was computed from both."""
        return view(*self.files, **self._judged)

    @property
    def verdicts(self) -> dict[str, str]:
        """'REGRESSED', 'IMPROVED', 'EQUIVALENT', 'INCONCLUSIVE', ... by cell and metric; the whole
        of each is in ``tables['Verdicts']``."""
        return {f"{row.label}, {row.metric}": row.verdict for row in self.view.rows}

    @property
    def code(self) -> int:
        """As `gpubench ab` ends: 0 pass, 1 a regression, 3 inconclusive, 4 missing cells."""
        return exit_code(self.view.rows)

    def document(self, form: str = "text") -> str:
        return document(form, self.view, self.code, self.files)

    def _parts(self) -> Sequence[RenderableType]:
        return [terminal.comparison(self.view.rows, rule=self.view.rule, code=self.code)]


def document(form: str, view: View, code: int, files: Sequence[RecordFile] = ()) -> str:
    """Of a comparison; ``files``: of an A/B, whose text and CSV hold all of both arms."""
    from gpubench.report import json_report, markdown
    from gpubench.report.html import page

    if form == "html":
        return page.comparison(view, code)
    if form == "json":
        return json_report.comparisons(view.rows, rule=view.rule, code=code)
    if form == "md":
        return markdown.comparison(view.rows, rule=view.rule, code=code)
    return render(files, form)


class Search(Stored):
    """A search for the fastest configuration: of `gpubench.tune`, or one that is stored."""

    def __init__(self, directory: str | Path, file: RecordFile, evidence: Evidence | None) -> None:
        super().__init__(directory)
        self.file, self.evidence = file, evidence
        """Its trials, and the A/B that proves what it recommends (None: there is none)."""

    @cached_property
    def _view(self) -> result.View:
        return result.view(self.file, self.evidence)

    @property
    def best(self) -> Cell | None:
        """What it recommends; None: nothing keeps the limits."""
        return self._view.best.cell if self._view.best else None

    @property
    def suite(self) -> Path | None:
        """A suite of what it recommends alone, for `gpubench.run`; None where nothing is."""
        place = self.directory / "best.toml"
        return place if place.exists() else None

    @property
    def unconfirmed(self) -> bool:
        """Whether the A/B of what is recommended did not confirm its gain in time."""
        return self._view.unconfirmed

    def document(self, form: str = "text") -> str:
        return render([self.file], form, self.evidence)

    def _parts(self) -> Sequence[RenderableType]:
        return [Text(line) for line in recommendation.lines(self.file, self.evidence)]


class Fleet(Stored):
    """Runs of one suite on each kind of machine, side by side: of `gpubench.fleet`."""

    def __init__(
        self, directory: str | Path, found: Mapping[str, RecordFile | GpubenchError]
    ) -> None:
        super().__init__(directory)
        self.files = {k: file for k, file in found.items() if not isinstance(file, Exception)}
        """By the name of the kind of machine, raw; the one that others are compared with first."""
        self.failed = {k: why for k, why in found.items() if isinstance(why, Exception)}
        """Why a kind of machine measured nothing."""

    @property
    def ok(self) -> bool:
        """Whether every kind measured something, and nothing failed."""
        return not self.failed and _ok(r for file in self.files.values() for r in file.records)

    def document(self, form: str = "text") -> str:
        return render([*self.files.values()], form)

    def _parts(self) -> Sequence[RenderableType]:
        told = [terminal.fleet([*self.files.values()])] if self.files else []
        return [*told, *(Text(f"{name}: {why}") for name, why in self.failed.items())]


class History(Shown):
    """Every cell over many runs, and where it changed for good: of `gpubench.history`."""

    def __init__(self, trends: Sequence[Trend], rule: Rule, notes: Sequence[str]) -> None:
        self.trends, self.rule, self.notes = list(trends), rule, list(notes)
        """Of each cell its points, levels and changes; the limits; what was left out."""

    def frame(self) -> pd.DataFrame:
        """A row for every run of every cell: ``cell``, ``label``, ``run``, ``started``,
        ``commit``, ``value``, its ``unit`` (ns of a batch, or images/s), and ``changed``: whether
        a new level begins with it."""
        plugins.need("a history as a frame", "pandas", extra="pandas")
        import pandas as pd

        return pd.DataFrame(
            {"cell": t.key, "label": t.label, "run": p.run, "started": p.started,
             "commit": p.commit, "value": p.value.value, "unit": t.unit,
             "changed": n in {c.at for c in t.changes}}
            for t in self.trends for n, p in enumerate(t.points)
        )  # fmt: skip

    def report(self, path: str | Path) -> Path:
        """Write it: .html, .md, .txt or .json. Raises InputError."""
        place = Path(path)
        save(place, self.document(by_ending(None, place, trends.FORMATS)))
        return place

    def document(self, form: str = "text") -> str:
        """In one of 'text', 'html', 'md', 'json'."""
        return trends.render(self.trends, form, rule=self.rule, notes=self.notes)

    def _parts(self) -> Sequence[RenderableType]:
        return trends.parts(self.trends, self.rule, self.notes)


class Plan(Shown):
    """What a run would do. Nothing of it was run."""

    def __init__(self, job: RunJob, keys: bool = False) -> None:
        self.job = job
        """All that the run would need."""
        self._keys = keys

    @property
    def cells(self) -> list[Cell]:
        """Those that would be measured, in the suite's order."""
        return self.job.plan.cells

    @property
    def skips(self) -> list[Skip]:
        """Those that cannot be measured here: ``cell``, ``status``, ``reason`` and ``remedy``."""
        return self.job.plan.skips

    @property
    def seconds(self) -> float:
        """About how long measuring takes; what the cache lacks is prepared before."""
        from gpubench.run.plan import Durations, task_seconds  # on Windows there is no `run`

        policy, seen = self.job.plan.suite.policy, Durations(self.job.cache_dir)
        return sum(task_seconds(c, policy, seen) for c in self.cells) * policy.repeats

    def frame(self) -> pd.DataFrame:
        """A row for every planned cell: ``key``, its axes, ``status`` ('runs', 'unavailable' or
        'unsupported'), ``reason``, ``remedy``."""
        plugins.need("a plan as a frame", "pandas", extra="pandas")
        import pandas as pd

        return pd.DataFrame(list(self._rows()))

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        for cell in self.cells:
            yield {"key": cell.key} | _axes(cell) | {"status": "runs", "reason": "", "remedy": ""}
        for skip in self.skips:
            told = {"status": skip.status, "reason": skip.reason, "remedy": skip.remedy}
            yield {"key": skip.cell.key} | _axes(skip.cell) | told

    def _parts(self) -> Sequence[RenderableType]:
        from gpubench.run import plan_view

        return [plan_view.tables(self.job, self._keys)]


def _axes(cell: Cell) -> dict[str, Any]:
    return msgspec.structs.asdict(cell) | {"options": dict(cell.options)}


def open(path: str | Path) -> Run | Comparison | Search:  # noqa: A001  # as `gzip.open` is called
    """What is stored in a directory: a run, an A/B or a search, however it was made.

    Raises RecordError for what is none, or damaged. No model and no code of anybody is loaded.

    >>> import gpubench
    >>> gpubench.open("reports/reference/quick-epyc-2core").fastest
    """
    place = as_path(path)
    files = read_all([path])
    place = place if place.is_dir() else place.parent
    if len(files) == 2:
        return Comparison(place, (files[0], files[1]))
    if len(files) != 1:
        raise InputError(f"{path}: holds {len(files)} runs; name one of them")
    if files[0].header.search:
        return Search(place, files[0], read_arms(place / EVIDENCE))
    return Run(place, files[0])


def as_path(path: str | Path, of: str = "a directory, or of a record file") -> Path:
    """Raises InputError for what is none."""
    if not isinstance(path, str | Path):
        raise InputError(f"{path!r}: expected the path of {of}")
    return Path(path)


def _limits(delta: float | str | None, alpha: float | str | None) -> dict[str, Any]:
    """Those of a `Rule` that are given."""
    margin = {} if delta is None else {"delta": goal.percentage("--delta", str(delta))}
    chance = {} if alpha is None else {"alpha": goal.percentage("--alpha", str(alpha), MOST_ALPHA)}
    return margin | chance


def compare(
    baseline: str | Path,
    candidate: str | Path | None = None,
    *,
    delta: float | str | None = None,
    alpha: float | str | None = None,
    metric: str | Sequence[str] | Mapping[str, float] = (),
    allow_different: str | Sequence[str] = (),
    history: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Comparison:
    """Compare two stored runs cell by cell, or what an A/B's directory alone holds.

    ``delta``, ``alpha`` and ``metric`` as of `ab`; ``allow_different``: what may differ between
    the machines, such as 'libraries'. ``history``: A/A sessions, whose spread tells what may be
    chance; by default what `gpubench selftest` kept of this machine in the cache; without any,
    verdicts are warnings. Raises RecordError, InputError.
    """
    limits = _limits(delta, alpha)
    both = [baseline, candidate] if candidate else [baseline]
    files = read_all(list(map(as_path, both)))
    if len(files) != 2:
        raise InputError(f"compare needs two runs, or the directory of an A/B; got {len(files)}")
    before, after = files
    if candidate and before.header.run_id == after.header.run_id:
        escape.tell(f"both are the same run, {before.header.run_id}: no difference can show")
    if history and not Path(history).is_dir():
        raise InputError(f"--history {history}: no such directory")
    root = Cache(Path(cache_dir) if cache_dir else None).root
    kept = Path(history) if history else aa_history.directory(root, before.header.fingerprint)
    sessions = aa_history.load(kept, escape.tell)
    if history and not sessions:
        raise InputError(
            f"--history {history}: no session in it; expected record files (*.jsonl), as "
            "gpubench selftest keeps them"
        )
    made = Comparison(
        candidate or baseline, (before, after), **limits, history=sessions,
        allow_different=gate.words(allow_different), judged=gate.words(metric),
    )  # fmt: skip
    _ = made.view  # what is wrong with the words is told now
    return made


def history(
    directory: str | Path, *, delta: float | str | None = None, alpha: float | str | None = None
) -> History:
    """The trend of every cell over all runs below ``directory``, and where it changed for good.

    ``delta``: changes up to this much are not reported (0.02, '2%'); ``alpha``: the chance of a
    false change in the whole list. Raises InputError.
    """
    from gpubench.analysis.history import trend

    rule, notes = Rule(**_limits(delta, alpha)), list[str]()
    runs = trend.find(as_path(directory), notes.append)
    return History(trend.trends(runs, rule.delta, rule.alpha), rule, notes)


def export(
    paths: str | Path | Sequence[str | Path],
    format: str,  # noqa: A002  # the command's word
    output: str | Path | None = None,
) -> dict[str, bytes]:
    """Results for other tools: the files' contents by their names, '' where it is one.

    ``paths``: runs; of an A/B the candidate counts, in 'csv' and 'parquet' both arms. ``format``:
    'pytest-benchmark', 'github-action-benchmark', 'bencher', 'openmetrics', 'junit', 'csv' or
    'parquet'. ``output``: written there, too: a file; of github-action-benchmark a directory.
    Raises RecordError, InputError.
    """
    from gpubench.report import exports

    files = read_all(list(map(as_path, [paths] if isinstance(paths, str | Path) else paths)))
    found = None
    if format == "junit":
        kept = aa_history.directory(Cache(None).root, files[0].header.fingerprint)
        found = exports.verdicts_on(files, history=aa_history.load(kept, escape.tell))
    documents = exports.export(files, format, found)
    for line in exports.left_out(files, format):
        escape.tell(f"left out: {line}")
    if output is not None:
        for name, content in documents.items():
            save(Path(output, name) if name else Path(output), content)
    return documents

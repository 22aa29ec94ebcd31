"""What the tests of one pytest run want measured, and the measuring of it, suite by suite.

All selected cells of a suite (with one policy) are one run of `gpubench.run.driver`: prepared once,
measured by one agent in rounds of random order, recorded in an ordinary record file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import pytest

from gpubench import escape
from gpubench.errors import SuiteError
from gpubench.machine import environment, processes
from gpubench.pytest_plugin import marks
from gpubench.pytest_plugin.items import CellItem, repetition, wanted_of, will_be_skipped
from gpubench.pytest_plugin.result import Result, replay
from gpubench.pytest_plugin.suite_runs import Run, Wanted, Watch
from gpubench.records.record import RECORDS
from gpubench.run import setup
from gpubench.suite.file import find

QUICK: dict[str, Any] = {
    "repeats": 1,
    "warmup_iterations": 1,
    "warmup_s": 0.001,
    "duration_s": 0.001,
    "block_s": 0.001,
}
"""The policy under ``--benchmark-disable``: answers are checked, times are of no account."""
XDIST = (
    "several processes of pytest-xdist would disturb each other's times -> "
    "run it without -n, or with -n 0"
)


class Bench:
    """The state of one pytest run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        option = config.getoption
        self._quick = bool(option("benchmark_disable", False) and not option("benchmark_enable"))
        self._overrides: dict[str, Any] = dict(QUICK) if self._quick else {}
        if option("gpubench_repeats"):
            self._overrides["repeats"] = option("gpubench_repeats")
        self._wanted: dict[tuple[Path, str], list[Wanted]] = {}
        self._runs: dict[tuple[object, ...], Run] = {}
        self.results: dict[str, Result] = {}
        """By the test's node id."""
        self._begun: set[str] = set()
        """Node ids of tests that were run."""
        self._ending = processes.Ending()
        self.compared: list[dict[str, Any]] = []
        """The documents of ``--benchmark-compare``, with `facts`."""

    def want(self, suite: str, chosen: Mapping[str, Any]) -> list[Wanted]:
        """The cells of a suite under overrides. Raises GpubenchError where there is a mistake."""
        chosen = {**chosen, **self._overrides}
        path = find(suite).resolve()  # one run, whichever way tests name it
        key = path, json.dumps(chosen, sort_keys=True, default=repr)
        if key not in self._wanted:
            cache = self._config.getoption("gpubench_cache_dir")
            session = setup.session(suite, chosen, cache, Path(), False, ())
            run = self._runs.setdefault((path, session.plan.suite.policy), Run(session))
            run.add(session)
            self._wanted[key] = [Wanted(run, cell) for cell in session.plan.planned]
        return self._wanted[key]

    def of_marks(self, said: Sequence[pytest.Mark], directory: Path) -> list[Wanted]:
        """The cells of a marked test: see `marks.read`."""
        suite, chosen = marks.read(said, directory)
        try:
            return self.want(suite, chosen)
        except SuiteError as error:
            raise marks.reworded(error, chosen) from None

    def check_options(self) -> None:
        """``--gpubench-require`` must name what is collected, and records need a free place."""
        has = sorted({cell.backend for run in self._runs.values() for cell in run.cells})
        for name in self._config.getoption("gpubench_require"):
            if name not in has:
                words = f"--gpubench-require {name!r}: no test of it; there are tests of {has}"
                raise pytest.UsageError(words)
        root, names = self._config.getoption("gpubench_records"), set[str]()
        for run in self._runs.values() if root and not self._config.option.collectonly else ():
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.name)
            others = (f"{name}-{number}" for number in count(2))
            run.wish = root / next(n for n in chain([name], others) if n not in names)
            names.add(run.wish.name)
            if (run.wish / RECORDS).exists():
                words = f"--gpubench-records {root}: {run.wish} holds a run already; name another"
                raise pytest.UsageError(words)

    def begins(self, item: pytest.Item, wanted: Wanted) -> None:
        """``item`` is run: the second time it is measured anew."""
        if item.nodeid in self._begun:
            self.make_ready(item, wanted, again=True)
        self._begun.add(item.nodeid)

    def make_ready(self, item: pytest.Item, wanted: Wanted, *, again: bool = False) -> None:
        """Measure what ``item`` needs, if that is still to be done, and mark it accordingly.

        ``again``: although it was; so is every repetition of a test but its first.
        """
        run, cell = wanted
        required: tuple[str, ...] = self._config.getoption("gpubench_require")
        if os.environ.get("PYTEST_XDIST_WORKER"):
            must = cell.backend in required
            skip, failure = XDIST, f"--gpubench-require {cell.backend}: {XDIST}" if must else ""
        else:
            if again or repetition(item):
                run = run.again(cell)
                self._runs[cell.key, item.nodeid, len(self._runs)] = run
            if not run.done:
                mine = (
                    w for i in item.session.items if not will_be_skipped(i) and (w := wanted_of(i))
                )
                keys = {w.cell.key for w in mine if w.run is run} or {cell.key}
                self._enter()
                run.measure(keys, required, Watch(item.session, run.name))
            skip, failure = run.verdict(cell)
        test = item.name if isinstance(item, CellItem) else ""
        result = Result(run.summary(cell), failure=failure, timed=not self._quick, about=run.about,
                        test=test)  # fmt: skip
        self.results[item.nodeid] = result
        if skip and not failure:
            item.add_marker(pytest.mark.skip(reason=f"{cell.label}: {skip}"))
            return
        own = item.get_closest_marker("benchmark")
        options = {**(own.kwargs if own else {}), "timer": replay(result.rounds_s)}
        item.add_marker(pytest.mark.benchmark(**options), append=False)

    def _enter(self) -> None:
        """There is something to clean up from now on."""
        if not any(run.done for run in self._runs.values()):
            self._ending.__enter__()

    def facts(self) -> dict[str, Any]:
        """For pytest-benchmark's JSON: what must be equal for two of them to be comparable."""
        for run in self._runs.values():
            if run.file is not None:
                here = run.file.header.environment
                return {"gpubench": {"comparable": environment.comparable(here)}}
        return {}

    def show(self, terminal: pytest.TerminalReporter) -> None:
        """gpubench's own table of every run; what makes a comparison doubtful."""
        from rich.console import Console

        from gpubench.report import terminal as report_terminal

        for run in self._runs.values():
            if run.file is None or self._quick or self._config.get_verbosity() < 0:
                continue
            terminal.section(f"gpubench: {run.name}")
            width = max(80, shutil.get_terminal_size((120, 50)).columns)
            console = Console(
                width=width, force_terminal=terminal.hasmarkup, no_color=not terminal.hasmarkup
            )
            with console.capture() as capture:
                console.print(report_terminal.summary([run.file]))
            text = capture.get()  # in what pytest's own stream can show
            terminal.write(
                text.encode(sys.stdout.encoding, escape.PLAIN).decode(sys.stdout.encoding)
            )
            if run.wish:
                terminal.write_line(f"records: {run.file.path}")
        here = self.facts()
        measured = {r.fullname or name for name, r in self.results.items() if r.rounds_s}
        for there in self.compared if here else ():
            new = sorted(measured - {known.get("fullname") for known in there["benchmarks"]})
            if new:
                words = f"{len(new)} of {len(measured)} are not in the run that is compared with"
                words = f"{words}, such as {new[0]}: nothing says whether they became slower"
                terminal.write_line(words, yellow=True)
            one, two = here["gpubench"]["comparable"], there["gpubench"].get("comparable", {})
            differ = sorted(k for k in one.keys() | two.keys() if one.get(k) != two.get(k))
            if differ:
                words = f"compared with a run under other conditions ({', '.join(differ)})"
                words = f"{words}: a difference need not be the code's"
                terminal.write_line(escape.terminal(words), yellow=True)

    def clean(self) -> None:
        """Remove records that nobody asked for, unless a failure's log lies beside them."""
        for run in self._runs.values():
            run.clean()
        if any(run.done for run in self._runs.values()):
            self._ending.__exit__()

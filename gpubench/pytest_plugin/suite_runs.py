"""The cells that are measured together, and how a person is told meanwhile."""

from __future__ import annotations

import shutil
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from gpubench import escape
from gpubench.analysis.summary import Summary, summarise
from gpubench.errors import GpubenchError
from gpubench.pytest_plugin.result import why_failed, why_skipped
from gpubench.records.reader import read
from gpubench.records.record import RECORDS, WRONG, Record, RecordFile
from gpubench.report.exports.naming import short_name
from gpubench.run import driver
from gpubench.run.plan import Plan, Skip
from gpubench.run.watcher import Watcher
from gpubench.suite.types import Cell
from gpubench.units import clock

FLAGS = ("--benchmark-enable", "--benchmark-disable", "--benchmark-only", "-x", "-q", "-v", "-s")


class Wanted(NamedTuple):
    """What one test is about."""

    run: Run
    cell: Cell

    @property
    def name(self) -> str:
        """The test's id."""
        return short_name(self.cell)

    def __repr__(self) -> str:
        return self.name


class Run:
    """The cells that are measured together: of one suite file, under one policy."""

    def __init__(self, session: driver.RunJob) -> None:
        self._job, self._suite = session, session.plan.suite
        self._backends = dict(session.backends)
        self._cells: dict[str, Cell] = {}
        self._skips: dict[str, Skip] = {}
        self.name = self._suite.name
        self.wish: Path | None = None
        """Where the user wants the records; else they are temporary."""
        self.about: dict[str, Any] = {"suite": self.name}
        self._again = 0
        self.file: RecordFile | None = None
        self._out: Path | None = None
        self._summaries: dict[str, Summary] = {}
        self._broke = self._ended = ""

    @property
    def done(self) -> bool:
        """Measured, or tried in vain."""
        return self._out is not None

    @property
    def cells(self) -> list[Cell]:
        """All that tests are about, runnable here or not."""
        return [*self._cells.values(), *(skip.cell for skip in self._skips.values())]

    def add(self, session: driver.RunJob) -> None:
        """More cells of the same suite."""
        self._backends |= session.backends
        self._cells |= {cell.key: cell for cell in session.plan.cells}
        self._skips |= {skip.cell.key: skip for skip in session.plan.skips}

    def again(self, cell: Cell) -> Run:
        """Of ``cell`` alone, for a test that is run once more."""
        self._again += 1
        made = Run(self._job)
        made._backends, made.name = self._backends, f"{self.name}, again ({self._again})"
        made._cells = {key: one for key, one in self._cells.items() if key == cell.key}
        made._skips = {key: one for key, one in self._skips.items() if key == cell.key}
        made.wish = self.wish and self.wish.with_name(f"{self.wish.name}-again-{self._again}")
        return made

    def measure(self, keys: set[str], required: tuple[str, ...], watch: Watch) -> None:
        """Measure the cells with these keys. What goes wrong is told by `verdict`."""
        self._out = out = self.wish or Path(tempfile.mkdtemp(prefix="gpubench-pytest-"))
        cells = [cell for key, cell in self._cells.items() if key in keys]
        skips = [skip for key, skip in self._skips.items() if key in keys]
        plan = Plan(self._suite, cells, skips, self._job.plan.cores)
        header, command = self._job.header, ["pytest", *watch.words]
        here = header.environment | {"command": command}
        header = replace(header, planned=plan.planned, command=command, environment=here)
        self.about |= {"run_id": header.run_id, "fingerprint": header.fingerprint}
        try:
            job = replace(self._job, plan=plan, backends=self._backends, header=header, out=out,
                          required=required)  # fmt: skip
            driver.run(job, watch)
        except EnoughFailures as error:
            self._ended = str(error)
        except GpubenchError as error:
            self._broke = f"{self.name}: {error}"
        except Exception as error:  # noqa: BLE001  # these tests' failure, not the end of all others
            self._broke = "".join(traceback.format_exception(error))
        if (out / RECORDS).is_file():
            self.file = read(out)
            self._summaries = {s.key: s for s in summarise([self.file])}

    def summary(self, cell: Cell) -> Summary:
        """What was measured of ``cell``."""
        found = self._summaries.get(cell.key)
        if found is not None:
            return found
        policy, baseline = self._suite.policy, self._suite.baseline
        return Summary(run="", baseline=baseline, policy=policy, cell=cell, records=[])

    def verdict(self, cell: Cell) -> tuple[str, str]:
        """(why the test of ``cell`` is skipped, why it fails); empty where it does not."""
        summary = self.summary(cell)
        failure = why_failed(summary)
        if failure:
            crashed = any(r.status == "failed" and r.kind not in WRONG for r in summary.records)
            log = f"\n  log: {self._log}" if crashed and self._log else ""
            return "", escape.terminal(failure + log)
        skip = escape.terminal(why_skipped(summary))
        if skip or len(summary.records) >= self._suite.policy.repeats:
            return skip, ""
        if self._ended or self._broke:
            return self._ended, self._broke
        return "", f"{cell.label}: not measured"

    @property
    def _log(self) -> Path | None:
        """Of the agent: tracebacks, and what libraries printed; None where there is nothing."""
        log = self._out / "agent.log" if self._out else None
        return log if log and log.is_file() and log.stat().st_size else None

    def clean(self) -> None:
        """Remove records that nobody asked for, unless a failure's log lies beside them."""
        failed = self.file is None or any(r.status == "failed" for r in self.file.records)
        if self._out and not self.wish and not (failed and self._log):
            shutil.rmtree(self._out, ignore_errors=True)


def repeatable(args: Sequence[object], directory: Path) -> list[str]:
    """Of pytest's command line what measures again: files and tests, ``-k``, ``-m``, ``-p``, ours.

    Nothing else: other plug-ins' options may hold addresses of databases and tokens, and a value
    in brackets of a test's name may too.
    """
    kept: list[str] = []
    valued = False  # is the next word the value of an option that is kept?
    for word in map(str, args):
        if word.startswith("-"):
            name, given, _ = word.partition("=")
            takes = name in ("-k", "-m", "-p") or name.startswith("--gpubench-")
            kept += [word] if takes or name in FLAGS else []
            valued = takes and not given
        elif valued or (directory / word.partition("::")[0]).exists():
            kept.append(word if valued else word.partition("[")[0])
            valued = False
    return kept


class EnoughFailures(Exception):
    """As many cells failed as ``-x`` or ``--maxfail`` allow."""


class Watch(Watcher):
    """Says on the terminal what is in hand, and ends the run when pytest would end."""

    def __init__(self, session: pytest.Session, name: str) -> None:
        config = session.config
        self.words = repeatable(config.invocation_params.args, config.invocation_params.dir)
        self._name, self._session = name, session
        self._terminal = config.pluginmanager.get_plugin("terminalreporter")
        if config.get_verbosity() < 0:
            self._terminal = None
        self._said = ""
        self._failed: set[str] = set()
        self._most: int = config.getoption("maxfail") or 0

    def task(self, cell: Cell | None, words: str, remaining_s: float) -> None:  # noqa: ARG002
        if words == self._said or self._terminal is None:
            return
        self._said = words
        left = f", about {clock(remaining_s)} left" if remaining_s else ""
        self._terminal.ensure_newline()
        self._terminal.write_line(f"gpubench {self._name}: {words}{left}")

    def recorded(self, record: Record, arm: str = "") -> None:  # noqa: ARG002
        if record.status != "failed":
            return
        self._failed.add(record.cell.key)
        if self._most and self._session.testsfailed + len(self._failed) >= self._most:
            words = f"measuring ended when {record.cell.label} failed (-x or --maxfail)"
            raise EnoughFailures(words)

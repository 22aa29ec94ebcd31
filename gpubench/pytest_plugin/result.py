"""What a test gets of its cell, and what pytest-benchmark is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import pytest

from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import UNTRIED, Summary, flags_of, problems
from gpubench.errors import CellFailed
from gpubench.records.parity import Parity
from gpubench.records.record import FAILURES, LABELLING, Record
from gpubench.report.exports import naming
from gpubench.suite.types import Cell


class Result:
    """A measured cell. Asking for a time under ``--benchmark-disable`` skips the test."""

    def __init__(
        self, summary: Summary, *, failure: str, timed: bool, about: dict[str, Any], test: str = ""
    ) -> None:
        """``failure``: why the test must fail, or ''. ``about``: goes into ``extra_info``.
        ``test``: the name of the test where it is a suite file's; '': it has code, and its own."""
        self._summary, self._timed, self._about, self._test = summary, timed, about, test
        if not failure and timed and summary.timed and not summary.values:
            failure = f"{summary.cell.label}: no repeat has a value; flags: {self.flags}"
        self._failure = failure

    def __repr__(self) -> str:
        return f"<gpubench {self.label}>"

    @property
    def cell(self) -> Cell:
        """What was measured."""
        return self._summary.cell

    @property
    def label(self) -> str:
        """'onnxruntime fp32 b1 x1 latency'."""
        return self.cell.label

    @property
    def records(self) -> list[Record]:
        """One for each repeat, with every raw sample in ns."""
        return self._summary.records

    @property
    def flags(self) -> tuple[str, ...]:
        """Why to be careful: keys of `records.record.FLAGS`, and what the report adds to them."""
        return tuple(flags_of(self._summary))

    @property
    def p50_ms(self) -> float:
        """Time per batch: the median of each repeat, averaged over repeats (mean of logs)."""
        return self._number(self._latency(self._summary.p50)) / 1e6

    def percentile_ms(self, q: float) -> float:
        """Time per batch, percentile ``q`` (0.99) over all samples; fails where n is too small."""

        __tracebackhide__ = True
        if not 0 < q < 1:
            raise ValueError(
                f"percentile_ms({q!r}): expected a share between 0 and 1, such as 0.99"
            )
        return self._number(self._latency(self._summary.percentile(q))) / 1e6

    @property
    def images_per_s(self) -> float:
        """Images of all replicas completed while all of them ran / that time."""
        return self._number(self._summary.throughput)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of the scenario's metric, relative; None with one repeat, inf
        where repeats differ so much that no interval is shown."""
        self._number(self._summary.value)
        return self._summary.value.relative_half_width

    @property
    def parity(self) -> Parity | None:
        """The worst check of answers of all repeats; None where the backend computes nothing."""
        return self._summary.parity

    @property
    def agreement(self) -> float:
        """Share of answers whose top class is the fp32 reference's: 1 is all."""
        return self._checked().top1_agreement

    @property
    def accuracy(self) -> float:
        """Share of the labelled images that were answered rightly every time."""
        checked = self._checked()
        if not checked.labelled:
            whys = (str(r.facts[LABELLING]) for r in self._summary.timed if LABELLING in r.facts)
            pytest.fail(f"{self.label}: {next(whys, 'its images have no labels')}", pytrace=False)
        return checked.correct / checked.labelled

    @property
    def rounds_s(self) -> list[float]:
        """pytest-benchmark's rounds, s: one a repeat (see the package's docstring)."""
        return naming.rounds_s(self._summary)

    @property
    def fullname(self) -> str:
        """What its baseline is found by; '': the test's node id."""
        return naming.full_name(self._about["suite"], self._test) if self._test else ""

    def _latency(self, estimate: Estimate) -> Estimate:
        if self.cell.scenario == "latency":
            return estimate
        return Estimate(why="the throughput scenario has no time per batch; see images_per_s")

    def _number(self, estimate: Estimate) -> float:
        __tracebackhide__ = True
        if self._failure:
            pytest.fail(self._failure, pytrace=False)
        if not self._timed:
            pytest.skip("nothing is timed with --benchmark-disable")
        if estimate.value is None:
            pytest.fail(f"{self.label}: {estimate.why}", pytrace=False)
        return estimate.value

    def _checked(self) -> Parity:
        __tracebackhide__ = True
        if self._failure:
            pytest.fail(self._failure, pytrace=False)
        if self.parity is None:
            pytest.fail(f"{self.label}: its answers were not checked", pytrace=False)
        return self.parity

    # -------------------------------------------------------------------- pytest-benchmark

    def hand_over(self, benchmark: Any) -> None:
        """Tell the fixture ``benchmark`` the rounds; its timer must be `replay` of them.

        A failure goes through it too, so that it neither counts as a benchmark nor is missed.
        """
        __tracebackhide__ = True
        others = {k: v for k, v in (benchmark.params or {}).items() if k != "gpubench"}
        benchmark.params = others | naming.params(self.cell)
        benchmark.param = benchmark.param or self.label
        benchmark.group = benchmark.group or naming.GROUPS[self.cell.scenario]
        benchmark.fullname = self.fullname or benchmark.fullname
        benchmark.extra_info.update(naming.extra_info(self._summary, self._timed) | self._about)
        try:
            benchmark.pedantic(self._run, rounds=max(1, len(self.rounds_s)))
        except CellFailed as error:
            failure = error.reason
        else:
            return
        pytest.fail(failure, pytrace=False)

    def _run(self) -> None:
        if self._failure:
            raise CellFailed("error", self._failure)


def replay(durations_s: Sequence[float]) -> Callable[[], float]:
    """A timer for pytest-benchmark: one round after the other took exactly so long.

    It starts again at the end, for a plug-in that runs a test once more. Without durations it reads
    0: for a failed cell, whose failure pytest-benchmark meets after reading the clock.
    """
    readings = cycle([reading for duration in durations_s for reading in (0.0, duration)])

    def measured_by_gpubench() -> float:
        return next(readings, 0.0)

    return measured_by_gpubench


def why_failed(summary: Summary) -> str:
    """What a failed test says: kind, reason and remedy of every problem; '' without a failure."""
    lines = []
    for problem in problems([summary], alone=True):
        if not problem.status.startswith("failed"):
            continue
        kind = problem.status.removeprefix("failed: ")
        some = "" if problem.repeats == "all" else f" in repeat {problem.repeats}"
        lines.append(f"{summary.cell.label}: {problem.status}{some} ({FAILURES.get(kind, kind)})")
        lines.append(f"  {problem.reason}")
        if problem.remedy:
            lines.append(f"  remedy: {problem.remedy}")
    return "\n".join(lines)


def why_skipped(summary: Summary) -> str:
    """'unavailable: reason -> remedy' where this machine, or the backend, cannot do the cell."""
    for problem in problems([summary], alone=True):
        if problem.status in ("unavailable", "unsupported", *UNTRIED):
            remedy = f" -> {problem.remedy}" if problem.remedy else ""
            return f"{problem.status}: {problem.reason}{remedy}"
    return ""

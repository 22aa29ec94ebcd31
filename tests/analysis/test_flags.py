"""Flags of a row, from those of its repeats; and what a run whose rows share them says instead."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from gpubench.analysis.resolution import resolution, sentence
from gpubench.analysis.summary import Summary, flags_of, log_speedup, summarise
from gpubench.records.record import FLAGS, RecordFile
from gpubench.records.samples import Samples
from gpubench.report.sections import headline
from tests.report import make

CELLS = make.grid(backends=("torch-eager", "openvino"), batches=(1, 8), replicas=(1,))[:4]


def flagged(*repeats: Sequence[str], cells: int = 1, **changes) -> RecordFile:
    """A run whose first ``cells`` cells have these flags, repeat after repeat."""
    changes = {"samples": 40, "sigma": 0.01, "launch": 0.01} | changes
    file = make.run(CELLS, repeats=len(repeats), **changes)
    keys = {c.key for c in CELLS[:cells]}
    return replace(file, records=[
        replace(r, flags=[*repeats[r.repeat]]) if r.cell.key in keys else r for r in file.records
    ])  # fmt: skip


def row(*repeats: Sequence[str], **changes) -> Summary:
    return summarise([flagged(*repeats, **changes)])[0]


@pytest.mark.parametrize(
    ("repeats", "of_the_row"),
    [
        ([["THROTTLED"], [], []], []),
        ([["THROTTLED"], ["THROTTLED", "THROTTLED"], []], ["THROTTLED"]),
        ([["CO-TENANT"], [], ["CO-TENANT"], []], []),
        ([["THROTTLED"]], ["THROTTLED"]),
        ([["CPU-BUSY", "CPU-WITHHELD"]] * 3, ["CPU-WITHHELD"]),
        ([["CPU-BUSY"], ["CPU-BUSY"], ["CPU-WITHHELD"]], ["CPU-BUSY"]),
    ],
)
def test_a_row_has_the_flags_of_most_repeats(repeats, of_the_row) -> None:
    """Of two with one cause, the nearer one."""
    assert flags_of(row(*repeats)) == of_the_row


@pytest.mark.parametrize("sigma", [0.001, 0.2])
@pytest.mark.parametrize("samples", [4, 7])
def test_few_samples_matter_below_five_or_by_their_noise(samples: int, sigma: float) -> None:
    found = row(*[["FEW-SAMPLES"]] * 9, samples=samples, sigma=sigma, launch=0.03, seed=1)
    assert ("FEW-SAMPLES" in found.flags) == (samples < 5 or sigma > 0.1)


@pytest.mark.parametrize(("launch", "counts"), [(0.002, True), (0.1, False)])
def test_a_drift_that_the_interval_covers_changes_nothing(launch: float, counts: bool) -> None:
    file = flagged(*[["DRIFT"]] * 3, launch=launch, sigma=0.001)

    def rising(s: Samples) -> Samples:
        n = len(s.durations_ns)
        moved = [round(d * (1 + 0.06 * i / n)) for i, d in enumerate(s.durations_ns)]
        return replace(s, durations_ns=moved)

    records = [replace(r, replicas=[rising(s) for s in r.replicas]) for r in file.records]
    assert ("DRIFT" in summarise([replace(file, records=records)])[0].flags) is counts


def test_an_interval_that_tells_little_is_marked() -> None:
    assert flags_of(row([], [], [], launch=0.3)) == ["WIDE-INTERVAL"]
    assert flags_of(row([], launch=0.3)) == []  # one repeat: there is no interval
    assert "WIDE-INTERVAL" in FLAGS


def test_a_busy_machine_is_said_once_and_not_at_every_row() -> None:
    loud = [["CPU-WITHHELD", "CPU-BUSY", "DRIFT", "RECOMPILED"]] * 3
    busy = summarise([flagged(*loud, cells=3, launch=0.05)])
    assert [flags_of(s) for s in busy] == [["RECOMPILED"]] * 3 + [[]]
    assert headline.flags(busy) == [("RECOMPILED", 3)]
    assert "CPU-WITHHELD" in busy[0].flags, "verdicts know of it all the same"
    drifting = summarise([flagged(*[["DRIFT"]] * 3, cells=4, launch=0.05)])
    more = [replace(s, busy=True) for s in drifting]
    assert resolution([*busy, *more]).shared[0] == "CPU-WITHHELD", "the cause comes first"
    assert sentence(busy).startswith("The machine was busy (CPU-WITHHELD")
    assert ", not 5 %." in sentence(busy)

    calm = summarise([flagged(*loud, cells=2, sigma=0.001, launch=0.001)])
    assert all("CPU-WITHHELD" in flags_of(s) for s in calm[:2])
    assert sentence(calm).startswith("This run separates ")
    assert sentence(calm).endswith(" % or more.")


def test_two_rows_that_differ_by_what_is_separated_are_told_apart() -> None:
    found = summarise([flagged([], [], [], launch=0.02)])
    first, second, *_ = [s for s in found if s.ranked]
    low, high = log_speedup(first, second).interval()
    assert resolution(found).ratio == pytest.approx(math.exp((high - low) / 2))
    once = summarise([flagged([])])
    assert resolution(once).ratio is None
    assert sentence(once) == "No interval of this run says what it separates."

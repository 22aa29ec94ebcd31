"""The best of many, and what cannot be told from it."""

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.analysis.best import Best, best
from gpubench.analysis.summary import summarise
from gpubench.records.record import RecordFile
from gpubench.report.sections import headline
from gpubench.suite.types import Cell
from tests.report import make

Logs = list[tuple[Cell, list[float]]]


def measured(logs: Logs) -> RecordFile:
    """Cells with these log latencies (of 10 ms), one for each repeat."""
    file = make.run([c for c, _ in logs], repeats=len(logs[0][1]), samples=12)
    ns = {c.key: [round(1e7 * np.exp(x)) for x in each] for c, each in logs}
    return replace(file, records=[
        replace(r, replicas=[
            replace(s, durations_ns=[ns[r.cell.key][r.repeat]] * 12,
                    end_ns=s.start_ns + 12 * ns[r.cell.key][r.repeat]) for s in r.replicas
        ]) for r in file.records
    ])  # fmt: skip


def fastest(logs: Logs) -> Best:
    found = best(summarise([measured(logs)]), latency=True)
    assert found
    return found


ONE, TWO = make.cell(backend="openvino"), make.cell(backend="openvino", replicas=2)
OTHER = make.cell(backend="onnxruntime")
SLOW = make.cell(backend="torch-eager")


def test_among_equals_the_simplest_wins_and_the_others_are_named() -> None:
    logs = [(TWO, [0.0, 0.01, 0.02]), (ONE, [0.015, 0.005, 0.02]), (SLOW, [0.9, 0.91, 0.92]),
            (OTHER, [0.012, 0.02, 0.013])]  # fmt: skip
    found = fastest(logs)
    assert found.summary.cell == ONE
    assert {s.cell.key for s in found.ties} == {TWO.key, OTHER.key}
    (won,) = [w for w in headline.winners(summarise([measured(logs)])) if w.measure == "latency"]
    assert won.rivals == ["onnxruntime", "openvino (2 replicas)"]


def test_a_clear_winner_stands_alone_however_complex() -> None:
    found = fastest(
        [(TWO, [0.0, 0.01, 0.02]), (ONE, [0.5, 0.51, 0.515]), (SLOW, [0.9, 0.91, 0.92])]
    )
    assert (found.summary.cell, found.ties) == (TWO, [])


def test_what_has_no_usable_interval_is_no_winner_and_no_tie() -> None:
    wild = make.cell(backend="tensorrt")
    found = fastest([(wild, [-3.0, 3.0, -1.0]), (ONE, [0.5, 0.51, 0.515]),
                     (SLOW, [0.9, 0.91, 0.92]), (OTHER, [0.8, 0.81, 0.82])])  # fmt: skip
    assert found.summary.cell == ONE
    assert wild.key not in [s.cell.key for s in found.ties]


def test_the_best_is_in_the_set_19_times_in_20() -> None:
    """The true best, and eleven that are as good within 1 %: the hardest."""
    backends = ("openvino", "onnxruntime", "torch-eager", "tensorrt")
    cells = [make.cell(batch_size=b, backend=n) for b in (1, 2, 3) for n in backends]
    rng, kept = np.random.default_rng(1), 0
    for _ in range(60):
        noise = 0.02 * rng.standard_normal((12, 4)) + 0.01
        noise[0] -= 0.01
        found = fastest(list(zip(cells, noise.tolist(), strict=True)))
        kept += cells[0].key in [s.cell.key for s in (found.summary, *found.ties)]
    assert kept >= 54


@pytest.mark.parametrize("repeats", [1, 3])
def test_two_runs_are_compared_without_pooling(repeats: int) -> None:
    logs = [(ONE, [0.5, 0.51, 0.52][:repeats])]
    one, two = measured(logs), measured([(OTHER, [0.0, 0.01, 0.02][:repeats])])
    found = best(summarise([one, two]), latency=True)
    assert found
    assert found.summary.cell.backend == "onnxruntime"
    assert [s.cell.backend for s in found.ties] == (["openvino"] if repeats == 1 else [])

"""Samples over time."""

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.analysis.summary import summarise
from gpubench.records.record import Record
from gpubench.report.charts import samples
from tests.report import make, make_pairs
from tests.report.charts.test_compare import valid


def one(records: list[Record]) -> dict:
    file = make.run([records[0].cell], samples=5)
    return samples.build(summarise([replace(file, records=records)]))["cells"][0]


@pytest.mark.parametrize("n", [0, 1, 5, 16, 17, 100, 1999, 20_000])
def test_thinning_keeps_extremes_order_and_number(n):
    values = np.random.default_rng(n).lognormal(size=n)
    kept = samples.thin(values, 16)
    assert len(kept) <= 16
    assert kept.tolist() == sorted(set(kept.tolist()))
    if n <= 16:
        assert len(kept) == n
    else:
        assert {int(values.argmin()), int(values.argmax())} <= set(kept.tolist())
        assert len(kept) > 6


def test_spikes_of_a_long_series_survive(monkeypatch):
    monkeypatch.setattr(samples, "MOST", 40)
    file = make.run([make.cell()], samples=2000, repeats=1)
    (record,) = file.records
    durations = list(record.replicas[0].durations_ns)
    durations[777] *= 9
    changed = replace(record, replicas=[replace(record.replicas[0], durations_ns=durations)])
    cell = one([changed])
    (line,) = cell["samples"]
    assert len(line[2]) == len(line[3]) <= 40
    assert max(line[3]) * cell["dy"] * 1e6 == pytest.approx(durations[777], rel=1e-3)
    assert cell["total"] == 2000
    assert samples.note(cell).startswith(f"1 repeat, 2,000 samples, {len(line[2])} drawn")


def test_turns_follow_one_another_and_hold_their_samples():
    base, _ = make_pairs.arms([make.cell(replicas=2)], pairs=4, samples=11)
    cell = samples.build(summarise([base]))["cells"][0]
    assert [name for _, name in cell["turns"][:3]] == [
        "repeat 0, turn 1", "repeat 0, turn 2", "repeat 1, turn 1"
    ]  # fmt: skip
    begins = [begin for begin, _ in cell["turns"]] + [samples.STEPS]
    assert begins == sorted(begins)
    assert {(turn, replica) for turn, replica, *_ in cell["samples"]} == {
        (turn, replica) for turn in range(8) for replica in range(2)
    }
    for turn, _, xs, ys in cell["samples"]:
        assert len(xs) == len(ys) == 11
        assert begins[turn] <= min(xs) <= max(xs) < begins[turn + 1] + 2
    first = base.records[0].replicas[0].durations_ns
    shown = [y * cell["dy"] * 1e6 for y in cell["samples"][0][3]]
    assert shown == pytest.approx(first, rel=1e-3)


def test_clock_and_temperature_lie_where_their_turn_lies():
    base, _ = make_pairs.arms([make.cell(device="cuda")], pairs=4, samples=11)
    record = base.records[0]
    spans = [sum(visit[0].durations_ns) / 1e9 for visit in record.visits]
    # one reading in the middle of either turn, one between them, when the rival had its turn
    turns = [0.0, spans[0] + 5.0]
    times = [spans[0] / 2, spans[0] + 2.5, turns[1] + spans[1] / 2]
    gpu = make.GPU | {
        "series": {"t_s": times, "sm_mhz": [1980, 210, None], "temperature_c": [60, 61, 62]}
    }
    cell = one([replace(record, telemetry={"gpus": [gpu], "turns_s": turns})])
    middle = [spans[0] / 2, spans[0] + spans[1] / 2]
    clock = [[turn, [x * cell["dx"] for x in xs], ys] for turn, _, xs, ys in
             cell["gauges"]["sm_mhz"]]  # fmt: skip
    assert clock == [[0, [pytest.approx(middle[0], abs=cell["dx"])], [1980]]]
    heat = [(turn, xs[0] * cell["dx"], ys) for turn, _, xs, ys in cell["gauges"]["temperature_c"]]
    assert [(turn, ys) for turn, _, ys in heat] == [(0, [60]), (1, [62])]
    assert heat[1][1] == pytest.approx(middle[1], abs=cell["dx"])


def test_without_the_begin_of_the_turns_no_gauge_is_drawn():
    file = make.run([make.cell(device="cuda")], samples=20, repeats=1)
    gpu = make.GPU | {"series": {"t_s": [0.1], "sm_mhz": [1980], "temperature_c": [60]}}
    for telemetry in ({"gpus": [gpu]}, {"gpus": [gpu], "turns_s": []}):
        cell = one([replace(file.records[0], telemetry=telemetry)])
        assert not any(cell["gauges"].values())


def test_cpu_clock_and_flags_are_noted():
    file = make.run([make.cell()], samples=20, repeats=2)
    mhz = {"min": 2450.0, "median": 2800.0, "max": 3100.4}
    records = [
        replace(r, telemetry={"cpu": {"mhz": mhz}}, flags=["CPU-STEAL"]) for r in file.records
    ]
    cell = one(records)
    assert "CPU clock 2,450 to 3,100 MHz" in samples.note(cell)
    assert cell["turns"][0][1] == "repeat 0 (CPU-STEAL)"
    assert cell["flags"] == []  # of all rows, and so said once


def test_many_series_share_the_budget():
    cells = make.grid(batches=(1, 4), replicas=(1, 2))
    file = make.run(cells, samples=300)
    full = samples.build(summarise([file]))
    assert {len(line[2]) for cell in full["cells"] for line in cell["samples"]} <= set(
        range(100, 161)
    )
    series_count = sum(len(cell["samples"]) for cell in full["cells"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "BUDGET", 30 * series_count)
        small = samples.build(summarise([file]))
    assert max(len(line[2]) for cell in small["cells"] for line in cell["samples"]) <= 30


def test_an_empty_series_is_drawn_as_nothing():
    file = make.run([make.cell()], samples=20, repeats=1)
    (record,) = file.records
    none = replace(record, replicas=[replace(record.replicas[0], durations_ns=[])])
    cell = one([none])
    assert cell["samples"] == [[0, 0, [], []]]
    assert cell["total"] == 0


def test_specifications_are_valid_vega_lite():
    drawn = samples.build(summarise([make.run([make.cell()], samples=20)]))
    points = [{"x": 0.1 * n, "y": 2.0 + n, "colour": 0, "part": "0/0", "tip": {}} for n in range(9)]
    turns = [{"begin": 0.0, "name": "repeat 0"}]
    for spec in (drawn["spec"], drawn["gauge"]):
        assert "<svg" in valid(spec, points=points, turns=turns)

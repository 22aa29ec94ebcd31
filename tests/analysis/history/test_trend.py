import pytest
from msgspec import json
from msgspec.structs import replace

from gpubench.analysis.history.trend import Trend, find, trends
from gpubench.errors import InputError
from gpubench.records.record import Record, RecordFile
from gpubench.records.writer import Writer
from tests.report import make
from tests.report.make_pairs import arms, sessions

CELLS = [make.cell(), make.cell(backend="openvino", scenario="throughput")]


def runs(*levels: tuple[int, float], sd: float = 0.005, seed: int = 0, cells=CELLS, **header):
    """(number of runs, effect) one after the other, a day apart."""
    made: list[RecordFile] = []
    for part, (n, effect) in enumerate(levels):
        files = sessions(cells, n, sd, 100 * seed + part, effect=effect, within=0.001, **header)
        for f in files:
            day = f"2026-{1 + len(made) // 28:02}-{1 + len(made) % 28:02}T06:00:00Z"
            made.append(replace(f, header=replace(f.header, started=day)))
    return made


# ------------------------------------------------------------------------------ change points


def test_a_change_is_found_where_it_is_with_its_size():
    for trend in trends(runs((12, 0.0), (6, 0.08))):
        (change,) = trend.changes
        assert (change.at, change.slower) == (12, True)
        wanted = 1.08 if trend.latency else 1 / 1.08
        assert change.ratio.value == pytest.approx(wanted, abs=0.01)
        assert change.ratio.low < change.ratio.value < change.ratio.high
        assert change.after / change.before == pytest.approx(change.ratio.value)
        assert trend.behind == pytest.approx(0.08, abs=0.01)
        assert change.p < 0.01


def test_three_runs_are_enough_two_are_not():
    assert [c.at for c in trends(runs((12, 0), (3, 0.1)))[0].changes] == [12]
    assert trends(runs((12, 0), (2, 0.5)))[0].changes == []
    assert trends(runs((8, 0), (2, 0.5), (8, 0)))[0].changes == []


def test_several_changes_and_a_repair():
    trend = trends(runs((10, 0.0), (8, 0.1), (8, 0.25), (10, 0.0)))[0]
    assert [(c.at, c.slower) for c in trend.changes] == [(10, True), (18, True), (26, False)]
    assert trend.behind == pytest.approx(0, abs=0.01)


def test_a_drift_blames_no_run_and_says_how_far_it_went():
    trend = trends(runs((15, 0.0), *((1, n / 300) for n in range(30)), (15, 0.1)))[0]
    assert trend.changes == []
    (drift,) = trend.drifts
    assert drift.slower
    assert drift.first == pytest.approx(15, abs=6)
    assert drift.last == pytest.approx(45, abs=6)
    assert drift.ratio.value == pytest.approx(1.1, abs=0.02)
    assert drift.after / drift.before == pytest.approx(drift.ratio.value)
    assert trend.behind == pytest.approx(0.1, abs=0.02)
    assert [level.value == level.end for level in trend.levels] == [True, False, True]


def test_two_states_are_one_finding():
    made = trends(runs(*((6, 0.1 * (n % 2)) for n in range(6))))
    trend = next(t for t in made if t.latency)
    assert (trend.changes, trend.drifts, trend.behind) == ([], [], 0)
    assert trend.states.switches == 5
    assert trend.states.slow / trend.states.fast == pytest.approx(1.1, abs=0.01)
    assert trend.states.at_slow == [*range(6, 12), *range(18, 24), *range(30, 36)]


def test_a_change_came_between_two_runs_also_where_some_are_left_out():
    files = runs((10, 0.0), (6, 0.1))
    files[9] = replace(files[9], records=[replace(r, flags=["CO-TENANT"])
                                          for r in files[9].records])  # fmt: skip
    (change,) = trends(files)[0].changes
    assert change.at == 10
    assert change.between[0] in (7, 8), "one odd run at either side cannot be told from a change"
    assert change.between[1] in (10, 11)


def test_a_change_within_the_margin_is_none():
    files = runs((15, 0.0), (15, 0.015), sd=0.002)
    assert trends(files)[0].changes == []
    assert [c.at for c in trends(files, delta=0.005)[0].changes] == [15]


# ------------------------------------------------------------------------------ series


def test_worst_first():
    same = [make.cell(batch_size=n) for n in (1, 2, 3, 4)]
    parts = [runs((8, 0.0), (8, e), cells=[c], seed=n)
             for n, (c, e) in enumerate(zip(same, (0.0, 0.1, -0.1, 0.3), strict=True))]  # fmt: skip
    merged = [
        replace(group[0], records=[r for f in group for r in f.records],
                header=replace(group[0].header, planned=same))
        for group in zip(*parts, strict=True)
    ]  # fmt: skip
    found = trends(merged)
    assert [t.key for t in found] == [same[i].key for i in (3, 1, 2, 0)]
    assert found[2].changes
    assert not found[2].changes[0].slower
    assert found[2].behind == 0


def test_runs_of_another_machine_are_another_series():
    here, there = runs((10, 0.0)), runs((10, 0.2), fingerprint="beef", name="there")
    mixed = [f for pair in zip(here, there, strict=True) for f in pair]
    found = trends(mixed)
    assert len(found) == 2 * len(CELLS)
    for t in found:
        assert len(t.points) == 10
        assert t.changes == []
    assert {t.fingerprint for t in found} == {"f00d", "beef"}


def test_points_are_in_order_of_time_and_runs_count_once():
    files = runs((8, 0.0))
    found = trends([*reversed(files), files[0]])
    for t in found:
        assert [p.run for p in t.points] == [f.header.run_id for f in files]
    assert json.encode(trends(files)) == json.encode(found)


def test_a_point_says_commit_value_and_what_is_wrong():
    files = runs((8, 0.0))
    where = files[0].header.environment | {"directory": {"commit": "abc1234", "dirty": False}}
    files[0] = replace(files[0], header=replace(files[0].header, environment=where))
    dead = Record(cell=CELLS[0], repeat=0, status="failed", kind="crash", reason="signal 11")
    files[1] = replace(files[1], records=[dead])
    files[2] = replace(files[2], records=[replace(r, flags=["THROTTLED"])
                                          for r in files[2].records])  # fmt: skip
    trend = next(t for t in trends(files) if t.key == CELLS[0].key)
    first, second, third = trend.points[:3]
    assert (first.commit, trend.points[3].commit) == ("abc1234", "")
    assert first.value.low < first.value.value < first.value.high
    assert (second.value.value, second.status, second.used) == (None, "failed: crash", False)
    assert second.flags == ["failed: crash"]
    assert third.value.value
    assert not third.used
    other = next(t for t in trends(files) if t.key == CELLS[1].key)
    assert other.points[1].status == "missing"


def test_an_index_counts_all_runs_also_those_left_out():
    files = runs((10, 0.0), (6, 0.1))
    files[4] = replace(files[4], records=[replace(r, flags=["CO-TENANT"])
                                          for r in files[4].records])  # fmt: skip
    trend = trends(files)[0]
    assert [c.at for c in trend.changes] == [10]


def test_cells_that_are_always_skipped_are_left_out_failing_ones_are_not():
    gpu = make.cell(backend="tensorrt")

    def with_status(status: str) -> list[Trend]:
        bad = Record(cell=gpu, repeat=0, status=status, kind="error")
        return trends([replace(f, records=[*f.records, bad]) for f in runs((3, 0.0))])

    assert gpu.key not in {t.key for t in with_status("unavailable")}
    failing = next(t for t in with_status("failed") if t.key == gpu.key)
    assert all(p.value.value is None for p in failing.points)
    assert (failing.changes, failing.behind) == ([], 0)


# ------------------------------------------------------------------------------ files


def test_runs_are_found_below_a_directory_and_what_is_left_out_is_said(tmp_path):
    def put(file: RecordFile, name: str) -> None:
        with Writer(tmp_path / name, file.header) as writer:
            for r in file.records:
                writer.append(r)

    files = runs((3, 0.0))
    for n, file in enumerate(files):
        put(file, f"deep/{n}/run")
    base, candidate = arms(CELLS, 2)
    put(base, "ab/baseline")
    put(candidate, "ab/candidate")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "records.jsonl").write_text("{}\n")
    cut = tmp_path / "deep" / "2" / "run" / "records.jsonl"
    cut.write_bytes(cut.read_bytes()[:-20])
    said: list[str] = []
    assert [f.header.run_id for f in find(tmp_path, said.append)] == [
        f.header.run_id for f in files
    ]
    assert len(said) == 3
    assert "damaged/records.jsonl" in said[0]
    assert "cut off" in said[1]
    assert "2 arms of interleaved A/B" in said[2]


def test_nothing_to_read_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        list(find(tmp_path / "nowhere", print))
    with pytest.raises(InputError, match=r"no run below it \(a directory with records.jsonl\)$"):
        list(find(tmp_path, print))
    (tmp_path / "records.jsonl").write_text('{"header":{"schema":3}}\n')
    why = r"that a history can use: .*records.jsonl: has schema 3, but this gpubench reads"
    with pytest.raises(InputError, match=why):
        list(find(tmp_path, print))

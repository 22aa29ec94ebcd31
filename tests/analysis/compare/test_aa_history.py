import math
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from gpubench import files
from gpubench.analysis import stats
from gpubench.analysis.compare import aa_history
from gpubench.errors import CacheError, RecordError
from gpubench.records.record import RecordFile
from gpubench.records.writer import Writer
from tests.report import make, make_pairs

CELLS = [make.cell(), make.cell(backend="openvino", scenario="throughput")]


def stored(file: RecordFile, folder: Path) -> Path:
    """On disk, as a run leaves it."""
    with Writer(folder, file.header) as writer:
        for one in file.records:
            writer.append(one)
    return folder


def test_a_session_goes_in_whole_under_its_run_id_and_comes_back(tmp_path):
    folder = aa_history.directory(tmp_path / "cache", "0123456789abcdef" * 4)
    assert folder == tmp_path / "cache" / "aa" / "0123456789abcdef"
    assert aa_history.load(folder, print) == []
    made = make_pairs.sessions(CELLS, 3, seed=1)
    for n, file in enumerate(reversed(made)):
        path = aa_history.add(stored(file, tmp_path / str(n)), folder)
        assert path == folder / f"{file.header.run_id}.jsonl"
        assert path.read_bytes() == (tmp_path / str(n) / "records.jsonl").read_bytes()
    aa_history.add(tmp_path / "0", folder)  # the same session again
    loaded = aa_history.load(folder, print)
    assert [f.header for f in loaded] == [f.header for f in made]  # oldest first
    assert [f.records for f in loaded] == [f.records for f in made]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"{f.header.run_id}.jsonl" for f in made
    )
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_run_id_cannot_leave_the_directory(tmp_path):
    file = make_pairs.sessions(CELLS, 1)[0]
    file = replace(file, header=replace(file.header, run_id="../../x y"))
    odd = tmp_path / "run\x1b"  # as people are told of it, it is another path
    path = aa_history.add(stored(file, odd), tmp_path / "history")
    assert path.parent == tmp_path / "history"
    assert aa_history.load(path.parent, print)[0].header.run_id == "../../x y"


def test_a_damaged_session_is_left_out_and_said(tmp_path):
    for n, file in enumerate(make_pairs.sessions(CELLS, 3)):
        aa_history.add(stored(file, tmp_path / str(n)), tmp_path / "history")
    first, second, third = sorted((tmp_path / "history").iterdir())
    second.write_bytes(second.read_bytes().replace(b'"repeat":1', b'"repeat":2', 1))
    (tmp_path / "history" / "notes.txt").write_text("not a session")
    (tmp_path / "history" / "empty.jsonl").write_text("")
    said: list[str] = []
    assert [f.path for f in aa_history.load(tmp_path / "history", said.append)] == [
        str(first),
        str(third),
    ]
    assert len(said) == 2
    assert "empty.jsonl" in said[0]
    assert second.name in said[1]
    assert "checksum" in said[1]


def test_what_cannot_be_read_or_written_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="nowhere"):
        aa_history.add(tmp_path / "nowhere", tmp_path / "history")
    known = stored(make_pairs.sessions(CELLS, 1)[0], tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="file: cannot be written"):
        aa_history.add(known, tmp_path / "file")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    known = stored(make_pairs.sessions(CELLS, 1)[0], tmp_path / "run")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CacheError, match="No space left"):
        aa_history.add(known, tmp_path / "history")
    assert list((tmp_path / "history").iterdir()) == []


def values_of(history, key):
    return [math.exp(s.mean) for s in aa_history.by_cell(history).get(key, [])]


def test_what_is_wrong_with_a_session_is_told(tmp_path):
    known = stored(make_pairs.sessions(CELLS, 1)[0], tmp_path / "run")
    path = aa_history.add(known, tmp_path / "history")
    path.write_bytes(path.read_bytes()[:-20])
    told = []
    [kept] = aa_history.load(tmp_path / "history", told.append)
    assert kept.notes
    assert [path.name in line and kept.notes[0] in line for line in told] == [True]


def test_session_values_are_those_of_the_reports():
    history = make_pairs.sessions(CELLS, 4)
    for c in CELLS:
        values = [
            stats.geometric_mean([r.value() for r in f.records if r.cell == c]).value
            for f in history
        ]
        assert values_of(history, c.key) == pytest.approx(values, rel=1e-12)
    assert values_of(history, "unknown") == []


@pytest.mark.parametrize("change", [
    {"status": "failed", "kind": "parity"}, {"status": "failed", "kind": "crash", "replicas": []},
    {"flags": ["DRIFT"]}, {"flags": ["THROTTLED"]},
])  # fmt: skip
def test_sessions_that_a_comparison_would_not_use_do_not_count(change):
    history = make_pairs.sessions(CELLS, 2)
    bad = [replace(r, **change) if r.cell == CELLS[0] else r for r in history[0].records]
    history[0] = replace(history[0], records=bad)
    assert len(values_of(history, CELLS[0].key)) == 1
    assert len(values_of(history, CELLS[1].key)) == 2


def sessions(*logs: float, error: float = 0.0) -> list[stats.LogRatio]:
    return [stats.LogRatio(mean=x, error=error, dof=2, n=(3, 3)) for x in logs]


def test_a_limit_is_the_spread_and_the_range_of_the_sessions():
    found = aa_history.limit(sessions(0.0, 0.01, 0.02, 0.05))
    assert found.sessions == 4
    assert found.sd == pytest.approx(0.0216025, rel=1e-5)
    assert found.largest == pytest.approx(0.05)
    lucky = aa_history.limit(sessions(0.0, 0.0, 0.0, 0.0, error=0.01))
    assert lucky.sd == pytest.approx(0.01)


def test_limits_ask_for_enough_sessions_and_look_at_other_cells_too():
    cells = [make.cell(batch_size=n) for n in range(1, 6)]
    history = make_pairs.sessions(cells, aa_history.ENOUGH, sd=0.001, within=0.0001)
    assert aa_history.limits(aa_history.by_cell(history[1:])) == {}
    quiet = aa_history.limits(aa_history.by_cell(history))
    assert set(quiet) == {c.key for c in cells}
    # two of five cells are loud: then nobody believes that the others never are
    mixed = [
        replace(q, records=[a if a.cell in cells[:3] else b
                            for a, b in zip(q.records, x.records, strict=True)])
        for q, x in zip(history, make_pairs.sessions(cells, aa_history.ENOUGH, sd=0.05),
                        strict=True)
    ]  # fmt: skip
    first = cells[0].key
    assert aa_history.limits(aa_history.by_cell(mixed))[first].sd == quiet[first].sd
    assert aa_history.limits(aa_history.by_cell(mixed))[first].largest > 10 * quiet[first].largest


def test_within_run_error_is_not_counted_twice():
    limit = aa_history.Limit(sessions=8, sd=0.02, largest=0.05, within=0.01**2)
    like = stats.LogRatio(mean=0.1, error=math.sqrt(2) * 0.01, dof=4, n=(3, 3))
    assert limit.widened(like).error == pytest.approx(math.sqrt(2) * 0.02)
    assert limit.widened(like).dof == pytest.approx(aa_history.TAILS)
    better = replace(like, error=0.001)
    assert limit.widened(better).error == pytest.approx(limit.widened(like).error)
    worse = limit.widened(replace(like, error=math.sqrt(2 * 0.01**2 + 0.03**2)))
    assert worse.error == pytest.approx(math.sqrt(2 * 0.02**2 + 0.03**2))
    assert 4 < worse.dof < 4 + aa_history.TAILS
    single = replace(like, dof=0)
    assert limit.widened(single) == single
    assert (
        aa_history.Limit(sessions=8, sd=0, largest=0, within=0)
        .widened(replace(like, error=0))
        .error
        == 0
    )

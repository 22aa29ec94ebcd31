"""What is written is what can be read, and nothing of anybody else's is touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from gpubench.errors import GpubenchError, RecordError
from gpubench.records import reader, validation
from gpubench.records.reader import read
from gpubench.records.record import BESIDE, RECORDS
from gpubench.records.writer import Writer
from gpubench.run.tune import driver as tune
from tests.records.test_reader import HEADER, record, samples, written

DEEP: dict[str, object] = {}
for _ in range(validation.DEEPEST):
    DEEP = {"in": DEEP}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (2**63, "a number of more than 64 bits"),
        (-(2**70), "a number of more than 64 bits"),
        ({"deep": [1, -(2**63) - 1]}, "a number of more than 64 bits"),
        (DEEP, "nested more than 32 deep"),
        ("\udcff", "surrogates not allowed"),
    ],
)
def test_a_bad_fact_costs_that_fact(tmp_path: Path, bad: object, why: str) -> None:
    with Writer(tmp_path, HEADER) as writer:
        stored = writer.append(record(0, facts={"version": "1.0", "bad": bad}))
        writer.append(record(1))
    first, second = read(tmp_path).records
    assert first == stored
    assert (first.status, first.replicas, second) == ("ok", [samples()], record(1))
    assert first.facts["version"] == "1.0"
    assert first.facts["bad"].startswith("left out: ")
    assert why in first.facts["bad"]
    assert validation.facts({"bad": bad}) == {"bad": first.facts["bad"]}  # as the worker does


def test_what_a_fact_may_be_stays_as_it_is() -> None:
    plain = {"a": [1, 2.5, None, True, "x"], "b": {"c": -(2**63)}, "d": 2**63 - 1}
    assert validation.facts(plain) == plain
    assert validation.facts({"version": Path("1.0")}) == {"version": "1.0"}


def test_bad_telemetry_costs_its_part(tmp_path: Path) -> None:
    energy = {"joules": 1.0, "seconds": 6.0, "source": "rapl"}
    with Writer(tmp_path, HEADER) as writer:
        writer.append(record(telemetry={"energy": energy, "cpu": {"mhz": "fast"}, "gpus": []}))
    [found] = read(tmp_path).records
    assert found.telemetry == {"energy": energy, "gpus": []}
    assert found.facts["cpu"].startswith("left out: telemetry: Expected `object | null`")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"replicas": [replace(samples(), start_ns=5000)]}, "replica 0 ends before it starts"),
        ({"replicas": [samples(), samples(1)]}, "samples of 2 replicas, but the cell has 1"),
        ({"wall_s": -1.0}, "Expected `float` >= 0"),
        ({"replicas": [samples(ns=0)]}, "Expected `int` >= 1"),
    ],
)
def test_a_record_that_nobody_could_read_is_a_failure_and_the_run_goes_on(
    tmp_path: Path, change: dict[str, object], why: str
) -> None:
    with Writer(tmp_path, HEADER) as writer:
        writer.append(record(0, **change))
        writer.append(record(1))
    first, second = read(tmp_path).records
    assert (first.status, first.kind, first.repeat) == ("failed", "error", 0)
    assert first.reason.startswith("what was measured cannot be stored: ")
    assert why in first.reason
    assert second == record(1)


def test_a_header_that_nobody_could_read_is_told_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    with pytest.raises(RecordError, match=r"header cannot be stored: .* more than 64 bits"):
        Writer(tmp_path, replace(HEADER, environment={"n": 2**63}))
    assert not (tmp_path / RECORDS).exists()


def test_lines_have_a_limit_for_readers_and_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, body = tmp_path / RECORDS, written(tmp_path, 1)
    with path.open("r+b") as file:  # a hole, as a file system that lost a block may leave it
        file.truncate(reader.LONGEST + 2 * len(body))
    with pytest.raises(RecordError, match=r"line 3: longer than 268,435,456 bytes"):
        read(path)
    for module in ("reader", "writer"):
        monkeypatch.setattr(f"gpubench.records.{module}.LONGEST", len(body))
    path.unlink()
    with Writer(tmp_path, HEADER) as writer:
        stored = writer.append(record(replicas=[samples(n=len(body))]))
    assert (stored.status, read(path).records) == ("failed", [stored])
    assert "longer than" in stored.reason


@pytest.mark.parametrize("foreign", [b'{"mine": 1}\n{"mine": 2', b"no line", b""])
def test_what_is_resumed_is_not_touched_before_a_record_is_added(
    tmp_path: Path, foreign: bytes
) -> None:
    path = tmp_path / RECORDS
    path.write_bytes(foreign)
    with Writer(tmp_path, None), pytest.raises(RecordError):
        read(tmp_path)
    assert path.read_bytes() == foreign


@pytest.mark.parametrize("name", BESIDE)
def test_a_new_run_writes_over_nothing(tmp_path: Path, name: str) -> None:
    assert {tune.BEST, tune.FINISHED, reader.EVIDENCE} < {*BESIDE}
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(RecordError, match=rf"{name}: is there already"):
        Writer(tmp_path, HEADER)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def edited(path: Path) -> None:
    """As `sed -i` does."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


@pytest.mark.parametrize(
    "harm",
    [edited, Path.unlink, lambda path: shutil.rmtree(path.parent)],
    ids=["edited", "gone", "with its folder"],
)
def test_a_file_that_is_replaced_during_the_run_is_seen_and_nothing_is_lost(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    out = tmp_path / "out"
    with Writer(out, HEADER) as writer:
        writer.append(record(0))
        harm(out / RECORDS)
        with pytest.raises(GpubenchError, match=r"whole in .*records-kept.jsonl: rename that"):
            writer.append(record(1))
    kept = out / "records-kept.jsonl"
    assert read(kept).records == [record(0), record(1)]
    kept.rename(out / RECORDS)
    with Writer(out, None) as writer:
        writer.append(record(2))
    assert [r.repeat for r in read(out).records] == [0, 1, 2]


def test_a_file_that_is_cut_during_the_run_is_seen_and_can_be_gone_on_with(tmp_path: Path) -> None:
    with Writer(tmp_path, HEADER) as writer:
        writer.append(record(0))
        one = (tmp_path / RECORDS).stat().st_size
        writer.append(record(1))
        os.truncate(tmp_path / RECORDS, one + 100)
        for _ in range(2):
            with pytest.raises(GpubenchError, match=f"cut to {one + 100:,} bytes"):
                writer.append(record(2))
    with Writer(tmp_path, None) as writer:
        writer.append(record(1))
    assert read(tmp_path).records == [record(0), record(1)]


@pytest.mark.parametrize(("ends", "kept"), [(KeyboardInterrupt, 2), (OSError, 1)])
def test_a_record_that_is_whole_when_a_signal_comes_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: type[BaseException], kept: int
) -> None:
    """But not one that the disk refused."""

    def sync(_: int) -> None:
        raise ends

    with Writer(tmp_path, HEADER) as writer:
        writer.append(record(0))
        monkeypatch.setattr("os.fsync", sync)
        with pytest.raises(ends):
            writer.append(record(1))
    assert len(read(tmp_path).records) == kept


def test_a_planted_log_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "agent.log").symlink_to(tmp_path / "another")
    with pytest.raises(RecordError, match="is there already, and is not this run's"):
        Writer(tmp_path, HEADER)
    assert not (tmp_path / RECORDS).exists()

"""Boundary pipeline through the driver, agents and workers, on fake backends and decoders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpubench.analysis.pipeline import COMPUTE, DATA, breakdown
from gpubench.records.record import Record, RecordFile
from gpubench.run import driver, setup
from gpubench.run.ab import arms
from gpubench.run.ab import driver as ab_driver
from gpubench.run.ab import setup as ab_setup
from gpubench.run.watcher import Silent
from gpubench.suite.types import Rule

Run = Callable[..., RecordFile]
STAGES = [*DATA, *COMPUTE]
PHOTOS = {"images": "photos"}
"""The synthetic ones are noise, and that is the same in any colours."""
two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed")


@pytest.fixture
def run(tmp_path: Path, cache_dir: Path, write_suite: Callable[..., Path]) -> Run:
    """One repeat of throughput with four images a batch, unless told otherwise."""

    made: list[Path] = []

    def start(chosen: dict[str, Any] | None = None, cores: int = 1, **changes: Any) -> RecordFile:
        values: dict[str, Any] = {
            "scenario": '["throughput"]', "boundary": '["pipeline"]', "batch_size": "[4]",
            "decoder": '["fake-exact"]', "loader": '["threads"]',
        }  # fmt: skip
        values |= changes
        policy = {"repeats": 1, "max_repeats": 1, "parity_images": 8} | values.pop("policy", {})
        suite = write_suite(policy=policy, **values)
        suite.write_text(suite.read_text().replace("cores = 1", f"cores = {cores}"))
        where = tmp_path / f"run{len(made)}"
        made.append(where)
        session = setup.session(str(suite), chosen or {}, cache_dir, where, False, ())
        return driver.run(session, Silent())

    return start


def one(file: RecordFile) -> Record:
    [record] = file.records
    return record


@pytest.mark.parametrize("loader", ["threads", "processes"])
def test_a_throughput_record_is_whole(run: Run, loader: str) -> None:
    record = one(run(loader=f'["{loader}"]'))
    assert record.status == "ok", record.reason
    assert record.images_per_s()
    assert record.parity is not None
    assert record.parity.passed
    assert list(record.replicas[0].stages_ns) == [*STAGES, "loader", "session"]
    assert all(record.replicas[0].stages_ns.values())
    path = record.pipeline
    assert path is not None
    assert (path.decoder, path.images, path.passed) == ("fake-exact", 8, True)
    assert (path.max_difference, path.top1_agreement) == (0, 1)
    facts = record.facts["pipeline"]
    assert facts["decoder"] == "fake-exact"
    assert facts["versions"] == {"fake": "1.0"}
    assert facts["loader"]["kind"] == loader
    assert (facts["loader_cores"], facts["session_cores"]) == (1, 1), "one core does both"
    assert facts["zero_copy"] is False
    assert (facts["on_device"], facts["lanes"]) == (False, 1)
    assert facts["skipped"] == {}
    assert breakdown([record]) is not None


def test_latency_and_every_other_boundary_beside_it(run: Run) -> None:
    file = run(scenario='["latency"]', boundary='["compute", "transfer", "pipeline"]',
               loader='["threads", "processes"]')  # fmt: skip
    records = {r.cell.boundary: r for r in file.records}
    assert len(file.records) == 3, "latency has no loader"
    assert {r.status for r in file.records} == {"ok"}
    assert list(records["pipeline"].replicas[0].stages_ns) == STAGES
    assert records["pipeline"].pipeline is not None
    assert records["compute"].pipeline is None
    assert "path" not in records["transfer"].facts
    medians = {name: r.median_ns() or 0 for name, r in records.items()}
    assert medians["pipeline"] > medians["transfer"], "it decodes four pictures more"


@pytest.mark.parametrize("scenario", ["latency", "throughput"])
def test_a_decoder_that_swaps_colours_fails_with_its_timing(run: Run, scenario: str) -> None:
    record = one(run(PHOTOS, decoder='["fake-swapped"]', scenario=f'["{scenario}"]'))
    assert (record.status, record.kind) == ("failed", "parity")
    assert "decoder fake-swapped" in record.reason
    assert "min_pipeline_agreement" in record.reason
    assert record.value()
    assert record.parity is not None
    assert record.parity.passed, "the backend itself is right"
    assert record.pipeline is not None
    assert record.pipeline.max_difference > 1


def test_a_decoder_that_raises_is_told_with_the_picture(run: Run) -> None:
    for scenario in ("latency", "throughput"):
        record = one(run(decoder='["fake-breaking"]', scenario=f'["{scenario}"]'))
        assert (record.status, record.kind) == ("failed", "error")
        assert "fake-breaking broke at '" in record.reason
        assert "told to break" in record.reason


def test_what_cannot_be_planned_says_why(run: Run) -> None:
    file = run(decoder='["fake-absent", "fake-device", "fake-exact"]', loader_cores="[0, 1]",
               dispatch='["independent", "static"]')  # fmt: skip
    found = {
        (r.cell.decoder, r.cell.loader_cores, r.cell.dispatch): (r.status, r.reason, r.remedy)
        for r in file.records
    }
    assert found["fake-absent", 0, "independent"] == (
        "unavailable", "no such library", "pip install it"
    )  # fmt: skip
    assert found["fake-device", 0, "independent"][:2] == (
        "unsupported", "decoder fake-device: it works on CUDA devices only"
    )  # fmt: skip
    status, reason, _ = found["fake-exact", 1, "independent"]
    assert status == "unsupported"
    assert "leave none to compute" in reason
    assert found["fake-exact", 0, "static"][0] == "unsupported"
    assert found["fake-exact", 0, "independent"][0] == "ok"


def test_a_decoder_that_takes_fewer_pictures_than_the_reference_fails(run: Run) -> None:
    record = one(run(decoder='["fake-picky"]'))
    assert (record.status, record.kind) == ("failed", "parity")
    assert "cannot use a picture that the reference can: not to my taste" in record.reason


def test_unusable_pictures_are_left_out_and_counted(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    for scenario in ("latency", "throughput"):
        record = one(run(chosen={"images": str(folder)}, scenario=f'["{scenario}"]'))
        assert record.status == "ok", record.reason
        assert list(record.facts["pipeline"]["skipped"].values()) == [1]


def test_a_loader_that_is_killed_is_a_crash(run: Run) -> None:
    record = one(run(decoder='["fake-killing"]', loader='["processes"]'))
    assert (record.status, record.kind) == ("failed", "crash")
    assert "SIGKILL" in record.reason


@two_cores
def test_the_split_is_what_the_cell_says_or_an_even_one(run: Run) -> None:
    for loader_cores in ("[1]", "[0]"):
        record = one(run(cores=2, loader_cores=loader_cores, loader='["processes"]'))
        assert record.status == "ok", record.reason
        facts = record.facts["pipeline"]
        assert (facts["loader_cores"], facts["session_cores"]) == (1, 1)
        assert len(facts["loader"]["cores"]) == 1
        assert facts["lanes"] == 1, "the stages alone are timed on the loader's cores"
        assert record.facts["device"] == f"cpu:{1 - facts['loader']['cores'][0]}"


@two_cores
def test_replicas_each_have_a_loader(run: Run) -> None:
    record = one(run(replicas="[2]"))
    assert record.status == "ok", record.reason
    assert [own.replica for own in record.replicas] == [0, 1]
    assert all(s.stages_ns["loader"] for s in record.replicas)


def test_a_backend_that_computes_nothing_has_a_speed_and_no_check(run: Run) -> None:
    record = one(run(backend='["null"]'))
    assert record.status == "ok", record.reason
    assert (record.parity, record.pipeline) == (None, None)
    assert record.replicas[0].stages_ns["loader"] > record.replicas[0].stages_ns["session"]


def test_resumed_only_what_is_missing_is_measured(
    tmp_path: Path, cache_dir: Path, write_suite: Callable[..., Path]
) -> None:
    suite = write_suite(boundary='["pipeline"]', scenario='["throughput"]', loader='["threads"]',
                        decoder='["fake-exact", "fake-swapped"]', batch_size="[1]")  # fmt: skip

    def go(resume: bool) -> RecordFile:
        session = setup.session(str(suite), PHOTOS, cache_dir, tmp_path / "run", resume, ())
        return driver.run(session, Silent())

    first = go(resume=False)
    again = go(resume=True)
    assert sorted(r.kind for r in first.records) == ["", "", "parity"]
    assert again.records == first.records


@pytest.mark.parametrize("loader", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_interleaved_arms_stand_still_while_the_other_is_measured(
    tmp_path: Path, cache_dir: Path, write_suite: Callable[..., Path], loader: str
) -> None:
    suite = write_suite(boundary='["pipeline"]', scenario='["throughput"]', batch_size="[4]",
                        loader=f'["{loader}"]', decoder='["fake-exact"]',
                        policy={"duration_s": 0.2})  # fmt: skip
    specs = arms.parse("--baseline", ()), arms.parse("--candidate", ())
    job = ab_setup.comparison(str(suite), {}, specs, (None, None), Rule(), 3.0, cache_dir,
                           tmp_path / "ab", False, ())  # fmt: skip
    files = ab_driver.run(job, Silent())
    records = [record for file in files for record in file.records]
    assert records
    for record in records:
        assert record.status == "ok", record.reason
        assert record.again
        assert record.replicas[0].stages_ns
        assert not record.again[0].stages_ns, "they are timed once, after all turns"
        assert "BUSY-WHILE-IDLE" not in record.flags
        assert record.facts["idle_cpu_share"] < 0.03

"""Breakdowns of synthetic records."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gpubench.analysis.pipeline import breakdown
from gpubench.analysis.summary import summarise
from gpubench.analysis.tables import pipeline
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from tests.measure.virtual import make_cell
from tests.report import make_pipelines

MS = 1_000_000
DATA = {"read": 1 * MS, "decode": 6 * MS, "transform": 3 * MS}
SESSION = {"copy_in": 1 * MS, "run": 20 * MS, "copy_out": 1 * MS, "postprocess": 0}


def record(stages: dict[str, int], batch_ns: int, repeat: int = 0, **cell: Any) -> Record:
    """Ten batches of two images, each taking ``batch_ns``."""
    settings = {"boundary": "pipeline", "scenario": "throughput", "batch_size": 2, "cores": 2}
    whole = make_cell(**(settings | cell))
    replicas = [
        Samples(
            replica=number,
            device="cpu:0",
            durations_ns=[batch_ns] * 10,
            end_ns=10 * batch_ns,
            stages_ns=stages,
        )
        for number in range(whole.replicas)
    ]
    return Record(cell=whole, repeat=repeat, status="ok", replicas=replicas)


def test_latency_is_the_sum_and_the_largest_stage_holds_it_up() -> None:
    found = breakdown([record(DATA | SESSION, 33 * MS, scenario="latency")])
    assert found is not None
    assert (found.bottleneck, found.group) == ("run", "session")
    assert found.serial_ns == pytest.approx(33 * MS), "what was measured"
    assert found.stages["run"] == pytest.approx(33 * MS * 20 / 32)
    assert (found.overlapped_ns, found.share_of_slowest) == (None, None)
    assert found.images_per_s_if_free == pytest.approx(2 / 0.033 / (1 - 20 / 32))


def test_a_slow_session_holds_up_what_overlaps() -> None:
    groups = {"loader": 11 * MS, "session": 22 * MS}
    found = breakdown([record(DATA | SESSION | groups, 24 * MS)])
    assert found is not None
    assert (found.bottleneck, found.group) == ("run", "session")
    assert found.overlapped_ns == pytest.approx(24 * MS)
    assert found.share_of_slowest == pytest.approx(22 / 24)
    free = 2 / 0.024 * 22 / 11
    assert found.images_per_s_if_free == pytest.approx(free), "then the loader is slowest"
    assert list(found.stages) == [*DATA, *SESSION, "loader", "session"]


def test_a_slow_loader_does_though_run_is_the_largest_stage() -> None:
    groups = {"loader": 40 * MS, "session": 22 * MS}
    found = breakdown([record(DATA | SESSION | groups, 40 * MS, replicas=2)])
    assert found is not None
    assert (found.bottleneck, found.group) == ("decode", "loader")
    assert found.share_of_slowest == pytest.approx(1)
    assert found.images_per_s_if_free == pytest.approx(2 * 2 / 0.034), "6 of 40 ms are saved"


def test_what_a_group_takes_beyond_its_stages_is_not_free_with_one_of_them() -> None:
    """Stages of 1, 6 and 3 ms; in a loader that takes 30 ms, 20 ms are none of theirs."""
    session = SESSION | {"run": 1 * MS, "session": 3 * MS}
    for loader, left in ((30, 24), (10, 4), (5, 3)):  # of 5 ms (they overlap) decode has 3
        found = breakdown([record(DATA | session | {"loader": loader * MS}, loader * MS)])
        assert found is not None
        assert found.bottleneck == "decode"
        assert found.images_per_s_if_free == pytest.approx(2e3 / left)


def test_groups_on_the_same_cores_take_from_each_other() -> None:
    stages = DATA | SESSION | {"loader": 10 * MS, "session": 20 * MS}
    apart, together = (
        breakdown([replace(record(stages, took * MS, cores=2),
                           facts={"pipeline": {"loader_cores": n, "session_cores": n}})])
        for n, took in ((1, 21), (2, 31))
    )  # fmt: skip
    assert apart is not None
    assert together is not None
    assert apart.bottleneck == together.bottleneck
    assert apart.images_per_s_if_free == pytest.approx(2 / 0.021 * 20 / 10)
    assert together.images_per_s_if_free == pytest.approx(2 / 0.031 * 30 / (30 - 20 * 20 / 22))


def test_a_decoder_on_the_device_is_the_sessions() -> None:
    """Its loader only reads; the session's time includes decode and transform."""
    alone = DATA | SESSION | {"decode": 25 * MS}
    one = record(alone | {"loader": 1 * MS, "session": 50 * MS}, 50 * MS)
    found = breakdown([replace(one, facts={"pipeline": {"on_device": True}})])
    assert found is not None
    assert (found.bottleneck, found.group) == ("decode", "session")
    assert found.images_per_s_if_free == pytest.approx(2 / 0.025), "half of the session's is left"
    elsewhere = breakdown([one])
    assert elsewhere is not None
    assert elsewhere.bottleneck == "run"


def test_on_one_core_nothing_overlaps() -> None:
    groups = {"loader": 10 * MS, "session": 22 * MS}
    found = breakdown([record(DATA | SESSION | groups, 33 * MS, cores=1)])
    assert found is not None
    assert found.share_of_slowest == pytest.approx(22 / 33)
    assert found.images_per_s_if_free == pytest.approx(2 / 0.033 * 32 / 12)


def test_repeats_count_by_their_median() -> None:
    groups = {"loader": 1 * MS, "session": 22 * MS}
    odd = DATA | SESSION | groups | {"run": 90 * MS, "session": 92 * MS}
    records = [record(DATA | SESSION | groups, 22 * MS, r) for r in range(2)]
    found = breakdown([*records, record(odd, 99 * MS, 2)])
    assert found is not None
    assert found.stages["run"] == 20 * MS
    assert found.overlapped_ns == pytest.approx((22 * 22 * 99) ** (1 / 3) * MS), "as everywhere"


def test_parts_and_whole_agree_in_every_cell() -> None:
    file = make_pipelines.run(make_pipelines.cells(batches=(1, 8)), repeats=2)
    staged = pipeline.staged(summarise([file]))
    assert len(staged) == len([c for c in file.header.planned if c.boundary == "pipeline"])
    for s, found in staged:
        shares = pipeline.parts(found)
        assert sum(part.share for part in shares.values()) == pytest.approx(1)
        assert sum(part.value for part in shares.values()) == pytest.approx(found.serial_ns)
        rate = s.throughput.value
        assert rate is not None
        batch_ns = s.cell.batch_size * s.cell.replicas * 1e9 / rate
        if s.cell.scenario == "latency":
            assert found.serial_ns == pytest.approx(batch_ns)
            share = shares[found.bottleneck].share
            assert found.images_per_s_if_free == pytest.approx(rate / (1 - share))
        else:
            assert found.overlapped_ns == pytest.approx(batch_ns)
            both = (found.stages["loader"], found.stages["session"])
            assert found.share_of_slowest == pytest.approx(max(both) / batch_ns)
            assert rate <= found.images_per_s_if_free <= rate * max(both) / min(both) * (1 + 1e-9)


def test_without_stages_there_is_nothing_to_tell() -> None:
    assert breakdown([]) is None
    assert breakdown([record({}, MS)]) is None
    assert breakdown([record({"copy_in": 1, "run": 2, "copy_out": 1}, MS)]) is None
    assert breakdown([record(DATA | SESSION, MS, boundary="compute")]) is None

"""Records of a job (static or dynamic dispatch), as every reader sees them."""

from __future__ import annotations

import json

import pytest

from gpubench.analysis.compare.paired import pair_of
from gpubench.analysis.scaling.efficiency import job_of
from gpubench.analysis.summary import summarise
from gpubench.records import samples
from gpubench.records.record import Record, RecordFile, merged
from gpubench.records.samples import JOB_DONE, Samples
from gpubench.report import csv_report, frames, markdown, terminal
from gpubench.report.charts import samples as charts_samples
from gpubench.report.exports import bencher, pytest_benchmark
from gpubench.run import record_builder
from gpubench.run.agent.messages import Done
from tests.report import make

MS = make.MS
CELL = make.cell(scenario="throughput", batch_size=4, replicas=3, dispatch="dynamic")


def worker(replica: int, units: int, unit_ms: float, start_ms: float, claim_ms: float) -> Samples:
    took = units * (unit_ms + claim_ms)
    return Samples(
        replica=replica, device=f"cpu:{replica}", iterations=10, stop_reason=JOB_DONE,
        durations_ns=[round(unit_ms * MS)] * units, start_ns=round(start_ms * MS),
        end_ns=round((start_ms + took) * MS), claim_ns=round(units * claim_ms * MS),
    )  # fmt: skip


def job(factor: float = 1.0) -> list[Samples]:
    """30 units of 10 batches of 4 images in 201 ms; the last replica came too late for any."""
    return [
        worker(0, 20, 9.9 * factor, 1, 0.1 * factor),
        worker(1, 10, 19.9 * factor, 1, 0.1 * factor),
        worker(2, 0, 1, 180, 0),
    ]


def file(scale: float = 1.0) -> RecordFile:
    records = [
        Record(cell=CELL, repeat=n, status="ok", replicas=job(scale * (1 + n / 100)))
        for n in range(3)
    ]
    return RecordFile("x/records.jsonl", make.header([CELL]), records)


def test_images_per_s_are_over_the_makespan() -> None:
    record = file().records[0]
    assert samples.window_ns(record.replicas) == (0, 201 * MS)
    assert record.images_per_s() == pytest.approx(1200 / 0.201)
    assert record.replica_rates() == pytest.approx([800 / 0.201, 400 / 0.201, 0])
    assert record.median_ns() == pytest.approx(0.99 * MS), "20 of 30 samples are the fast one's"


def test_what_the_dispatch_lost_and_what_it_cost() -> None:
    [summary] = summarise([file()])
    found = job_of(summary)
    assert found is not None
    ideal = 4 * (1000 / 0.99 + 1000 / 1.99)
    assert found.share.value == pytest.approx(1200 / 0.201 / ideal, rel=1e-3)
    assert found.claim_ns == pytest.approx(0.01 * 1.01 * MS, rel=0.001)
    nobody = [Record(cell=CELL, repeat=0, status="ok", replicas=[worker(0, 0, 1, 0, 0)])]
    [idle] = summarise([RecordFile("x", make.header([CELL]), nobody)])
    assert job_of(idle) is None


def test_a_job_has_a_window_though_its_replicas_never_ran_together() -> None:
    own = [
        Record(cell=CELL, repeat=0, status="ok", replicas=[s], facts={"pinned": [str(s.replica)]})
        for s in job()
    ]
    done = Done(merged(own))
    record = record_builder.measured(CELL, 0, done, {})
    assert record.status == "ok"
    assert "NO-COMMON-WINDOW" not in record.flags
    assert record.facts["pinned"] == ["0", "1", "2"]


def test_every_reader_gives_the_same_number() -> None:
    made = file()
    [summary] = summarise([made])
    expected = summary.throughput.value
    assert expected == pytest.approx(1200 / 0.201, rel=0.03)
    [table] = [t for t in make.tables([made]) if t.title == "Throughput"]
    row = dict(zip((c.name for c in table.columns), table.rows[0], strict=True))
    assert row["images/s"].value == expected
    lines = [line.split(",") for line in csv_report.render([made]).splitlines()]
    assert float(lines[1][lines[0].index("value")]) == expected
    rates = [row["images_per_s"] for row in frames.rows([made])]
    assert rates == [r.images_per_s() for r in made.records]
    [bench] = json.loads(pytest_benchmark.render([made]))["benchmarks"]
    assert bench["extra_info"]["images_per_s"] == expected
    assert f"{expected:.6g}"[:3] in str(bencher.render([made]))
    drawn = charts_samples.build([summary])["cells"][0]
    assert [len(xs) for _, _, xs, _ in drawn["samples"]] == [20, 10, 0] * 3
    assert terminal.render([made])
    assert markdown.render([made])


def test_a_pair_is_compared_by_the_makespan() -> None:
    pair = pair_of(file().records[0], file(scale=1.1).records[0])
    assert pair is not None
    assert 0.08 < pair.d < 0.1, "10 % more, less the first millisecond"

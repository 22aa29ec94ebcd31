"""Shares and bounds, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gpubench.analysis import roofline
from gpubench.analysis.summary import summarise
from gpubench.analysis.tables import roofline as tables_roofline
from gpubench.records.record import NO_CEILING, Ceiling, Record, RecordFile, Work
from gpubench.report import csv_report, html, markdown, terminal
from gpubench.suite.goal import Metric
from gpubench.suite.types import Cell
from tests.report import make

WORK = Work(flops=8e9, weights=25e6, activations=20e6, ends=150e3)
RATE, P50, P99 = Metric("throughput"), Metric("latency"), Metric("latency", 0.99)


def ceiling(**changes: Any) -> Ceiling:
    given: dict[str, Any] = {"work": WORK, "flops_per_s": 400e9, "bytes_per_s": 40e9}
    return Ceiling(**(given | {"precision": "fp32"} | changes))


def records(cell: Cell, ns: int, found: Ceiling | None, **changes: Any) -> RecordFile:
    """Every batch takes exactly ``ns``."""
    file = make.run([cell], repeats=2, samples=40)

    def exact(r: Record) -> Record:
        replicas = [
            replace(s, durations_ns=[ns * s.iterations] * 40, start_ns=0,
                    end_ns=ns * s.iterations * 40) for s in r.replicas
        ]  # fmt: skip
        return replace(r, replicas=replicas, ceiling=found, **changes)

    return replace(file, records=[exact(r) for r in file.records])


def one(cell: Cell, ns: int, found: Ceiling | None) -> roofline.Share | None:
    [s] = summarise([records(cell, ns, found)])
    return roofline.shares(s).get(0)


def test_compute_binds() -> None:
    """Two replicas, two images each: 32 GFLOP in 100 ms are 320 of 400 GFLOP/s."""
    cell = make.cell(batch_size=2, replicas=2)
    share = one(cell, 100_000_000, ceiling())
    assert share is not None
    assert share.share == pytest.approx(0.8)
    assert (share.binds, share.roofline_ns) == ("compute", pytest.approx(80e6))
    assert share.flops_per_s == pytest.approx(320e9)
    assert share.intensity == pytest.approx(32e9 / (4 * (2 * 25e6 + 4 * 20e6)))


def test_both_scenarios_say_the_same_of_the_same_loop() -> None:
    latency = one(make.cell(batch_size=2), 50_000_000, ceiling())
    rate = one(make.cell(batch_size=2, scenario="throughput"), 50_000_000, ceiling())
    assert latency is not None
    assert rate is not None
    assert rate.share == pytest.approx(latency.share)


def test_memory_binds_where_little_is_computed_with_much() -> None:
    slow = ceiling(bytes_per_s=1e9)  # 4 * 45e6 bytes: 180 ms; 8 GFLOP: 20 ms
    share = one(make.cell(), 360_000_000, slow)
    assert share is not None
    assert (share.binds, share.share) == ("memory", pytest.approx(0.5))
    assert share.flops_per_s / (share.intensity * 1e9) == pytest.approx(0.5)


def test_a_smaller_type_moves_fewer_bytes() -> None:
    fp32, bf16, int8 = (
        one(make.cell(precision=p), 10_000_000, ceiling()) for p in ("fp32", "bf16", "int8")
    )
    assert fp32 is not None
    assert bf16 is not None
    assert int8 is not None
    assert bf16.intensity == pytest.approx(2 * fp32.intensity)
    assert int8.intensity == pytest.approx(4 * fp32.intensity)


def test_without_a_ceiling_or_products_there_is_no_share() -> None:
    assert one(make.cell(), 10_000_000, None) is None
    assert one(make.cell(), 10_000_000, ceiling(work=replace(WORK, flops=0))) is None


def test_a_peak_that_a_cell_exceeds_is_shown_and_noted() -> None:
    """As it was measured: capping it would hide a wrong peak."""
    right = records(make.cell(), 25_000_000, ceiling())
    wrong = records(make.cell(), 25_000_000, ceiling(flops_per_s=200e9))
    for file, value in ((right, 0.8), (wrong, 1.6)):
        table = tables_roofline.table(summarise([file]))
        names = [column.name for column in table.columns]
        assert table.rows[0][names.index("share")].value == pytest.approx(value)
        assert (tables_roofline.ABOVE in table.notes) is (value > 1)


def test_the_table_in_every_format() -> None:
    cells = [make.cell(batch_size=8), make.cell(batch_size=8, scenario="throughput")]
    files = [records(cell, 250_000_000, ceiling()) for cell in cells]
    file = replace(files[0], records=[r for f in files for r in f.records],
                   header=replace(files[0].header, planned=cells))  # fmt: skip
    page = html.render([file])  # one table of all cells, with groups of columns
    assert ">Roofline<" in page
    assert tables_roofline.TITLE in terminal.render([file])
    for shown in (terminal.render([file]), markdown.render([file]), page):
        assert "64.0 %" in shown
        assert "compute" in shown
    assert "share of the roofline,ratio,0.64" in csv_report.render([file])


def test_why_cells_have_none_is_noted_beside_those_that_have_one() -> None:
    file = records(make.cell(), 25_000_000, ceiling())
    other = records(make.cell(precision="tf32"), 25_000_000, None, facts={NO_CEILING: "no tf32"})
    table = tables_roofline.table(summarise([replace(file, records=file.records + other.records)]))
    assert len(table.rows) == 1
    assert "Left out: no tf32." in table.notes
    assert not tables_roofline.table(summarise([other])).rows


def test_no_cell_can_beat_its_bound() -> None:
    """Compute: 16 GFLOP at 400 GFLOP/s, and a margin for peaks that were measured too low."""
    cell = make.cell(batch_size=2)
    assert roofline.best(cell, ceiling(), RATE) == pytest.approx(roofline.MARGIN * 50)
    assert roofline.best(cell, ceiling(), P50) == pytest.approx(40e6 / roofline.MARGIN)
    assert roofline.best(cell, ceiling(), P99) == roofline.best(cell, ceiling(), P50)
    share = one(cell, 40_000_000, ceiling())
    assert share is not None
    assert share.share == pytest.approx(1)


def test_the_bound_of_weights_that_no_cache_holds() -> None:
    """100.6 MB from a memory of 1 GB/s; a cache as large keeps them."""
    slow, cell = ceiling(bytes_per_s=1e9), make.cell()
    moved_s = 4 * (25e6 + 150e3) / 1e9
    assert roofline.best(cell, slow, RATE) == pytest.approx(roofline.MARGIN / moved_s)
    half = roofline.best(cell, replace(slow, cache_bytes=50e6), RATE)
    assert half == pytest.approx(roofline.MARGIN / (moved_s - 0.05))
    whole = roofline.best(cell, replace(slow, cache_bytes=200e6), RATE)
    assert whole == pytest.approx(roofline.MARGIN * 50)


def test_bytes_from_the_host_take_less_of_the_memory() -> None:
    slow = ceiling(work=replace(WORK, weights=0.0, ends=25e6), bytes_per_s=1e9)
    for given, precision, size in (("uint8", "fp32", 1), ("float16", "fp32", 2),
                                   ("float32", "fp32", 4), ("float32", "fp16", 2)):  # fmt: skip
        cell = make.cell(input=given, precision=precision)
        bound = roofline.MARGIN / (size * 25e-3)
        assert roofline.best(cell, slow, RATE) == pytest.approx(bound)


def test_replicas_share_the_memory_and_have_their_part_of_the_units() -> None:
    slow, cell = ceiling(bytes_per_s=1e9), make.cell(replicas=4)
    alone = 4 * (25e6 + 150e3) / 1e9
    assert roofline.best(cell, slow, RATE) == pytest.approx(roofline.MARGIN / alone)
    assert roofline.best(cell, slow, P50) == pytest.approx(1e9 * alone / roofline.MARGIN)
    assert roofline.best(cell, ceiling(), P50) == pytest.approx(80e6 / roofline.MARGIN)
    crowded = make.cell(replicas=4, replicas_per_device=4)  # one at a time may have it all
    assert roofline.best(crowded, ceiling(), P50) == pytest.approx(20e6 / roofline.MARGIN)


def test_on_a_gpu_a_convolution_may_need_fewer_operations() -> None:
    gpu = make.cell(device="cuda", cores=0)
    bound = roofline.best(gpu, ceiling(bytes_per_s=1e15), RATE)
    assert bound == pytest.approx(roofline.MARGIN * roofline.WINOGRAD * 50)


def test_nothing_is_known_of_other_metrics_or_without_a_ceiling() -> None:
    cell = make.cell()
    assert roofline.best(cell, ceiling(), Metric("energy")) is None
    assert roofline.best(cell, ceiling(), Metric("memory")) is None
    assert roofline.best(cell, None, RATE) is None
    nothing = Work(flops=0, weights=0, activations=0, ends=0)
    assert roofline.best(cell, ceiling(work=nothing), RATE) is None
    assert roofline.best(cell, ceiling(work=nothing), P50) is None

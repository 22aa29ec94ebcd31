import math

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.analysis.cells import summarise
from gpubench.analysis.stats import Estimate
from gpubench.analysis.tables import Table, build
from gpubench.record import Record, RecordFile
from tests.report import make


def tables(*files: RecordFile) -> dict[str, Table]:
    return {t.title: t for t in build(files)}


def rows(table: Table) -> list[dict[str, object]]:
    return [dict(zip((c.name for c in table.columns), row, strict=True)) for row in table.rows]


def exact(cells, ns, *, repeats=3, **changes) -> RecordFile:
    """Every sample of a cell takes exactly ``ns(cell, repeat)``."""
    base = make.run(cells, repeats=repeats, samples=400)
    records = []
    for r in base.records:
        each = int(ns(r.cell, r.repeat))
        replicas = [
            replace(s, durations_ns=[each * s.iterations] * 400, start_ns=0,
                    end_ns=each * s.iterations * 400) for s in r.replicas
        ]  # fmt: skip
        records.append(replace(r, replicas=replicas, **changes))
    return replace(base, records=records)


def test_headline_is_the_mean_of_logs_of_the_medians():
    found = tables(exact([make.cell()], lambda c, n: [1e6, 2e6, 4e6][n]))
    p50 = rows(found["Latency per batch"])[0]["p50"]
    assert p50.value == pytest.approx(2e6)
    assert p50.high / p50.value == pytest.approx(math.exp(4.302652729911275 * math.log(2) / 3**0.5))


def test_throughput_counts_images_in_the_common_window_never_batch_over_latency():
    cell = make.cell(scenario="throughput", batch_size=4)
    file = exact([cell], lambda c, n: 1e6)
    slow = [
        replace(r, replicas=[replace(s, end_ns=2 * s.end_ns) for s in r.replicas])
        for r in file.records
    ]
    found = tables(replace(file, records=slow))  # half of the window was spent outside samples
    assert rows(found["Throughput"])[0]["images/s"].value == pytest.approx(2000, rel=1e-3)


def test_speed_up_is_over_the_baseline_backend_on_the_same_axes_and_paired():
    cells = make.grid(backends=("torch-eager", "openvino"), batches=(1, 4), replicas=(1,))
    drift = [1.0, 5.0, 0.2]
    file = exact(cells, lambda c, n: make.batch_ns(c) * drift[n])
    for title in ("Latency per batch", "Throughput"):
        for row in rows(tables(file)[title]):
            e = row["speed-up"]
            if row["backend"] == "torch-eager":
                assert e.why == "baseline"
            else:
                assert (e.low, e.value, e.high) == pytest.approx((2.3, 2.3, 2.3), rel=1e-3)


def test_speed_up_says_when_there_is_no_baseline():
    found = rows(tables(make.run([make.cell(backend="openvino")]))["Latency per batch"])
    assert found[0]["speed-up"] == Estimate(why="no baseline")


def test_wrong_answers_keep_timing_and_lose_every_rank():
    rng, cells = np.random.default_rng(0), make.grid(backends=("torch-eager", "openvino"))
    records = [make.record(c, n, rng, samples=50, passed=c.backend != "openvino" or n != 1)
               for c in cells for n in range(3)]  # fmt: skip
    found = tables(RecordFile("x", make.header(cells), records))
    bad = [r for r in rows(found["Latency per batch"]) if r["backend"] == "openvino"]
    assert bad
    assert all(r["p50"].value and r["speed-up"].why == "not ranked" for r in bad)
    assert all(r["flags"][0] == "failed: parity" for r in bad)
    assert {r["backend"] for r in rows(found["Scaling over replicas"])} == {"torch-eager"}


def test_a_wrong_baseline_gives_no_speed_up():
    rng = np.random.default_rng(0)
    cells = [make.cell(), make.cell(backend="openvino")]
    records = [make.record(c, 0, rng, passed=c.backend == "openvino") for c in cells]
    found = rows(tables(RecordFile("x", make.header(cells), records))["Latency per batch"])
    assert [r["speed-up"].why for r in found] == ["not ranked", "no baseline"]


def test_scaling_weak_and_strong_against_hand_calculated_values():
    grid = {"backends": ("torch-eager",), "scenarios": ("throughput",)}
    cells = make.grid(batches=(4, 8), replicas=(1, 2), **grid)
    ns = {(4, 1): 4e6, (8, 1): 6e6, (4, 2): 5e6, (8, 2): 12e6}
    file = exact(cells, lambda c, n: ns[c.batch_size, c.replicas])
    found = {(r["scaling"], r["batch"]): r for r in rows(tables(file)["Scaling over replicas"])}
    # X(4x2) = 8/5ms = 1600; X1(4) = 1000; X1(8) = 1333.3; X(8x2) = 16/12ms = 1333.3
    assert found["weak", 4]["efficiency"].value == pytest.approx(1600 / 2 / 1000)
    assert found["strong", 4]["efficiency"].value == pytest.approx(1600 / 2 / (8000 / 6))
    assert found["weak", 8]["efficiency"].value == pytest.approx(0.5)
    assert ("strong", 8) not in found  # no one-replica cell of batch 16
    assert found["weak", 4]["per replica"] == pytest.approx([800, 800])
    assert found["weak", 4]["one replica owns"] == "1 core"


def test_scaling_never_crosses_runs():
    one = make.run(make.grid(batches=(4,), replicas=(1,)), run_id="a")
    two = make.run(make.grid(batches=(4,), replicas=(2,)), run_id="b")
    assert "Scaling over replicas" not in tables(one, two)


def test_several_runs_gain_a_column_and_are_never_pooled():
    file = make.run([make.cell()])
    found = rows(
        tables(file, file, replace(file, path="elsewhere/records.jsonl"))["Latency per batch"]
    )
    assert len({r["run"] for r in found}) == 3
    assert [r["p50"].n for r in found] == [3, 3, 3]


def test_the_last_record_of_a_repeat_counts():
    failed = Record(cell=make.cell(), repeat=0, status="failed", kind="crash", reason="x")
    file = make.run([make.cell()], repeats=2)
    found = tables(replace(file, records=[failed, *file.records]))
    assert "Skips and failures" not in found
    assert rows(found["Latency per batch"])[0]["repeats"] == 2


def test_skips_failures_and_missing_cells_are_listed_with_reason_and_remedy():
    found = rows(tables(make.realistic(samples=40))["Skips and failures"])
    seen = {(r["status"][0], r["reason"], r["remedy"], r["repeats"]) for r in found}
    gpu = ("unavailable", "no CUDA device", "run on a machine with an NVIDIA GPU", "all")
    assert gpu in seen
    assert ("failed: crash", "worker 1 ended by signal 11", "", "2") in seen
    assert any(status == "missing" for status, *_ in seen)


def test_a_cell_with_one_broken_repeat_stays_ranked_and_says_so():
    file = make.realistic(samples=40)
    s = next(s for s in summarise([file]) if any(r.kind == "crash" for r in s.records))
    assert s.ranked
    found = next(r for r in rows(tables(file)["Latency per batch"]) if r["cell"] == s.key)
    assert "1 of 3 repeats failed" in found["flags"]


def test_flags_are_the_union_over_repeats():
    file = make.realistic(samples=40)
    flagged = [r for r in rows(tables(file)["Throughput"])
               if r["backend"] == "onnxruntime" and r["batch"] == 16]  # fmt: skip
    assert flagged
    assert all(r["flags"] == ["CPU-BUSY", "DRIFT"] for r in flagged)


def test_too_few_samples_show_no_percentile():
    found = rows(tables(make.run([make.cell()], repeats=1, samples=50))["Latency per batch"])[0]
    assert found["p99"].value is None
    assert found["p99"].why == "n too small: 50 of 368"
    assert found["p50"].why == "1 repeat"
    assert "p99.9" not in found


def test_cost_pools_scenarios_and_adds_up():
    cells = [make.cell(backend="torch-compile", scenario=s) for s in ("latency", "throughput")]
    found = rows(tables(make.run(cells))["Cost to first answer"])
    assert len(found) == 1
    assert found[0]["total"] == (900 + 9000 + 80 + 35) * make.MS
    assert found[0]["total"] == sum(
        found[0][k] for k in ("export", "compile", "open", "first inference")
    )


def test_answers_show_the_worst_repeat_and_a_wilson_interval():
    rng = np.random.default_rng(0)
    records = [make.record(make.cell(), n, rng, passed=n != 1) for n in range(3)]
    found = rows(tables(RecordFile("x", make.header([make.cell()]), records))["Answers"])[0]
    assert found["answers"] == "WRONG"
    assert found["relative error"] == 0.31
    assert found["accuracy"].value == 12 / 32
    assert found["accuracy"].n == 32
    assert found["reference"] == 30 / 32


def test_an_error_that_is_not_finite_is_the_worst():
    rng = np.random.default_rng(0)
    ok = make.record(make.cell(), 0, rng)
    broken = replace(ok, repeat=1, status="failed", kind="parity",
                     parity=replace(ok.parity, relative_error=None, passed=False))  # fmt: skip
    found = rows(tables(RecordFile("x", make.header([make.cell()]), [ok, broken]))["Answers"])[0]
    assert found["relative error"] == "not finite"


def test_axes_that_agree_become_a_note():
    table = tables(make.run(make.grid(batches=(1,), replicas=(1,))))["Latency per batch"]
    assert "device" not in [c.name for c in table.columns]
    assert any("model resnet18" in note for note in table.notes)


def test_frame_has_bounds_in_their_own_columns():
    frame = tables(make.run([make.cell()]))["Latency per batch"].frame()
    assert {"p50 [ns]", "p50 low [ns]", "p50 high [ns]", "backend"} <= set(frame.columns)
    assert frame["p50 low [ns]"][0] < frame["p50 [ns]"][0] < frame["p50 high [ns]"][0]


def test_nothing_measured_gives_no_tables_but_the_missing():
    file = RecordFile("x", make.header([make.cell()]), [])
    assert list(tables(file)) == ["Skips and failures"]

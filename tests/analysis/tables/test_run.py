import math
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.analysis import stats
from gpubench.analysis.stats import Estimate, two_way
from gpubench.analysis.summary import WIDE, Summary, flags_of, summarise
from gpubench.analysis.tables.table import Table
from gpubench.records.record import Record, RecordFile
from gpubench.records.samples import Samples
from gpubench.report import csv_report, terminal
from gpubench.suite.types import Policy
from tests.report import make, make_pairs


def tables(*files: RecordFile) -> dict[str, Table]:
    return {t.title: t for t in make.tables(files)}


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
    found = tables(exact([make.cell()], lambda c, n: [2e6 / 1.1, 2e6, 2.2e6][n]))
    p50 = rows(found["Latency per batch"])[0]["p50"]
    assert p50.value == pytest.approx(2e6)
    half = 4.302652729911275 * math.log(1.1) / 3**0.5
    assert p50.high / p50.value == pytest.approx(math.exp(half))


def test_the_mean_over_repeats_is_said_to_be_the_geometric_one_wherever_it_is_said():
    p50 = [c.help for t in tables(make.realistic(samples=40)).values() for c in t.columns
           if c.name == "p50"]  # fmt: skip
    assert p50
    assert all("geometric mean over repeats" in said for said in p50)
    for page in ("docs/reading-results.md", "docs/how-it-measures.md"):
        assert "over repeats" in (text := Path(page).read_text())
        assert "geometric mean" in text
        assert "averaged over repeats" not in text


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


def without_window(file: RecordFile, which) -> RecordFile:
    """Replicas of the chosen records run one after the other."""
    records = []
    for r in file.records:
        replicas = r.replicas
        if which(r):
            replicas = [replace(s, start_ns=10**12 * i, end_ns=10**12 * i + 10**9)
                        for i, s in enumerate(replicas)]  # fmt: skip
        records.append(replace(r, replicas=replicas, flags=["NO-COMMON-WINDOW"]))
    return replace(file, records=records)


def test_a_repeat_without_a_common_window_is_left_out_of_scaling():
    cells = make.grid(backends=("torch-eager",), batches=(4,), replicas=(1, 2))
    base = make.run(cells, samples=40)
    file = without_window(base, lambda r: r.cell.replicas == 2 and r.repeat == 1)
    found = rows(tables(file)["Scaling over replicas"])[0]
    assert found["images/s"].n == 2
    assert len(found["per replica"]) == 2
    assert found["slowest / mean"] == pytest.approx(1, abs=0.05)


def test_a_cell_or_baseline_that_never_had_a_common_window_shows_nothing():
    grid = {"batches": (4,), "replicas": (1, 2), "scenarios": ("throughput",)}
    cells = make.grid(backends=("torch-eager", "openvino"), **grid)
    base = make.run(cells, samples=40)
    file = without_window(base, lambda r: r.cell.replicas == 2 and r.cell.backend == "torch-eager")
    found = tables(file)
    assert {r["backend"] for r in rows(found["Scaling over replicas"])} == {"openvino"}
    lone = next(r for r in rows(found["Throughput"])
                if r["backend"] == "openvino" and r["replicas"] == 2)  # fmt: skip
    assert lone["speed-up"] == Estimate(why="not measured")


def test_a_replica_that_never_worked_in_the_window_has_no_rate_of_its_own():
    cells = make.grid(backends=("torch-eager",), batches=(4,), replicas=(1, 2),
                      scenarios=("throughput",))  # fmt: skip
    base = make.run(cells, samples=40)
    records = [
        replace(r, replicas=[r.replicas[0], *(replace(s, durations_ns=[]) for s in r.replicas[1:])])
        for r in base.records
    ]
    found = rows(tables(replace(base, records=records))["Scaling over replicas"])[0]
    assert found["per replica"] == []
    assert found["slowest / mean"] is None


def test_latencies_outside_the_common_window_count_nowhere():
    cell = make.cell(replicas=2)
    alone, together = [10_000_000] * 30, [30_000_000] * 20
    early = Samples(replica=0, device="cpu:0", durations_ns=alone + together, start_ns=0,
                    end_ns=900_000_000)  # fmt: skip
    late = Samples(replica=1, device="cpu:1", durations_ns=together + alone, start_ns=300_000_000,
                   end_ns=1_200_000_000)  # fmt: skip
    record = Record(cell=cell, repeat=0, status="ok", replicas=[early, late])
    s = summarise([RecordFile("x", make.header([cell]), [record])])[0]
    assert s.samples_ns.tolist() == [3e7] * 40
    assert s.p50.value == 3e7


@pytest.mark.parametrize(
    ("scenario", "pilot", "most"), [("throughput", 3, 8), ("latency", 5, 12), ("latency", 3, 8)]
)
def test_shown_intervals_cover_with_the_stopping_rule_inside(scenario, pilot, most):
    rng = np.random.default_rng(11)
    cell, policy = make.cell(scenario=scenario), Policy(repeats=pilot, max_repeats=most)
    hits, lengths = 0, set()
    for durations in np.exp(rng.normal(math.log(1e9), 0.02, (4000, most))).astype(int).tolist():
        values = durations if scenario == "latency" else [1e9 / d for d in durations]
        fit = two_way({"cell": dict(enumerate(values[:pilot]))}, pilot)
        n = min(most, fit.needed("cell", policy.target_half_width))
        records = [
            Record(cell=cell, repeat=i, status="ok", replicas=[
                Samples(replica=0, device="cpu:0", durations_ns=[d], end_ns=d)])
            for i, d in enumerate(durations[:n])
        ]  # fmt: skip
        s = Summary(run="x", baseline="", policy=policy, cell=cell, records=records)
        e = s.p50 if scenario == "latency" else s.throughput
        hits += e.low <= (1e9 if scenario == "latency" else 1.0) <= e.high
        lengths.add(n)
    assert lengths == set(range(pilot, most + 1))
    assert hits / 4000 == pytest.approx(0.95, abs=0.01)


def staged(repeats: int, **changes) -> list[str]:
    policy = Policy(repeats=3, max_repeats=8, target_half_width=0.02)
    file = make.run([make.cell()], repeats=repeats, samples=40, policy=policy, **changes)
    return flags_of(summarise([file])[0])


def test_a_second_stage_that_ended_early_says_so():
    assert staged(4, launch=0.05) == [WIDE]
    assert staged(8, launch=0.05) == []  # all that the policy allows
    assert staged(4, launch=0.0001) == []  # narrow enough
    assert staged(2, launch=0.01) == []  # the pilot itself is not complete
    once = make.run([make.cell()], repeats=3, launch=0.05, policy=Policy(repeats=3, max_repeats=3))
    assert flags_of(summarise([once])[0]) == []


def test_invalidated_attempts_are_counted_with_the_flags():
    file = make.run([make.cell()], samples=40)
    records = [replace(r, invalidated=n) for r, n in zip(file.records, (1, 0, 2), strict=True)]
    found = rows(tables(replace(file, records=records))["Latency per batch"])[0]
    assert found["flags"] == ["3 attempts invalidated"]
    records[2] = replace(records[2], invalidated=0)
    found = rows(tables(replace(file, records=records))["Latency per batch"])[0]
    assert found["flags"] == ["1 attempt invalidated"]


def test_machine_table_has_the_extremes_and_only_what_was_recorded():
    file = make.run([make.cell(replicas=2), make.cell(scenario="throughput")], samples=40)
    found = rows(tables(file)["Machine while measuring"])
    assert [r["scenario"] for r in found] == ["latency", "throughput"]
    assert [r["host memory"] for r in found] == [800 << 20, 400 << 20]
    assert "temperature" not in found[0]

    hot = make.GPU | {"temperature_c_max": 77, "sm_mhz": {"min": 900.0, "max": 1500.0}}
    broken = {"index": 1, "not_measured": {"gpu": "lost"}}
    records = [
        replace(r, telemetry={"gpus": [make.GPU, hot if r.repeat == 1 else broken]})
        for r in file.records
    ]
    found = rows(tables(replace(file, records=records))["Machine while measuring"])[0]
    assert (found["SM clock min"], found["SM clock max"]) == (900, 1980)
    assert (found["temperature"], found["mean power"], found["peak power"]) == (77, 312.5, 402)
    assert found["GPU memory"] == 3 << 30

    records = [replace(r, telemetry={"start_s": 0.5 + r.repeat}) for r in file.records]
    found = rows(tables(replace(file, records=records))["Machine while measuring"])[0]
    assert found["start"] == 2.5e9
    assert "start skew" not in found  # older records do not tell
    records = [
        replace(r, replicas=[replace(s, late_ns=9_000 * s.replica + r.repeat) for s in r.replicas])
        for r in file.records
    ]
    found = rows(tables(replace(file, records=records))["Machine while measuring"])
    assert [r["start skew"] for r in found] == [9_002, None]  # nobody to wait for

    bare = [
        replace(r, telemetry={}, replicas=[replace(s, peak_host_bytes=0) for s in r.replicas])
        for r in file.records
    ]
    assert "Machine while measuring" not in tables(replace(file, records=bare))


def energetic(file, seconds=10.0, idle=20.0):
    """The repeats draw 100, 110 and 121 W."""
    return replace(file, records=[
        replace(r, telemetry={"energy": {"joules": 100 * 1.1**r.repeat * seconds,
                                         "seconds": seconds, "source": "rapl", "idle_watts": idle}})
        for r in file.records
    ])  # fmt: skip


def test_energy_per_image_has_an_interval_and_is_shown_where_it_was_counted():
    file = make.run([make.cell(scenario="throughput")], repeats=3, samples=40)
    assert "energy per image" not in rows(tables(file)["Machine while measuring"])[0]
    found = rows(tables(energetic(file))["Machine while measuring"])[0]
    rates = [r.images_per_s() for r in file.records]
    each = [100 * 1.1**n / rate for n, rate in enumerate(rates)]
    joules = found["energy per image"]
    assert joules.value == pytest.approx(math.prod(each) ** (1 / 3))
    assert joules.low < joules.value < joules.high
    assert joules.n == 3
    above = [(100 * 1.1**n - 20) / rate for n, rate in enumerate(rates)]
    assert found["above idle"].value == pytest.approx(math.prod(above) ** (1 / 3))


def test_energy_that_is_refused_says_why():
    file = make.run([make.cell(scenario="throughput")], repeats=3, samples=40)
    for changes, name, why in (
        ({"seconds": 2.0}, "energy per image", "under 5 s: energy needs longer windows"),
        ({"idle": None}, "above idle", "no idle power known"),
        ({"idle": 500.0}, "above idle", "no more than idle"),
    ):
        found = rows(tables(energetic(file, **changes))["Machine while measuring"])[0]
        assert found[name].value is None
        assert found[name].why.startswith(why)


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


def test_flags_are_those_of_most_repeats():
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
    found = rows(tables(make.run(cells))["Cold start"])
    assert len(found) == 1
    assert found[0]["total"] == (900 + 9000 + 80 + 35) * make.MS
    assert found[0]["total"] == sum(
        found[0][k] for k in ("export", "compile", "open", "first inference")
    )


def test_answers_show_the_worst_repeat_and_a_wilson_interval():
    rng = np.random.default_rng(0)
    records = [make.record(make.cell(), n, rng, passed=n != 1) for n in range(3)]
    made = tables(RecordFile("x", make.header([make.cell()]), records))
    found = rows(made["Answers"])[0]
    assert found["answers"] == "MISMATCH"
    assert found["relative error"] == 0.31
    found = rows(made["Accuracy"])[0]
    assert found["accuracy"].value == 12 / 32
    assert found["accuracy"].n == 32
    assert found["reference"] == 30 / 32


@pytest.mark.parametrize(
    ("assumed", "correct", "labelled", "doubted"),
    [(True, 10, 30, True), (True, 18, 30, False), (False, 10, 30, False), (True, 0, 0, False)],
)
def test_what_was_assumed_is_said_and_doubted_where_answers_are_wrong(
    assumed, correct, labelled, doubted
):
    ok = make.record(make.cell(), 0, np.random.default_rng(0))
    found = replace(ok.parity, preprocessing="8x8, no crop (somebody)", assumed=assumed,
                    labelled=labelled, correct=0, reference_correct=correct)  # fmt: skip
    file = RecordFile("x", make.header([make.cell()]), [replace(ok, parity=found)])
    said = [note for table in tables(file).values() for note in table.notes]
    assert said.count("Preprocessing: 8x8, no crop (somebody).") == 1
    words = f"The reference itself classifies {correct} of {labelled} images correctly. Its prepro"
    assert any(note.startswith(words) for note in said) == doubted
    told = " ".join(terminal.printed([terminal.summary([file])]).split())
    assert ("Its preprocessing is assumed" in told) == doubted


def test_accuracy_is_that_of_the_repeat_that_asked_about_most():
    rng = np.random.default_rng(0)
    first, *rest = (make.record(make.cell(), n, rng) for n in range(3))
    many = replace(first.parity, labelled=1297, correct=1200, reference_correct=1250,
                   correct5=1290, reference_correct5=1297, min_accuracy=0.9)  # fmt: skip
    rest[1] = replace(rest[1], parity=replace(rest[1].parity, relative_error=5e-4, disagreeing=2))
    records = [replace(first, parity=many), *rest]
    [s] = summarise([RecordFile("x", make.header([make.cell()]), records)])
    assert (s.parity.labelled, s.parity.correct, s.parity.correct5) == (1297, 1200, 1290)
    assert s.parity.min_accuracy == 0.9
    assert s.parity.relative_error == 5e-4
    assert s.parity.disagreeing == 2
    assert s.ranked


def test_below_the_floor_is_timed_but_never_ranked():
    ok = make.record(make.cell(), 0, np.random.default_rng(0))
    low = replace(ok, status="failed", kind="accuracy", reason="top-1 accuracy 0.5",
                  parity=replace(ok.parity, accurate=False, min_accuracy=0.95))  # fmt: skip
    file = RecordFile("x", make.header([make.cell()]), [low, replace(ok, repeat=1)])
    [s] = summarise([file])
    assert s.status == "failed: accuracy"
    assert not s.ranked
    assert len(s.timed) == 2
    assert s.parity.passed
    assert not s.parity.accurate


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


def test_nothing_measured_gives_no_tables_but_the_missing():
    file = RecordFile("x", make.header([make.cell()]), [])
    assert list(tables(file)) == ["Skips and failures"]


def test_rows_of_one_run_have_one_width_and_one_estimator_everywhere():
    cells = [make.cell(batch_size=b, backend=n) for b in (1, 8) for n in ("openvino", "x", "y")]
    file = make.run(cells, repeats=3, samples=60, launch=0.02)
    found = summarise([file])
    halves = [s.p50.relative_half_width for s in found]
    assert max(halves) == pytest.approx(min(halves))
    table = tables(file)["Latency per batch"]
    assert "they pool the residual noise of 6 cells over 3 rounds" in table.notes[0]
    assert "of this session" in table.notes[0]
    for row, s in zip(rows(table), found, strict=True):
        assert row["p50"] == s.p50
        assert row["p90"] == s.percentile(0.9)
        assert f"latency p50,ns,{s.p50.value},{s.p50.low},{s.p50.high}" in csv_report.render([file])
    paired = [stats.geometric_mean(list(s.medians.values())).relative_half_width for s in found]
    assert max(paired) > 2 * min(paired)  # each by itself: Student's t of two degrees of freedom


def test_a_percentile_comes_from_the_repeats_and_not_from_all_samples():
    """Processes that differ by 5 %: samples of all together would claim a tenth of the width."""
    cells = [make.cell(batch_size=b) for b in (1, 2, 4, 8)]
    found = summarise([make.run(cells, repeats=4, samples=400, launch=0.05)])
    for s in found:
        e = s.percentile(0.9)
        assert e.n == 4
        assert e.relative_half_width == pytest.approx(s.p50.relative_half_width, rel=0.4)
        assert s.percentile(0.999).why == "n too small: 1600 of 3688"


def test_devices_whose_runs_have_several_limits_are_held_to_none():
    limits = ("p50=1ms", "p50=90ms")
    files = [
        make.run([make.cell(), make.cell(batch_size=8)], run_id=limit, samples=60,
                 environment={"cpu": {"model": limit, "usable": 1}, "gpus": []},
                 policy=Policy(max_latency=limit))
        for limit in limits
    ]  # fmt: skip
    table = tables(*files)["Devices"]
    assert any("none counts" in note for note in table.notes)
    assert "p50 latency" not in [c.name for c in table.columns]
    assert all(row["images/s"].value for row in rows(table))
    same = [replace(f, header=replace(f.header, suite=files[1].header.suite)) for f in files]
    assert "p50 latency" in [c.name for c in tables(*same)["Devices"].columns]


def test_host_memory_is_that_of_the_last_turn():
    """A process's peak never falls, so that of its first turn is not all that it took."""
    [record] = make_pairs.arms([make.cell()], pairs=1)[0].records
    more = [replace(s, peak_host_bytes=900 << 20) for s in record.again[-1:]]
    record = replace(record, again=[*record.again[:-1], *more])
    made = tables(RecordFile("x", make.header([record.cell]), [record]))
    assert rows(made["Machine while measuring"])[0]["host memory"] == 900 << 20

"""Each cause of a scaling shortfall is named where the records show it, and only there."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.analysis.scaling import causes
from gpubench.analysis.scaling.causes import Pair
from gpubench.analysis.scaling.diagnosis import Diagnosis, diagnose
from gpubench.analysis.scaling.efficiency import job_of
from gpubench.analysis.summary import summarise
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from tests.analysis.scaled import (
    QUIET,
    cell,
    changed,
    diagnosed,
    environment,
    file,
    gpu,
    records,
    samples,
)

ONE = records(cell(), [100])
CUDA: dict[str, Any] = {"device": "cuda", "cores": 0}


def keys(d: Diagnosis) -> list[str]:
    return [c.key for c in d.causes]


def only(*measured: list[Record], **header: Any) -> Diagnosis:
    (found,) = diagnosed(*measured, **header)
    return found


def cpu(**changes: Any) -> dict[str, Any]:
    return {"cpu": QUIET["cpu"] | changes}


# ------------------------------------------------------------------------------ is there one?


def test_no_shortfall_is_claimed_within_the_margin():
    found = only(ONE, records(cell(2), [99, 99]))
    assert found.short == "none shown"
    assert found.why_not == "99.0 % is within 2 % of the ideal"


def test_no_shortfall_is_claimed_where_the_interval_reaches_the_ideal():
    noisy = [records(cell(2), [rate, rate])[n] for n, rate in enumerate((88, 99, 100))]
    found = only(ONE, noisy)
    assert found.efficiency.value < 0.97
    assert (found.why_not, found.causes) == ("the interval reaches the ideal", [])


def test_no_shortfall_is_claimed_from_an_interval_that_is_not_usable():
    noisy = [records(cell(2), [rate, rate])[n] for n, rate in enumerate((20, 90, 100))]
    found = only(ONE, noisy)
    assert found.efficiency.span == pytest.approx((0.2, 1.0))
    assert (found.why_not, found.causes) == ("no usable interval", [])


def test_shortfalls_of_many_pairs_are_judged_together():
    """By chance one of six pairs looks like a shortfall that it would be if it stood alone."""
    wobble = ((0.98, 1.0, 1.02), (1.02, 0.98, 1.0), (1.0, 1.02, 0.98))
    measured = []
    for n, batch in enumerate((1, 2, 3, 4, 5, 6)):
        for replicas, rate in ((1, 100), (2, 95.5 if batch == 1 else 100)):
            noise = wobble[(n + replicas) % 3]
            rates = [
                records(cell(replicas, batch_size=batch), [rate * f] * replicas) for f in noise
            ]
            measured.append([each[repeat] for repeat, each in enumerate(rates)])
    found = [d for d in diagnosed(*measured) if d.kind == "weak" and d.summary.cell.batch_size == 1]
    assert found[0].efficiency.high < 1
    assert found[0].why_not.startswith("one of ")
    assert found[0].causes == []


def test_no_shortfall_is_claimed_from_one_repeat():
    found = only(records(cell(), [100], repeats=1), records(cell(2), [50, 50], repeats=1))
    assert found.why_not == "no interval: 1 repeat"
    assert found.causes == []


def test_scaling_beyond_the_ideal_is_no_shortfall():
    assert only(ONE, records(cell(2), [130, 130])).why_not == "130.0 % is within 2 % of the ideal"


# ------------------------------------------------------------------------------ one cause each


def test_a_straggler_is_named_with_its_device_and_by_how_much():
    found = only(ONE, records(cell(4), [100, 100, 100, 70]))
    assert keys(found) == ["straggler"]
    (cause,) = found.causes
    assert cause.evidence["replicas"] == [3]
    assert cause.evidence["devices"] == ["cpu:3"]
    assert cause.evidence["below_others"] == pytest.approx([0.3], abs=0.01)
    assert cause.share == pytest.approx(1, abs=0.01)
    assert "replica 3 (cpu:3) runs 30" in cause.words
    assert "in all 3 repeats" in cause.words


def test_a_replica_that_is_slow_in_one_repeat_only_is_no_straggler():
    turns = [records(cell(3), [60 if i == n else 95 for i in range(3)])[n] for n in range(3)]
    found = only(ONE, turns)
    assert not found.why_not
    assert "straggler" not in keys(found)


@pytest.mark.parametrize(
    ("repeats", "noise", "slow"), [(3, 0.03, 1.0), (5, 0.1, 1.0), (5, 0.01, 0.9)]
)
def test_noise_makes_no_stragglers_and_hides_few(repeats, noise, slow):
    """400 cells of four replicas: at most 5 % with a false one; one that is 10 % slow is found."""
    rng = np.random.default_rng(0)
    (s,) = summarise([file(records(cell(4), [100] * 4))])
    false = found = 0
    for _ in range(400):
        speeds = 100 * np.exp(noise * rng.standard_normal((repeats, 4)))
        speeds[:, 0] *= slow
        pair = Pair(many=s, one=s, base=s, efficiency=s.throughput, compute=None)
        pair.__dict__["speeds"] = dict(enumerate(speeds.tolist()))
        found += 0 in pair.stragglers
        false += bool(pair.stragglers.keys() - ({0} if slow < 1 else set()))
    assert false <= 20
    assert slow == 1 or found >= 380


def test_several_stragglers_are_all_named():
    (cause,) = only(ONE, records(cell(4), [100, 60, 100, 70])).causes
    assert cause.evidence["replicas"] == [1, 3]


def test_a_straggling_gpu_is_compared_with_the_others():
    gpus = [{"index": i, "pcie_width_max": 16 if i else 8, "pcie_generation_max": 4,
             "pcie_generation": 1, "numa_node": i // 2} for i in range(4)]  # fmt: skip
    seen = {"gpus": [gpu(i, 1700.0 if i else 1200.0) for i in range(4)]}
    one = records(cell(**CUDA), [100], telemetry={"gpus": [gpu(1)]})
    found = only(one, records(cell(4, **CUDA), [70, 100, 100, 100], telemetry=seen),
                 environment=environment(gpus=gpus))  # fmt: skip
    (cause,) = found.causes  # its clock is part of it, and no cause of its own
    assert cause.key == "straggler"
    assert cause.evidence["sm_mhz"] == 1200
    assert "its SM clock is 1,200 MHz, the others' 1,700 MHz" in cause.words
    assert "its PCIe lanes is 8, the others' 16" in cause.words
    assert "NUMA" not in cause.words  # one of the others is there, too
    assert "generation" not in cause.words


def test_a_straggler_that_is_not_pinned_next_to_its_gpu():
    one = records(cell(**CUDA), [100], telemetry={})
    many = [replace(r, facts={"pinned": ["0-3", "0-3", ""]})
            for r in records(cell(3, **CUDA), [100, 100, 70], telemetry={})]  # fmt: skip
    (cause,) = only(one, many).causes
    assert "its process is not pinned next to its GPU, the others' are" in cause.words


def test_a_straggler_that_had_less_cpu_time():
    (cause,) = only(ONE, records(cell(3), [100, 100, 60], cpu=[0.99, 0.99, 0.6])).causes
    assert cause.key == "straggler"
    assert "it had 60.0 % of its cores' time, the others 99.0 %" in cause.words
    assert cause.evidence["cpu_share"] == pytest.approx(0.6, abs=1e-3)


def test_other_work_that_came_and_went_is_no_cause():
    many = [records(cell(2), [70, 70], telemetry=cpu(other_busy_share=busy))[n]
            for n, busy in enumerate((0.3, 0.0, 0.3))]  # fmt: skip
    assert keys(only(ONE, many)) == ["unexplained"]


def test_the_node_of_a_straggler_is_named():
    one = records(cell(**CUDA), [100], telemetry={})
    many = records(cell(4, **CUDA), [100, 100, 100, 70], telemetry={}, node=[0, 0, 1, 1])
    nodes = [environment(), environment()]
    (cause,) = only(one, many, nodes=nodes).causes
    assert cause.evidence["devices"] == ["node 1 cuda:3"]


@pytest.mark.parametrize("scenario", ["throughput", "latency"])
def test_host_bound_is_the_host_being_busy_all_the_time(scenario):
    kind = CUDA | {"scenario": scenario}
    more = {} if scenario == "throughput" else {"iterations": 1}
    one = records(cell(**kind), [100], telemetry={}, enqueue=0.5, **more)
    many = records(cell(2, **kind), [70, 70], telemetry={}, enqueue=0.995, **more)
    if scenario == "latency":
        one, many = (changed(x, lambda s, r: replace(s, durations_ns=[d // 10 for d in
                     s.durations_ns], end_ns=s.end_ns // 10, enqueue_ns=s.enqueue_ns // 10))
                     for x in (one, many))  # fmt: skip
    found = only(one, many)
    (cause,) = found.causes
    assert cause.key == "host-bound"
    assert cause.evidence["enqueue_share"] == pytest.approx(0.995, abs=0.001)
    assert cause.evidence["enqueue_share_one"] == pytest.approx(0.5, abs=0.001)
    assert cause.share == pytest.approx(1, abs=0.05)


def test_a_backend_that_waits_in_run_looks_the_same_at_one_replica_which_is_said():
    one = records(cell(**CUDA), [100], telemetry={}, enqueue=0.99)
    (cause,) = only(one, records(cell(2, **CUDA), [70, 70], telemetry={}, enqueue=0.99)).causes
    assert cause.key == "host-bound"
    assert cause.words.endswith("99 % (bound there, too, unless this backend's run() waits)")


def test_a_host_that_is_held_up_by_a_full_queue_is_not_the_cause():
    """It is busy for 92 % of a block of 10 batches; then most of a batch is still to be done."""
    one = records(cell(**CUDA), [100], telemetry={}, enqueue=0.92)
    found = only(one, records(cell(2, **CUDA), [70, 70], telemetry={}, enqueue=0.92))
    assert keys(found) == ["unexplained"]


def test_enqueueing_says_nothing_on_a_cpu_or_with_copies():
    on_cpu = only(ONE, records(cell(2), [70, 70], enqueue=0.999))
    assert keys(on_cpu) == ["shared-memory"]
    kind = CUDA | {"boundary": "transfer"}
    one = records(cell(**kind), [100], telemetry={}, enqueue=0.999)
    found = only(one, records(cell(2, **kind), [70, 70], telemetry={}, enqueue=0.999))
    assert keys(found) == ["unexplained"]


def test_copies_that_take_longer_explain_what_they_add():
    kind = CUDA | {"boundary": "transfer"}  # a batch: 80 ms alone, 100 ms with a rival
    ms = 1_000_000
    one = records(cell(**kind), [100], telemetry={},
                  stages_ns={"copy_in": 8 * ms, "run": 70 * ms, "copy_out": 2 * ms})  # fmt: skip
    many = records(cell(2, **kind), [80, 80], telemetry={},
                   stages_ns={"copy_in": 20 * ms, "run": 70 * ms, "copy_out": 5 * ms})  # fmt: skip
    (cause, *_) = only(one, many).causes
    assert cause.key == "copy-bound"
    assert cause.evidence == {"copies_ns": 25 * ms, "copies_ns_one": 10 * ms}
    assert 0.7 < cause.share < 0.9  # 15 of the 20 ms


def test_a_cell_without_copies_that_scales_blames_the_copies():
    transfer, plain = CUDA | {"boundary": "transfer"}, CUDA
    found = diagnosed(
        records(cell(**plain), [100], telemetry={}),
        records(cell(2, **plain), [99, 99], telemetry={}),
        records(cell(**transfer), [90], telemetry={}),
        records(cell(2, **transfer), [60, 60], telemetry={}),
    )
    (cause,) = found[1].causes
    assert cause.key == "copy-bound"
    assert cause.evidence == {"efficiency_compute": pytest.approx(0.99)}
    assert cause.share == pytest.approx(0.975, abs=0.01)


def test_starvation_needs_less_cpu_time_and_more_switches():
    found = only(ONE, records(cell(2), [70, 70], cpu=0.70, switches_per_s=120))
    (cause,) = found.causes
    assert cause.key == "cpu-starved"
    assert cause.share == pytest.approx(0.97, abs=0.02)
    assert "interrupted 120 times a second (1.00 at one)" in cause.words
    idle = only(ONE, records(cell(2), [70, 70], cpu=0.70, switches_per_s=1))
    assert keys(idle) == ["unexplained"]  # its threads waited for something, nobody knows what


@pytest.mark.parametrize(
    ("key", "telemetry", "share"),
    [("cpu-steal", cpu(steal_share=0.25), 0.81),
     ("other-processes", cpu(other_busy_share=0.3), 0.97),
     ("clocks", cpu(mhz={"median": 2400.0}), 0.63)],
)  # fmt: skip
def test_what_the_machine_did(key, telemetry, share):
    found = only(ONE, records(cell(2), [70, 70], telemetry=telemetry))
    assert found.causes[0].key == key
    assert found.causes[0].share == pytest.approx(share, abs=0.01)


def test_stolen_time_is_not_counted_again_as_starvation():
    found = only(ONE, records(cell(2), [70, 70], telemetry=cpu(steal_share=0.3), cpu=0.7,
                              switches_per_s=50))  # fmt: skip
    assert keys(found) == ["cpu-steal"]


def test_a_quota_below_the_cores_in_use():
    machine = environment(limits={"cpus": 2.0})
    found = only(ONE, records(cell(4), [50] * 4, cpu=0.495), environment=machine)
    assert found.causes[0].key == "cpu-quota"
    assert found.causes[0].evidence == {"cores": 4, "quota": 2.0}
    assert found.causes[0].share == pytest.approx(1)
    had_it_all = only(ONE, records(cell(4), [50] * 4), environment=machine)
    assert keys(had_it_all) == ["shared-memory"]


def test_more_replicas_than_cores():
    kind = {"cores": 2}
    one = records(cell(**kind), [100])
    many = records(cell(4, **kind), [55] * 4, cpu=0.5)
    found = only(one, many, environment=environment(cpu={"usable": 4}))
    assert keys(found)[0] == "oversubscribed"
    assert found.causes[0].evidence == {"cores": 8, "usable": 4}


def test_replicas_that_share_cores_are_compared_per_device():
    shared = cell(2, cores=2, replicas_per_device=2)
    one = records(cell(cores=2), [100])
    assert only(one, records(shared, [55, 55])).efficiency.value == pytest.approx(1.1)
    found = only(one, records(shared, [40, 40], switches_per_s=300))
    assert found.efficiency.value == pytest.approx(0.8)
    (cause,) = found.causes
    assert (cause.key, cause.share) == ("oversubscribed", None)
    assert "2 replicas share each set of 2 cores; each was interrupted 300" in cause.words


def test_replicas_that_share_a_device_are_no_stragglers_beside_one_that_does_not():
    three = cell(3, cores=2, replicas_per_device=2)
    found = only(records(cell(cores=2), [100]), records(three, [45, 45, 95]))
    assert keys(found) == ["oversubscribed"]


def test_replicas_that_share_a_gpu():
    one = records(cell(**CUDA), [100], telemetry={})
    found = only(one, records(cell(2, replicas_per_device=2, **CUDA), [40, 40], telemetry={}))
    assert keys(found) == ["shared-device"]
    assert found.causes[0].words.startswith("by exclusion")


@pytest.mark.parametrize(
    ("throttle", "key"),
    [({"HwThermalSlowdown": 0.4}, "thermal"), ({"SwPowerCap": 0.9}, "power-cap"), ({}, "clocks")],
)
def test_gpu_clocks_that_fell(throttle, key):
    one = records(cell(**CUDA), [100], telemetry={"gpus": [gpu(0)]})
    seen = {"gpus": [gpu(i, 1360.0, throttle=throttle) for i in range(2)]}
    found = only(one, records(cell(2, **CUDA), [80, 80], telemetry=seen))
    (cause,) = found.causes
    assert cause.key == key
    assert cause.share == pytest.approx(1, abs=0.01)
    assert "SM clock 1,360 MHz, 1,700 MHz at one replica" in cause.words


def test_gpu_clocks_count_while_sampling_where_they_were_kept():
    series = {"t_s": [-2.0, 0.5, 1.0, 99.0], "sm_mhz": [200, 1700, None, 200]}
    one = records(cell(**CUDA), [100], telemetry={"gpus": [gpu(0, 300.0, series=series)]})
    many = records(cell(2, **CUDA), [80, 80], telemetry={"gpus": [gpu(0), gpu(1)]})
    assert keys(only(one, many)) == ["unexplained"]


def test_what_is_left_is_the_memory_where_everything_else_is_excluded():
    found = only(ONE, records(cell(2), [80, 80]))
    (cause,) = found.causes
    assert cause.key == "shared-memory"
    assert cause.share == pytest.approx(1)
    assert cause.words.startswith("by exclusion: all are slower by about the same")
    assert "CPU clock 3,000 MHz, 3,000 MHz at one" in cause.words
    assert found.not_recorded == []


@pytest.mark.parametrize(
    "many",
    [
        records(cell(2), [80, 80], cpu=0.0),  # CPU time was not recorded
        records(cell(2), [80, 80], telemetry={}),
        records(cell(2), [80, 80], telemetry=cpu(other_busy_share=0.055)),
        records(cell(2, **CUDA), [80, 80]),
    ],
)
def test_nothing_is_excluded_without_evidence(many):
    one = records(cell(device=many[0].cell.device, cores=many[0].cell.cores), [100])
    assert keys(only(one, many)) == ["unexplained"]


def test_old_records_say_what_they_lack():
    one, many = (records(c, rates, cpu=0.0, switches_per_s=0, telemetry={})
                 for c, rates in ((cell(), [100]), (cell(2), [80, 80])))  # fmt: skip
    found = only(one, many)
    assert keys(found) == ["unexplained"]
    assert found.not_recorded == ["CPU time of the replicas", "stolen CPU time", "other processes",
                                  "CPU clock"]  # fmt: skip


def test_a_smaller_batch_costs_what_it_costs_one_replica():
    found = diagnosed(records(cell(batch_size=16), [100]), records(cell(), [80]),
                      records(cell(2), [80, 80]))  # fmt: skip
    weak, strong = found
    assert (weak.kind, weak.short) == ("weak", "none shown")
    assert keys(strong) == ["small-batch"]
    assert strong.causes[0].share == pytest.approx(1, abs=0.01)
    assert "one replica alone does 80.0 % of batch 16's images/s with batch 8" in (
        strong.causes[0].words
    )


def test_strong_scaling_without_the_small_cell_claims_nothing_about_memory():
    found = only(records(cell(batch_size=16), [100]), records(cell(2), [80, 80]))
    assert keys(found) == ["unexplained"]
    assert "one replica with batch 8" in found.not_recorded


def shared_job(dispatch: str, batches: list[int], pace_ms: list[int], **more: Any) -> list[Record]:
    c = cell(len(batches), dispatch=dispatch)
    made = []
    for r in records(c, [100.0] * len(batches)):
        replicas = [
            samples(c, i, 100, durations_ns=[ms * 1_000_000] * n, iterations=1,
                    end_ns=n * ms * 1_000_000, **more)
            for i, (n, ms) in enumerate(zip(batches, pace_ms, strict=True))
        ]  # fmt: skip
        made.append(replace(r, replicas=replicas))
    return made


def test_equal_shares_wait_for_the_slowest_and_dynamic_ones_do_not():
    made = shared_job("static", [30, 30], [40, 80]), shared_job("dynamic", [40, 20], [40, 80])
    waits, shares = (job_of(summarise([file(each)])[0]) for each in made)
    assert waits.share.value == pytest.approx(2 / 3, abs=0.001)
    assert waits.idle == pytest.approx([0.5, 0])
    assert waits.lost == pytest.approx(1 / 3, abs=0.001)
    assert shares.share.value == pytest.approx(1)
    assert shares.batches == [40, 20]
    assert job_of(summarise([file(ONE)])[0]) is None


def test_the_cost_of_waiting_and_of_the_scheduler_are_causes():
    s = summarise([file(shared_job("static", [30, 30], [40, 80], claim_ns=30 * 4_000_000))])[0]
    pair = Pair(many=s, one=s, base=s, efficiency=s.throughput, compute=None)
    found = {f.key: f for f in causes._dispatch(pair)}
    assert found["dispatch"].left == pytest.approx(2 / 3, abs=0.001)
    assert "replica 0 had no more work for 50.0 % of the job's time" in found["dispatch"].words
    assert found["scheduler"].evidence == {"claim_ns": 4_000_000, "batch_ns": 60_000_000}


# ------------------------------------------------------------------------------ several at once


def test_a_mixture_is_ranked_and_adds_up():
    found = only(ONE, records(cell(4), [80, 80, 80, 48]))
    assert keys(found) == ["shared-memory", "straggler"]
    assert sum(c.share for c in found.causes) == pytest.approx(1)
    assert found.short == "memory, cache or power 68 %, straggler 32 %"


def test_causes_that_overlap_are_scaled_to_the_whole():
    seen = cpu(steal_share=0.3, other_busy_share=0.3)
    found = only(ONE, records(cell(2), [70, 70], telemetry=seen))
    assert sorted(keys(found)) == ["cpu-steal", "other-processes"]
    assert sum(c.share for c in found.causes) == pytest.approx(1)


# ------------------------------------------------------------------------------ odd records


NAMES = ("cpu", "gpus", "mhz", "steal_share", "sm_mhz", "index", "median", "throttle", "series",
         "other_busy_share", "SwPowerCap", "t_s")  # fmt: skip


def odd(rng: random.Random, c: Any) -> list[Record]:
    def number() -> int:
        return rng.choice([0, 0, 1, 10**6, 10**9, 10**18])

    def anything(depth: int = 2) -> Any:
        plain = [None, True, -1, 0, 0.5, float("inf"), float("nan"), "x", []]
        return rng.choice([*plain, {}] if depth == 0 else [
            {k: anything(depth - 1) for k in NAMES}, [anything(depth - 1)], *plain])  # fmt: skip

    made = []
    for repeat in range(rng.choice([0, 1, 2, 3])):
        replicas = [
            Samples(
                replica=i, device=rng.choice(["", "cuda:0", "cuda:x", "cuda:1", "cpu:0,1", "?"]),
                durations_ns=[number() for _ in range(rng.choice([0, 1, 5]))],
                iterations=rng.choice([1, 7]), truncated=rng.choice([0, 3]), start_ns=number(),
                warmup_durations_ns=[number()] * rng.choice([0, 2]), end_ns=number(),
                node=rng.choice([0, 1, 99]), enqueue_ns=number(), cpu_ns=number(),
                switches=number(), late_ns=number(), claim_ns=number(),
                stages_ns=rng.choice([{}, {"copy_in": 1}, {"copy_in": 5, "copy_out": number()}]),
            )
            for i in range(rng.choice([0, 1, c.replicas]))
        ]  # fmt: skip
        telemetry = rng.choice([{}, {"cpu": anything(), "gpus": anything()}, QUIET])
        facts = rng.choice([{}, {"pinned": anything()}, {"pinned": ["", "0"]}])
        made.append(Record(cell=c, repeat=repeat, status=rng.choice(["ok", "ok", "failed"]),
                           replicas=replicas, telemetry=telemetry, facts=facts))  # fmt: skip
    return made


@pytest.mark.parametrize("seed", range(400))
def test_odd_records_never_crash_and_shares_stay_shares(seed):
    rng = random.Random(seed)
    kind: dict[str, Any] = {
        "device": rng.choice(["cpu", "cuda"]), "cores": rng.choice([0, 1, 2]),
        "boundary": rng.choice(["compute", "transfer"]),
        "scenario": rng.choice(["latency", "throughput"]),
    }  # fmt: skip
    many = cell(rng.choice([2, 3]), dispatch=rng.choice(["independent", "static", "dynamic"]),
                replicas_per_device=rng.choice([1, 2]), **kind)  # fmt: skip
    one = records(cell(**kind), [100]) if rng.random() < 0.7 else odd(rng, cell(**kind))
    measured = odd(rng, many) if rng.random() < 0.7 else records(many, [40.0] * many.replicas)
    made = file(one, measured, environment=rng.choice([{}, {"cpu": 3, "gpus": [1]}, environment()]))
    for d in diagnose(summarise([made])):
        assert all(c.share is None or 0 <= c.share <= 1 for c in d.causes)
        assert bool(d.causes) == (not d.why_not)

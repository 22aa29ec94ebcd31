from __future__ import annotations

import random
from collections.abc import Callable
from operator import mul
from statistics import median

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.measure import protocol, stages, steady_state
from gpubench.measure.loop import Trace
from gpubench.records.samples import Samples, rates
from gpubench.suite.types import MIN_BLOCKS, Policy
from tests.measure.virtual import VirtualClock, VirtualSession, constant, make_cell, process

IMAGES = np.zeros((1, 3, 4, 4), np.float32)


def run(
    session_process: object, clock: VirtualClock | None = None, **cell: object
) -> tuple[Samples, list[str], VirtualSession]:
    clock = clock or VirtualClock()
    session = VirtualSession(clock, session_process)  # type: ignore[arg-type]
    sampler = protocol.warm_up(session, IMAGES, make_cell(**cell), Policy(), clock)
    return protocol.measure(sampler, Policy(), clock), sampler.flags, session


def noisy(seed: int, level: float, spread: float = 0.02) -> object:
    rng = random.Random(seed)
    return process(lambda _: level * rng.lognormvariate(0, spread))


def test_warm_up_takes_ten_iterations_even_when_each_is_slow() -> None:
    clock = VirtualClock()
    session = VirtualSession(clock, constant(2e9))
    assert len(protocol.warm_up(session, IMAGES, make_cell(), Policy(), clock).warmup) == 10


def warmed(ns: Callable[[int], float], **policy: float) -> list[int]:
    clock = VirtualClock()
    session = VirtualSession(clock, process(ns))
    return protocol.warm_up(session, IMAGES, make_cell(), Policy(**policy), clock).warmup  # type: ignore[arg-type]


@pytest.mark.parametrize("sign", [1, -0.4])
def test_a_warm_up_goes_on_until_it_has_settled(sign: float) -> None:
    rng = random.Random(8)
    found = warmed(lambda i: 5e6 * (1 + sign * 0.98**i) * rng.lognormvariate(0, 0.02))
    assert 200 <= len(found) <= 600, "after 60 iterations it is 30 % off, after 200 2 %"


def test_what_is_steady_is_not_warmed_up_for_longer() -> None:
    rng = random.Random(9)
    spiked = [warmed(lambda _: 5e6 * rng.lognormvariate(0, 0.02) * (1 + 4 * (rng.random() < 0.02)))
              for _ in range(100)]  # fmt: skip
    assert sum(sum(w) > 0.4e9 for w in spiked) <= 5


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [({}, 3), ({"warmup_s": 20.0, "duration_s": 1.0, "timeout_s": 100.0}, 25)],
)
def test_a_warm_up_that_never_settles_ends(policy: dict[str, float], seconds: float) -> None:
    took = sum(warmed(lambda i: 5e6 * 1.005**i, **policy)) / 1e9
    assert seconds <= took <= seconds + 1


def test_latency_keeps_every_duration() -> None:
    measured, flags, _ = run(noisy(1, 5e6))
    assert 180 < len(measured.durations_ns) + measured.truncated < 220
    assert measured.iterations == 1
    assert median(measured.durations_ns) == pytest.approx(5e6, rel=0.01)
    assert flags == []


def test_short_iterations_are_grouped_and_said_so() -> None:
    measured, flags, _ = run(constant(2_000))
    assert flags[0] == "GROUPED"
    assert measured.durations_ns[0] >= 1000 * 2 * 50
    assert measured.durations_ns[0] / measured.iterations == pytest.approx(2_000, rel=0.01)


def test_throughput_blocks_fill_a_quarter_second_though_overlap_hides_the_wait() -> None:
    clock = VirtualClock()

    class Overlapping(VirtualSession):
        """Waiting after each batch costs 1 ms more than the batch."""

        def sync(self) -> None:
            super().sync()
            clock.ns += 1_000_000

    session = Overlapping(clock, constant(1e6))
    cell = make_cell(scenario="throughput")
    measured = protocol.measure(
        protocol.warm_up(session, IMAGES, cell, Policy(), clock), Policy(), clock
    )
    assert min(measured.durations_ns) >= 250e6
    assert len(measured.durations_ns) >= 10, "too few blocks to see a drift"
    assert measured.warmup_durations_ns[-1] == pytest.approx(1e6, rel=0.01)
    assert measured.durations_ns[0] / measured.iterations == pytest.approx(1e6, rel=0.01)


def test_throughput_blocks_are_no_longer_though_an_iteration_is_often_interrupted() -> None:
    clock = VirtualClock(reading_ns=1)
    shared = process(lambda i: 1e4 + (3e7 if i % 1000 == 999 else 0))  # three of four slices
    session = VirtualSession(clock, shared)
    cell = make_cell(scenario="throughput", replicas=4, replicas_per_device=4)
    sampler = protocol.warm_up(session, IMAGES, cell, Policy(warmup_s=0.001), clock)
    measured = protocol.measure(sampler, Policy(), clock)
    assert 0.25e9 <= median(measured.durations_ns) < 0.35e9
    assert sampler.batch_ns == pytest.approx(4e4, rel=0.1)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("every", [15, 40, 400])
def test_blocks_get_shorter_where_rare_batches_are_large(every: int, overlap: bool) -> None:
    """One batch in ``every`` is a large photograph: 1 ms, and 200 ms."""
    large = 200e6
    clock = VirtualClock(reading_ns=1)
    took = process(lambda i: large if i % every == every - 1 else 1e6)
    session = VirtualSession(clock, took, enqueue_ns=1000 if overlap else 0)
    cell = make_cell(scenario="throughput", batch_size=2)
    sampler = protocol.warm_up(session, IMAGES, cell, Policy(warmup_s=0.02), clock)
    measured = protocol.measure(sampler, Policy(), clock)
    assert 10 <= len(measured.durations_ns) + measured.truncated <= 20
    assert sum(measured.durations_ns) < 8e9, "ten blocks of 0.25 s, and the first too long"
    assert 0.1e9 < median(measured.durations_ns) < 0.6e9
    mean_ns = (large + (every - 1) * 1e6) / every
    [rate] = rates([measured], 2)
    assert rate == pytest.approx(2e9 / mean_ns, rel=0.35), "few large ones in so short a time"
    done = sum(measured.batches)
    assert rate == pytest.approx(done * 2e9 / sum(measured.durations_ns), rel=1e-3)
    assert sum(map(mul, measured.batches, measured.batch_ns)) == pytest.approx(
        sum(measured.durations_ns)
    )


def test_blocks_get_longer_where_a_warm_up_was_slower() -> None:
    clock = VirtualClock(reading_ns=1)
    session = VirtualSession(clock, process(lambda _: 20e6 if clock.ns < 0.8e9 else 1e6))
    cell = make_cell(scenario="throughput")
    sampler = protocol.warm_up(session, IMAGES, cell, Policy(warmup_s=0.02), clock)
    measured = protocol.measure(sampler, Policy(duration_s=8.0), clock)
    assert sampler.iterations * 4 < measured.batches[-1]
    assert 0.125e9 < measured.durations_ns[-1] < 0.3e9
    assert measured.batch_ns[-1] == pytest.approx(1e6, rel=1e-3)


def test_blocks_of_equal_batches_are_never_cut_anew() -> None:
    measured, *_ = run(noisy(3, 5e6, 0.2), scenario="throughput", batch_size=4)
    assert measured.counts == []
    assert [*measured.batch_ns] == [d / measured.iterations for d in measured.durations_ns]


@pytest.mark.parametrize("scenario", ["latency", "throughput"])
def test_no_more_samples_than_asked_for(scenario: str) -> None:
    clock = VirtualClock()
    session = VirtualSession(clock, constant(1e6))
    policy = Policy(max_samples=3)
    sampler = protocol.warm_up(session, IMAGES, make_cell(scenario=scenario), policy, clock)
    measured = protocol.measure(sampler, policy, clock)
    assert (len(measured.durations_ns), measured.stop_reason) == (3, "max samples")
    assert sampler.flags == ["FEW-SAMPLES"]


@pytest.mark.parametrize(
    ("cores", "cpu", "delay", "throttled", "withheld"),
    [
        (1, 100, 0, 0, 0),
        (1, 60, 40, 40, 40),  # a quota of 0.6 cores
        (1, 60, 40, 0, 40),  # one that this control group does not show
        (1, 60, 0, 0, 0),  # it waited: for a device, or it slept
        (1, 100, 300, 0, 0),  # its threads waited for one another
        (2, 150, 300, 0, 50),
        (0, 25, 75, 0, 0),  # replicas share the core, as was asked for
        (0, 20, 80, 20, 20),
    ],
)
def test_what_was_withheld_is_what_was_wanted_and_not_had(
    cores: int, cpu: int, delay: int, throttled: int, withheld: int
) -> None:
    used = protocol.Used(100, cpu, delay, throttled, 0, 0)
    assert used.withheld_ns(cores) == withheld


def test_transfer_moves_data_in_and_out_in_every_iteration() -> None:
    measured, _, session = run(constant(1e6), boundary="transfer")
    assert median(measured.durations_ns) == pytest.approx(1_003_000, rel=1e-3)
    assert session.calls.count("copy_in") == session.calls.count("copy_out") > 900


def test_a_slow_start_is_moved_to_the_warm_up_and_nothing_is_lost() -> None:
    rng = random.Random(3)
    settling = process(
        lambda i: 5e6 * (1 + 1.0 * 0.9 ** max(0, i - 30)) * rng.lognormvariate(0, 0.01)
    )
    measured, *_ = run(settling)
    assert 20 <= measured.truncated <= 110
    assert len(measured.warmup_durations_ns) >= 25 + measured.truncated
    assert median(measured.durations_ns) == pytest.approx(5e6, rel=0.02)


def test_drift_is_flagged() -> None:
    rng = random.Random(4)
    _, flags, _ = run(process(lambda i: 5e6 * (1 + 0.001 * i) * rng.lognormvariate(0, 0.01)))
    assert {"DRIFT", "NO-STEADY-STATE"} & set(flags)


def test_a_late_change_of_level_is_not_trimmed_away() -> None:
    rng = random.Random(5)
    cut, flags = steady_state.steady(
        [round((9e6 if i < 150 else 5e6) * rng.lognormvariate(0, 0.01)) for i in range(200)], 0.02
    )
    assert (cut, flags) == (0, ["NO-STEADY-STATE"])


def test_isolated_spikes_are_not_a_warm_up() -> None:
    rng = random.Random(6)
    noise = [5e6 * rng.lognormvariate(0, 0.02) for _ in range(500)]
    spiked = [round(x * (8 if rng.random() < 0.02 else 1)) for x in noise]
    _, flags = steady_state.steady(spiked, 0.02)
    assert flags == []


@pytest.mark.parametrize("count", [12, 30, 60, 200])
def test_steady_noise_is_rarely_flagged(count: int) -> None:
    rng = random.Random(7)
    flagged = 0
    for _ in range(200):
        trace = [round(5e6 * rng.lognormvariate(0, 0.05)) for _ in range(count)]
        flagged += steady_state.steady(trace, 0.02)[1] != []
    assert flagged <= 4


@pytest.mark.parametrize("scenario", ["latency", "throughput"])
def test_few_samples_are_flagged(scenario: str) -> None:
    assert "FEW-SAMPLES" in run(constant(6e8), scenario=scenario)[1]
    assert "FEW-SAMPLES" not in run(constant(4e6), scenario=scenario)[1]


@pytest.mark.parametrize(("batch_ns", "samples"), [(1e7, 100), (3e8, 10), (6e8, 7), (2e9, 5)])
def test_sampling_goes_on_until_there_are_ten_samples_but_not_for_long(
    batch_ns: float, samples: int
) -> None:
    """`Policy.duration_s` is 1 s, and sampling ends after four times as long."""
    measured, flags, *_ = run(constant(batch_ns))
    assert len(measured.durations_ns) == pytest.approx(samples, abs=samples // 100)
    assert ("FEW-SAMPLES" in flags) == (samples < MIN_BLOCKS)


def in_turns(levels: list[float], ns: float, **policy: float) -> tuple[list[Samples], list[str]]:
    """So many turns of one process, each at its own level, and the flags of all together."""
    level, rng, clock = [1.0], random.Random(5), VirtualClock()
    session = VirtualSession(clock, process(lambda _: ns * level[0] * rng.lognormvariate(0, 0.01)))
    cell, asked = make_cell(), Policy(**policy)  # type: ignore[arg-type]
    sampler = protocol.warm_up(session, IMAGES, cell, asked, clock)
    n = len(levels)
    sampler = replace(sampler, at_least=protocol.least_of_turn(cell, n))
    found = []
    for level[0] in levels:
        found.append(protocol.measure(sampler, protocol.of_turn(asked, n), clock, whole=False))
    assert sampler.flags == []
    return found, protocol.joined(found, asked.target_half_width)


def test_turns_share_the_time_and_are_judged_together() -> None:
    found, flags = in_turns([1.0] * 12, 4e6)
    assert flags == []
    assert {len(turn.durations_ns) for turn in found} <= {20, 21, 22}
    rising = [1 + 0.01 * n for n in range(12)]
    found, flags = in_turns(rising, 4e6)
    assert flags == ["DRIFT"]
    assert sum(turn.truncated for turn in found) == 0
    found, flags = in_turns([1.0] * 4, 4e8)
    assert [len(turn.durations_ns) for turn in found] == [3] * 4, "ten samples in all, and no more"
    assert flags == []
    _, flags = in_turns([1.0] * 4, 4e8, max_samples=4)
    assert flags == ["FEW-SAMPLES"]


@pytest.mark.parametrize("count", [50, 200, 400, 1000])
@pytest.mark.parametrize("rise", [0.5, 1.0, -0.33])
def test_a_ramp_is_never_taken_for_steady(count: int, rise: float) -> None:
    rng = random.Random(count)
    for _ in range(20):
        trace = [
            round(5e6 * (1 + rise * i / count) * rng.lognormvariate(0, 0.005)) for i in range(count)
        ]
        assert steady_state.steady(trace, 0.02)[1], "not flagged"


def test_mser_finds_the_step() -> None:
    assert steady_state.mser([9.0] * 12 + [1.0, 1.1] * 30) == 12


def test_a_job_keeps_every_unit_and_its_claims() -> None:
    clock = VirtualClock(reading_ns=5)
    session = VirtualSession(clock, constant(1e6), enqueue_ns=400)
    cell = make_cell(scenario="throughput")
    sampler = protocol.warm_up(session, IMAGES, cell, Policy(), clock)
    assert sampler.batch_ns == pytest.approx(1e6, rel=0.01)
    left = iter(range(40))
    claim = lambda: next(left, None) is not None  # noqa: E731
    measured = protocol.measure(sampler, Policy(), clock, at_ns=1000, late_ns=7, claim=claim)
    assert len(measured.durations_ns) == 40
    assert (measured.truncated, measured.stop_reason, sampler.flags) == (0, "job done", [])
    assert (measured.claim_ns, measured.late_ns) == (40 * 5, 7)
    assert measured.enqueue_ns == 40 * (sampler.iterations * 400 + 5)
    assert measured.end_ns == clock.ns - 1000
    assert measured.end_ns - measured.start_ns == sum(measured.durations_ns) + measured.claim_ns


def test_enqueueing_counts_for_steady_samples_only() -> None:
    rng = random.Random(3)
    clock = VirtualClock()
    settling = process(
        lambda i: 5e6 * (1 + 1.0 * 0.9 ** max(0, i - 30)) * rng.lognormvariate(0, 0.01)
    )
    session = VirtualSession(clock, settling, enqueue_ns=1000)
    sampler = protocol.warm_up(session, IMAGES, make_cell(), Policy(), clock)
    measured = protocol.measure(sampler, Policy(), clock)
    assert measured.truncated > 0
    assert measured.enqueue_ns == len(measured.durations_ns) * 1050


def test_what_a_process_used_while_it_sampled() -> None:
    measured, *_ = run(constant(1e6))
    assert measured.cpu_ns >= 0
    assert measured.switches >= 0
    assert measured.claim_ns == 0


@pytest.mark.parametrize(("cut", "right"), [(0, (0, 90, 10)), (1, (60, 36, 4))])
def test_what_was_cut_takes_its_share_of_what_a_process_used(
    cut: int, right: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = protocol.Sampler(dict, dict, 1, 1, [], [], 1.0)
    trace = Trace([60, 20, 20], [1, 1, 1], 0, end=100, between=0, counts=[], stop="time")
    used = iter([protocol.Used(0, 1000, 0, 0, 5, 70), protocol.Used(100, 1090, 0, 0, 15, 90)])
    monkeypatch.setattr(protocol, "sample", lambda *_, **__: trace)
    monkeypatch.setattr(protocol, "steady", lambda *_: (cut, []))
    monkeypatch.setattr(protocol, "_used", lambda _: next(used))
    found = protocol.measure(sampler, Policy())
    assert (found.start_ns, found.cpu_ns, found.switches) == right


def test_stages_of_a_transfer_are_waited_for_one_by_one() -> None:
    clock = VirtualClock(reading_ns=10)
    session = VirtualSession(clock, constant(1e6))
    assert stages.alone(session, IMAGES, clock) == {
        "copy_in": 1_020,
        "run": 1_000_020,
        "copy_out": 2_020,
    }
    assert session.calls.count("copy_in") == stages.MOST_STAGES
    slow = VirtualSession(clock, noisy(1, 1e9, 0.3))  # type: ignore[arg-type]
    stages.alone(slow, IMAGES, clock)
    assert slow.calls.count("copy_out") == stages.LEAST_STAGES

"""Energy over the samples' windows: counters, their wrap-around, and what nothing counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import local
from types import SimpleNamespace as Bag
from typing import Any

import pytest

from gpubench.machine.telemetry import gpu_monitor, telemetry
from gpubench.machine.telemetry.energy import Board, Rapl, Readings, packages, used
from gpubench.machine.telemetry.telemetry import Telemetry
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from gpubench.run.agent import agent
from gpubench.run.agent.messages import Done, Measure
from gpubench.run.cluster import node_group
from gpubench.suite.types import Policy
from tests.fake_nvml import FakeNvml, NotSupported
from tests.machine.telemetry.test_telemetry import COMPUTE, processes
from tests.measure.virtual import make_cell
from tests.run.agent.test_agent import team

ENERGY = "nvmlDeviceGetTotalEnergyConsumption"
S = 1_000_000_000


def meter(*readings: tuple[float, float]) -> Readings:
    made = Readings()
    for at, joules in readings:
        made.add(at, joules)
    return made


def zone(root: Path, name: str, called: str, uj: int, most: int = 262_143_328_850) -> Path:
    path = root / "sys/class/powercap" / name
    path.mkdir(parents=True)
    (path / "name").write_text(f"{called}\n")
    (path / "energy_uj").write_text(f"{uj}\n")
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    return path


def sensor(root: Path, address: str, **rails: tuple[int, int] | None) -> list[Path]:
    """A Jetson's INA3221: {rail: (mV, mA)} in their order; the folders as JetPack 6 has them."""
    at = root / f"sys/bus/i2c/drivers/ina3221/1-{address}/hwmon/hwmon{int(address) - 37}"
    at.mkdir(parents=True)
    for n, (label, values) in enumerate(rails.items(), 1):
        (at / f"in{n}_label").write_text(f"{label}\n")
        for kind, value in zip(("in", "curr"), values or (), strict=False):
            (at / f"{kind}{n}_input").write_text(f"{value}\n")
    (at / "in7_label").write_text("sum of shunt voltages\n")
    return sorted(at.glob("*_input"))


def orin(root: Path) -> list[Path]:
    """An AGX Orin, which has no rail of its whole supply: 5.2 + 2.68 + 4.73 W."""
    sensor(root, "0041", NC=None, VDDQ_VDD2_1V8AO=(1800, 341))
    return sensor(root, "0040", VDD_GPU_SOC=(843, 6170), VDD_CPU_CV=(780, 3437),
                  VIN_SYS_5V0=(4968, 953))  # fmt: skip


@pytest.mark.parametrize(
    ("rails", "counted", "watts"),
    [
        ({"VDD_IN": (5000, 2000), "VDD_CPU_GPU_CV": (5000, 900), "VDD_SOC": (5000, 300)},
         ("VDD_IN",), 10),
        ({"VDD_CPU_GPU_CV": (5000, 900), "VDD_M2_IN": (5000, 300)}, (), None),
        ({"VDD_IN": (5000, 0)}, ("VDD_IN",), 0),
        ({"VDD_IN": None}, ("VDD_IN",), None),
    ],
)  # fmt: skip
def test_a_board_draws_what_its_supply_brings_or_else_nothing_is_said(
    tmp_path: Path, rails: dict[str, Any], counted: tuple[str, ...], watts: float | None
) -> None:
    sensor(tmp_path, "0040", **rails)
    found = Board(tmp_path)
    assert (found.rails, found.watts()) == (counted, watts)


def test_without_a_rail_of_the_supply_those_behind_it_add_up(tmp_path: Path) -> None:
    files = orin(tmp_path)
    assert Board(tmp_path).watts() == pytest.approx(12.617, abs=0.001)
    files[0].unlink()
    assert Board(tmp_path).watts() is None


def test_a_jetson_is_measured_by_its_board_where_nvml_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its GPU as well as its CPU; a GPU whose power NVML tells is never measured by sensors."""
    orin(tmp_path)
    silent = {ENERGY: NotSupported, "nvmlDeviceGetPowerUsage": NotSupported}
    for gpus, answers, source, watts in (
        ([0], silent, "board", 12.617), ([], {}, "board", 12.617),
        ([0], {ENERGY: NotSupported}, "nvml-power", 250),
    ):  # fmt: skip
        nvml = FakeNvml(("Orin", "GPU-a"), **answers)
        with Telemetry(gpus, [], set, nvml, hz=200, root=tmp_path) as seen:
            time.sleep(0.05)
            seen.turn(time.perf_counter_ns())
            time.sleep(0.05)
        found = seen.energy([(0, 30_000_000)])
        assert found is not None
        assert found["source"] == source
        assert found["joules"] / found["seconds"] == pytest.approx(watts, abs=0.01)
    monkeypatch.setattr(telemetry, "IDLE_S", 0.05)
    assert telemetry.idle_watts([], root=tmp_path) == pytest.approx(12.617, abs=0.001)


def test_between_readings_energy_is_interpolated() -> None:
    """10 W, then 30 W from the second reading on."""
    one = meter((100, 0), (110, 100), (120, 400))
    assert used([one], [(105, 115)]) == (pytest.approx(50 + 150), 10)
    assert used([one], [(100, 120)]) == (400, 20)
    assert used([one], [(101, 102), (111, 113)]) == (pytest.approx(10 + 60), 3)


def test_of_what_was_not_read_neither_energy_nor_time_counts() -> None:
    one, two = meter((100, 0), (120, 200)), meter((104, 7), (130, 7 + 26))
    assert used([one], [(90, 110)]) == (pytest.approx(100), 10)
    assert used([one, two], [(90, 140)]) == (pytest.approx(160 + 16), 16)
    assert used([one], [(90, 95)]) is None
    assert used([one], []) is None


def test_without_two_readings_or_with_a_counter_that_went_back_there_is_none() -> None:
    assert used([], [(0, 1)]) is None
    assert used([meter((0, 5))], [(0, 1)]) is None
    assert used([meter((0, 5), (2, 1))], [(0, 1)]) is None


def test_power_adds_up_to_energy_where_there_is_no_counter() -> None:
    made = Readings()
    for at, watts in ((10, 100), (11, 300), (13, 300)):
        made.draw(at, watts)
    assert used([made], [(10, 13)]) == (pytest.approx(200 + 600), 3)


def test_only_whole_packages_count_and_all_of_them(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "dram", 7)
    zone(tmp_path, "intel-rapl:2", "psys", 7)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 7)
    assert packages(tmp_path) == [first, second]
    counter = Rapl(tmp_path)
    assert counter.read() == 0
    (first / "energy_uj").write_text("3000000\n")
    (second / "energy_uj").write_text("5500000\n")
    assert counter.read() == pytest.approx(2.5)


def test_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, most=10_000_000)
    counter = Rapl(tmp_path)
    counter.read()
    (path / "energy_uj").write_text("500000\n")
    assert counter.read() == pytest.approx(1.5)
    (path / "energy_uj").write_text("2000000\n")
    assert counter.read() == pytest.approx(3)


def test_without_packages_or_without_the_right_to_read_them_nothing_counts(tmp_path: Path) -> None:
    assert Rapl(tmp_path).read() is None
    (zone(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj").unlink()
    assert Rapl(tmp_path).read() is None
    with Telemetry([], [0], set, root=tmp_path) as seen:
        seen.turn(time.perf_counter_ns())
    assert seen.energy([(0, S)]) is None
    assert telemetry.idle_watts([], root=tmp_path) is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """What telemetry's clock read last, so that fake counters are exact however busy this is."""
    seen = local()

    def read() -> float:
        seen.at = time.monotonic()
        return float(seen.at)

    for module in (telemetry, gpu_monitor):
        monkeypatch.setattr(module, "monotonic", read)
    return lambda: float(seen.at)


def test_of_a_cpu_the_turn_s_window_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]
) -> None:
    """A CPU that draws 50 W."""
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(Rapl, "read", lambda self: 50 * clock())
    with Telemetry([], [0], set, hz=100, root=tmp_path, idle_watts=12.5) as seen:
        seen.turn(time.perf_counter_ns())
        time.sleep(0.1)
    found = seen.energy([(10_000_000, 60_000_000)])
    assert found is not None
    assert found["seconds"] == pytest.approx(0.05)
    assert found["joules"] == pytest.approx(2.5)
    assert (found["source"], found["idle_watts"]) == ("rapl", 12.5)
    assert seen.energy([None]) is None, "no common window"
    monkeypatch.setattr(telemetry, "IDLE_S", 0.05)
    assert telemetry.idle_watts([], root=tmp_path) == pytest.approx(50)


def observed(nvml: FakeNvml, *indices: int, seconds: float = 0.1) -> Telemetry:
    with Telemetry([*indices], [], set, nvml, hz=200) as seen:
        time.sleep(seconds / 2)
        seen.turn(time.perf_counter_ns())
        time.sleep(seconds / 2)
    return seen


def test_of_gpus_all_of_the_task_count(clock: Callable[[], float]) -> None:
    """One draws 100 W, one 300 W, by their counters (mJ)."""
    watts = {"GPU-a": 100, "GPU-b": 300}
    nvml = FakeNvml(("A100", "GPU-a"), ("A100", "GPU-b"))
    nvml.__dict__[ENERGY] = lambda gpu: clock() * 1e3 * watts[gpu.uuid]
    for indices, drawn in (((0,), 100), ((1,), 300), ((0, 1), 400)):
        found = observed(nvml, *indices).energy([(0, 20_000_000)])
        assert found is not None
        assert found["joules"] / found["seconds"] == pytest.approx(drawn)
        assert (found["source"], found["idle_watts"]) == ("nvml", None)


def test_short_turns_have_none_for_counters_are_too_slow_to_tell_them_apart(
    clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(("A100", "GPU-a"))
    nvml.__dict__[ENERGY] = lambda gpu: clock() * 1e3 * 100
    seen = observed(nvml, 0)
    seen._turns = [0.0, 5.0]
    monkeypatch.setattr(seen, "_used", lambda spans: (1.0, sum(b - a for a, b in spans)))
    assert seen.energy([(0, S), (0, S * 9 // 10)]) is None
    assert (seen.energy([(0, S), (0, 2 * S)]) or {})["seconds"] == 3
    assert (seen.energy([(0, S // 2)]) or {})["seconds"] == 0.5


def test_slices_of_a_gpu_share_its_energy(clock: Callable[[], float]) -> None:
    nvml = FakeNvml(("A100", "GPU-a", ["MIG-1", "MIG-2"]))
    nvml.__dict__[ENERGY] = lambda gpu: clock() * 1e3 * 100
    found = observed(nvml, 0, 1).energy([(0, 20_000_000)])
    assert found is not None
    assert found["joules"] / found["seconds"] == pytest.approx(100)


def test_a_gpu_without_a_counter_is_measured_by_its_power_and_says_so() -> None:
    found = observed(FakeNvml(("P100", "GPU-a"), **{ENERGY: NotSupported}), 0).energy([(0, S)])
    assert found is not None
    assert found["source"] == "nvml-power"
    assert found["joules"] / found["seconds"] == pytest.approx(250)
    power = {ENERGY: NotSupported, "nvmlDeviceGetPowerUsage": NotSupported}
    assert observed(FakeNvml(("M4", "GPU-a"), **power), 0).energy([(0, S)]) is None
    assert observed(FakeNvml(("P100", "GPU-a")), 0, 1).energy([(0, S)]) is None, "one is gone"


@pytest.mark.parametrize(
    ("listed", "known", "rivals", "own"),
    [
        (processes(7, 8), {7, 8}, set(), 15 << 20),
        (processes(7, 8), {7, 8}, {8}, 7 << 20),
        (processes(40_001), {7}, set(), 40_001 << 20),  # under the host's number
        (processes(40_001), {7, 8}, {8}, None),  # ours, or a rival's
        ([Bag(pid=7, usedGpuMemory=None)], {7}, set(), None),  # the driver does not tell
        ([], {7}, set(), None),
    ],
)
def test_a_gpu_s_memory_of_the_cell_s_own_processes(
    tmp_path: Path, listed: list[Bag], known: set[int], rivals: set[int], own: int | None
) -> None:
    nvml = FakeNvml(("A100", "GPU-a"), **{COMPUTE: listed})
    with Telemetry([0], [], lambda: known, nvml, root=tmp_path, rivals=lambda: rivals) as seen:
        time.sleep(0.01)
    (gpu,) = seen.result()["gpus"]
    assert gpu.get("own_memory_bytes_peak") == own


def test_processes_are_looked_at_once_more_when_a_turn_begins(tmp_path: Path) -> None:
    turns = count()
    nvml = FakeNvml(("A100", "GPU-a"), **{COMPUTE: lambda: processes(7) if next(turns) else []})
    with Telemetry([0], [], lambda: {7}, nvml, hz=100, root=tmp_path) as seen:
        time.sleep(0.05)
        seen.turn(time.perf_counter_ns())
        time.sleep(0.05)
        assert nvml.calls.count(COMPUTE) == 2
    assert seen.result()["gpus"][0]["own_memory_bytes_peak"] == 7 << 20


def test_idle_power_is_looked_at_once_before_the_workers_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[list[int]] = []
    monkeypatch.setattr(agent, "idle_watts", lambda gpus: (looked.append(gpus), 30.0)[1])
    one = agent.Agent(lambda _: None, closed=-1)
    cpu = Measure(make_cell(), Policy(), "", "", [(0,)])
    two = Measure(make_cell(device="cuda", replicas=2), Policy(), "", "", [(), ()])
    assert [one._idle_watts(r) for r in (cpu, cpu, two, cpu)] == [30.0] * 4
    assert looked == [[], [0, 1]]


def test_the_common_window_of_all_replicas_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    seen = Telemetry([], [0], set)
    monkeypatch.setattr(seen, "energy", lambda w: (asked.append(w), {"joules": 1.0})[1])

    def sample(replica: int, start: int, end: int) -> Samples:
        return Samples(replica=replica, device="cpu:0", durations_ns=[1],
                       start_ns=start, end_ns=end)  # fmt: skip

    cell = make_cell(replicas=2)
    own = [
        Record(cell=cell, repeat=0, status="ok", replicas=[sample(n, n, 9 - n)],
               again=[sample(n, 5 * n, 20)], facts={"pinned": [""]})
        for n in range(2)
    ]  # fmt: skip
    observed = team()
    observed.telemetry = seen
    done = agent._result([Done(one) for one in own], observed)
    assert isinstance(done, Done)
    assert asked == [[(1, 8), (5, 20)]]
    assert done.record.telemetry["energy"] == {"joules": 1.0}


def test_nodes_draw_together() -> None:
    one = {"joules": 100.0, "seconds": 10.0, "source": "rapl", "idle_watts": 4.0}
    two = {"joules": 300.0, "seconds": 12.0, "source": "rapl", "idle_watts": 5.0}
    found = node_group._telemetry({0: {"energy": one}, 1: {"energy": two}}, 0)["energy"]
    assert found == {"joules": 350.0, "seconds": 10.0, "source": "rapl", "idle_watts": 9.0}
    unknown = two | {"idle_watts": None}
    found = node_group._telemetry({0: {"energy": one}, 1: {"energy": unknown}}, 0)["energy"]
    assert found["idle_watts"] is None
    for other in ({}, {"energy": two | {"source": "nvml"}}):
        assert "energy" not in node_group._telemetry({0: {"energy": one}, 1: other}, 0)

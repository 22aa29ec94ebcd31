from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace as Bag
from typing import Any

import pytest

from gpubench.machine.telemetry import gpu_monitor, telemetry
from gpubench.machine.telemetry.telemetry import Telemetry
from gpubench.records.record import FLAGS
from tests.fake_nvml import FakeNvml, GpuIsLost, NotSupported, NVMLError

GPU = ("A100", "GPU-a")
CLOCKS = "nvmlDeviceGetClockInfo"
REASONS = "nvmlDeviceGetCurrentClocksEventReasons"
CLIENTS = "nvmlDeviceGetMPSComputeRunningProcesses_v3"
COMPUTE = "nvmlDeviceGetComputeRunningProcesses_v3"
GRAPHICS = "nvmlDeviceGetGraphicsRunningProcesses_v3"


@pytest.fixture(autouse=True)
def _all_devices_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def observe(
    root: Path, pids: Callable[[], set[int]] = set, residents: int = 1, **answers: Any
) -> Telemetry:
    """A finished observation of one GPU, long enough for several samples."""
    nvml = FakeNvml(GPU, **answers)
    deadline = time.monotonic() + 10
    with Telemetry([0], [], pids, nvml, hz=200, root=root, residents=lambda: residents) as seen:
        while nvml.calls.count(GRAPHICS) < 1 or nvml.calls.count(CLOCKS) < 12:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    assert nvml.sessions == 0
    assert set(seen.flags()) <= set(FLAGS)
    return seen


def processes(*pids: int) -> list[Any]:
    return [Bag(pid=pid, usedGpuMemory=pid << 20) for pid in pids]


def test_a_quiet_gpu(tmp_path: Path) -> None:
    clocks = iter((210, 5000, *[1410, 2619] * 1000))
    seen = observe(tmp_path, lambda: {7}, **{CLOCKS: lambda: next(clocks), COMPUTE: processes(7)})
    (gpu,) = seen.result()["gpus"]
    assert gpu["sm_mhz"] == {"min": 210, "median": 1410, "max": 1410}
    assert gpu["memory_mhz"] == {"min": 2619, "median": 2619, "max": 5000}
    assert gpu["power_w"] == {"mean": 250, "max": 250}
    assert gpu["memory_used_bytes_peak"] == 2 << 30
    assert gpu["own_memory_bytes_peak"] == 7 << 20
    assert gpu["temperature_c_max"] == 60
    assert gpu["throttle"] == {}
    assert (gpu["utilisation"], gpu["memory_utilisation"]) == (0.75, 0.3)
    assert (gpu["pcie_generation"], gpu["pcie_width"]) == (1, 8)
    assert gpu["pcie_in_bytes_per_s"] == gpu["pcie_out_bytes_per_s"] == 2e9
    assert "not_measured" not in gpu
    assert not seen.invalid
    assert seen.flags() == []


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        (0x08, "HwSlowdown"),
        (0x20, "SwThermalSlowdown"),
        (0x40, "HwThermalSlowdown"),
        (0x80, "HwPowerBrakeSlowdown"),
    ],
)
def test_throttling_in_one_sample_invalidates(tmp_path: Path, mask: int, name: str) -> None:
    masks = iter((0, mask, *[0] * 1000))
    seen = observe(tmp_path, **{REASONS: lambda: next(masks)})
    assert seen.flags() == ["THROTTLED"]
    assert seen.invalid
    assert 0 < seen.result()["gpus"][0]["throttle"][name] < 0.5


def test_the_power_cap_is_recorded_only(tmp_path: Path) -> None:
    seen = observe(tmp_path, **{REASONS: 0x4 | 0x1})
    assert seen.flags() == ["POWER-CAP"]
    assert seen.result()["gpus"][0]["throttle"] == {"SwPowerCap": 1, "GpuIdle": 1}
    assert not seen.invalid


def test_a_co_tenant_invalidates(tmp_path: Path) -> None:
    (tmp_path / "proc/99").mkdir(parents=True)
    seen = observe(tmp_path, lambda: {7}, **{COMPUTE: processes(7, 99)})
    assert seen.flags() == ["CO-TENANT"]
    assert seen.invalid
    assert seen.result()["gpus"][0]["other_processes"] == [99]


def test_mps_is_no_stranger_and_who_it_serves_is_told_apart(tmp_path: Path) -> None:
    for pid, program in ((50, "nvidia-cuda-mps-"), (99, "python")):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/comm").write_text(f"{program}\n")
    ours = {COMPUTE: processes(50), CLIENTS: processes(7)}
    seen = observe(tmp_path, lambda: {7}, **ours)
    assert (seen.flags(), seen.invalid) == ([], False)
    (gpu,) = seen.result()["gpus"]
    assert (gpu["mps"], gpu["own_memory_bytes_peak"]) == (True, 7 << 20)
    stranger = observe(tmp_path, lambda: {7}, **ours | {CLIENTS: processes(7, 99)})
    assert stranger.invalid
    assert stranger.result()["gpus"][0]["other_processes"] == [99]
    idle = observe(tmp_path, lambda: {7}, **{COMPUTE: processes(7, 50)})
    assert not idle.invalid, "its server stays when nobody asks for it"


def test_in_a_container_mps_has_no_name_and_a_second_stranger_is_one(tmp_path: Path) -> None:
    served = {CLIENTS: processes(40_007)}
    assert not observe(tmp_path, lambda: {7}, **served | {COMPUTE: processes(40_001)}).invalid
    assert observe(tmp_path, lambda: {7}, **served | {COMPUTE: processes(40_001, 40_002)}).invalid


@pytest.mark.parametrize(
    ("mhz", "reasons", "said"),
    [
        ([1200], 0, "held"), ([1200, 1215], 0, "moved"), ([1980], 0, None), ([1200], 0x04, None),
        ([1200], 0x02, "held"),
    ],
)  # fmt: skip
def test_whether_the_clock_was_locked_as_far_as_it_shows(
    tmp_path: Path, mhz: list[int], reasons: int, said: str | None
) -> None:
    clocks = cycle([mhz[0], 2619, mhz[-1], 2619])
    seen = observe(tmp_path, **{CLOCKS: lambda: next(clocks), REASONS: reasons})
    assert seen.result()["gpus"][0].get("clock") == said


def test_a_desktop_is_flagged_but_does_not_invalidate(tmp_path: Path) -> None:
    (tmp_path / "proc/50").mkdir(parents=True)
    seen = observe(tmp_path, **{GRAPHICS: processes(50)})
    assert seen.flags() == ["CO-TENANT"]
    assert not seen.invalid


def test_in_a_container_one_unknown_process_is_ours_and_a_second_is_not(tmp_path: Path) -> None:
    seen = observe(tmp_path, lambda: {7}, **{COMPUTE: processes(40_001)})
    assert seen.flags() == []
    seen = observe(tmp_path, lambda: {7}, **{COMPUTE: processes(40_001, 40_002)})
    assert seen.invalid
    seen = observe(tmp_path, lambda: {7}, **{COMPUTE: processes(7, 40_002)})
    assert seen.invalid


def test_in_a_container_an_idle_rival_is_ours_too(tmp_path: Path) -> None:
    both, more = processes(40_001, 40_002), processes(40_001, 40_002, 40_003)
    assert observe(tmp_path, lambda: {7}, residents=2, **{COMPUTE: both}).flags() == []
    assert observe(tmp_path, lambda: {7}, residents=2, **{COMPUTE: more}).invalid
    (tmp_path / "proc/40002").mkdir(parents=True)  # no stranger to this container
    assert observe(tmp_path, lambda: {7}, residents=2, **{COMPUTE: both}).invalid


def test_only_the_first_exit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    monkeypatch.setattr(telemetry.CpuWindow, "end", lambda self: ends.append(1))
    seen = Telemetry([], [0], set)
    seen.__exit__()
    assert (ends, seen.running) == ([], False)
    seen.__enter__()
    assert seen.running
    for _ in range(3):
        seen.__exit__()
    assert (ends, seen.running) == ([1], False)


def test_what_the_driver_does_not_offer_is_left_out_and_asked_once(tmp_path: Path) -> None:
    refused = "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption"
    nvml = FakeNvml(GPU, **dict.fromkeys(refused, NotSupported))
    with Telemetry([0], [], set, nvml, hz=200, root=tmp_path) as seen:
        time.sleep(0.1)
    (gpu,) = seen.result()["gpus"]
    assert set(gpu["not_measured"]) == {"power_w", "energy_j"}
    assert "power_w" not in gpu
    assert "sm_mhz" in gpu
    assert [nvml.calls.count(query) for query in refused] == [1, 1]


def test_a_query_that_fails_once_is_asked_again(tmp_path: Path) -> None:
    answers = iter([NVMLError, *[70] * 1000])

    def temperature() -> int:
        answer = next(answers)
        if answer is NVMLError:
            raise NVMLError("try again")
        return answer  # type: ignore[return-value]

    seen = observe(tmp_path, nvmlDeviceGetTemperature=temperature)
    assert seen.result()["gpus"][0]["temperature_c_max"] == 70


def test_a_lost_gpu_ends_its_sampling_and_is_named(tmp_path: Path) -> None:
    nvml = FakeNvml(GPU, nvmlDeviceGetTemperature=GpuIsLost)
    with Telemetry([0], [], set, nvml, hz=200, root=tmp_path) as seen:
        time.sleep(0.05)
    (gpu,) = seen.result()["gpus"]
    assert "gpu" in gpu["not_measured"]
    assert seen.lost == "GPU 0 (GPU-a): nvmlDeviceGetTemperature"
    assert nvml.calls.count("nvmlDeviceGetTemperature") == 1
    assert nvml.calls.count("nvmlDeviceGetPowerUsage") == 0


@pytest.mark.parametrize("error", [NVMLError, UnicodeDecodeError])
def test_what_fails_from_the_start_is_named(tmp_path: Path, error: type[Exception]) -> None:
    def info() -> Any:
        raise error("utf-8", b"", 0, 0, "?") if error is UnicodeDecodeError else error("of a GPU")

    nvml = FakeNvml(GPU, nvmlDeviceGetPciInfo=info)
    with Telemetry([0], [], set, nvml, hz=200, root=tmp_path) as seen:
        time.sleep(0.02)
    assert seen.result()["gpus"] == []
    assert seen.result()["gpu_error"].startswith(f"{error.__name__}: ")
    assert "UNWATCHED" in seen.flags()
    assert seen.lost == ""


def test_every_query_is_one_of_the_real_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a driver lacks is told by an NVMLError, as by those without a version it is not."""
    import pynvml

    folder = Path(telemetry.__file__).parents[1]
    text = "".join(file.read_text() for file in folder.rglob("*.py"))
    named = {*re.findall(r"\bnvml[A-Z]\w+|\bNVML_\w+", text)} - {"nvmlClocksEventReason"}
    named |= {f"nvmlClocksEventReason{reason}" for reason in gpu_monitor.REASONS}
    assert len(named) > 50
    assert [name for name in named if not hasattr(pynvml, name)] == []

    def missing(_: str) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer", missing)
    for query in (CLIENTS, COMPUTE, GRAPHICS):
        with pytest.raises(pynvml.NVMLError_FunctionNotFound):
            getattr(pynvml, query)(None)


def test_a_gpu_that_was_lost_before_is_named_and_another_is_not(tmp_path: Path) -> None:
    pci = iter([GpuIsLost, Bag(busId="00000000:66:00.0")] * 9)

    def info() -> Any:
        answer = next(pci)
        if answer is GpuIsLost:
            raise GpuIsLost("gone")
        return answer

    nvml = FakeNvml(GPU, ("A100", "GPU-b"), nvmlDeviceGetPciInfo=info)
    for index, lost in ((1, ""), (0, "GPU 0: NVML no longer shows it")):
        with Telemetry([index], [], set, nvml, hz=200, root=tmp_path) as seen:
            time.sleep(0.02)
        assert seen.lost == lost
        assert len(seen.result()["gpus"]) == (not lost)


def test_a_driver_that_is_gone_is_named(tmp_path: Path) -> None:
    with Telemetry([0], [], set, FakeNvml(nvmlInit=NVMLError), root=tmp_path) as seen:
        pass
    assert seen.result()["gpu_error"] == "NVML cannot be initialised"
    assert "UNWATCHED" in seen.flags()


def test_a_slice_has_the_clocks_of_its_gpu_and_processes_of_its_own(tmp_path: Path) -> None:
    nvml = FakeNvml(("A100", "GPU-a", ["MIG-1"]))
    asked: dict[str, set[str]] = {}

    def spy(query: str, answer: Any) -> None:
        def ask(device: Any, *_: Any) -> Any:
            asked.setdefault(query, set()).add(device.uuid)
            return answer

        setattr(nvml, query, ask)

    spy(CLOCKS, 1000)
    spy(COMPUTE, [])
    with Telemetry([0], [], set, nvml, hz=200, root=tmp_path) as seen:
        time.sleep(0.05)
    assert seen.result()["gpus"][0]["uuid"] == "MIG-1"
    assert asked == {CLOCKS: {"GPU-a"}, COMPUTE: {"MIG-1"}}


def test_each_slice_is_watched(tmp_path: Path) -> None:
    nvml = FakeNvml(("A100", "GPU-a", ["MIG-1", "MIG-2"]))
    with Telemetry([1, 0], [], set, nvml, hz=200, root=tmp_path) as seen:
        time.sleep(0.05)
    found = {gpu["index"]: gpu["uuid"] for gpu in seen.result()["gpus"]}
    assert found == {0: "MIG-1", 1: "MIG-2"}


def test_the_rate_reaches_ten_hertz(tmp_path: Path) -> None:
    nvml = FakeNvml(GPU)
    with Telemetry([0], [], set, nvml, root=tmp_path) as seen:
        time.sleep(0.65)
    assert seen.result()["gpu_samples"] >= 5
    assert nvml.calls.count(COMPUTE) == 2, "processes: once a second and at the end"


def test_without_a_gpu_there_is_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with Telemetry([], [0], set, root=tmp_path) as seen:
        assert threading.active_count() == before
    assert set(seen.result()) == {"seconds", "cpu"}
    assert seen.flags() == []
    assert not seen.invalid


@pytest.mark.parametrize(
    ("cpu", "flags"),
    [
        ({"steal_share": 0.021, "other_busy_share": 0.1}, ["CPU-STEAL"]),
        ({"steal_share": 0.02, "other_busy_share": 0.101}, ["CPU-BUSY"]),
        ({}, []),
    ],
)
def test_cpu_flags(
    monkeypatch: pytest.MonkeyPatch, cpu: dict[str, float], flags: list[str]
) -> None:
    monkeypatch.setattr(telemetry.CpuWindow, "result", lambda self: cpu)
    seen = Telemetry([], [0], set)
    assert seen.flags() == flags
    assert not seen.invalid


def test_a_series_is_kept_from_the_first_turn_on(tmp_path: Path) -> None:
    clocks = iter([*[1980, 2619] * 20, *[1755, 2619] * 1000])
    nvml = FakeNvml(GPU, **{CLOCKS: lambda: next(clocks)})
    with Telemetry([0], [], set, nvml, hz=200, root=tmp_path) as seen:
        time.sleep(0.05)
        begin = time.perf_counter_ns()
        seen.turn(begin)
        time.sleep(0.2)
        seen.turn(begin + 150_000_000)
    found = seen.result()
    assert found["turns_s"] == pytest.approx([0, 0.15])
    series = found["gpus"][0]["series"]
    assert set(series) == {"t_s", "sm_mhz", "temperature_c"}
    assert len(series["t_s"]) == len(series["sm_mhz"]) == len(series["temperature_c"])
    assert 0 <= series["t_s"][0] < series["t_s"][-1] <= found["seconds"]
    assert series["t_s"] == sorted(series["t_s"])
    assert series["sm_mhz"][-1] == 1755
    assert set(series["temperature_c"]) == {60}


def test_without_a_turn_there_is_no_series(tmp_path: Path) -> None:
    found = observe(tmp_path).result()
    assert found["turns_s"] == []
    assert "series" not in found["gpus"][0]


def test_what_is_not_offered_is_missing_in_the_series_too(tmp_path: Path) -> None:
    nvml = FakeNvml(GPU, nvmlDeviceGetTemperature=NotSupported)
    with Telemetry([0], [], set, nvml, hz=200, root=tmp_path) as seen:
        seen.turn(time.perf_counter_ns())
        time.sleep(0.05)
    series = seen.result()["gpus"][0]["series"]
    assert set(series["temperature_c"]) == {None}
    assert set(series["sm_mhz"]) == {1410}


@pytest.mark.parametrize("n", [0, 1, 119, 120, 121, 1000, 5000])
def test_a_long_series_is_thinned_to_its_lowest_clocks(n: int) -> None:
    readings = [(float(t), 1980.0 - (t == n // 2) * 500, 60.0) for t in range(n)]
    kept = gpu_monitor.thinned(readings)
    assert len(kept) <= gpu_monitor.SERIES
    assert kept == sorted(set(kept) & set(readings))
    assert len(kept) >= min(n, gpu_monitor.SERIES // 2)
    assert n == 0 or min(clock for _, clock, _ in kept if clock) == 1480

"""What a machine is, read from made-up machines."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpubench.machine import cgroups, cores, environment


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty file system root; every core of 0-7 may be used."""
    monkeypatch.setattr(cores, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def topology(root: Path, core: int, siblings: str, node: int) -> None:
    base = f"sys/devices/system/cpu/cpu{core}"
    put(
        root,
        {
            f"{base}/topology/thread_siblings_list": siblings + "\n",
            f"{base}/topology/physical_package_id": f"{node}\n",
        },
    )
    (root / base / f"node{node}").mkdir()


# ------------------------------------------------------------------------------ this machine


def test_collect_is_json_and_light() -> None:
    code = (
        "import json, sys; from gpubench.machine import environment as e;"
        "d = e.collect(['gpubench', 'x']);"
        "print(json.dumps([d, [m for m in sys.modules if m in "
        "('torch', 'numpy', 'onnxruntime', 'openvino', 'pandas')]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, heavy = json.loads(done.stdout)
    assert heavy == []
    assert found["command"] == ["gpubench", "x"]
    assert found["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert found["libraries"]["numpy"]
    assert found["cpu"]["usable"] == len(os.sched_getaffinity(0))
    assert environment.fingerprint(found) == environment.fingerprint(json.loads(json.dumps(found)))


def test_usable_cores_here_are_those_of_the_scheduler() -> None:
    assert sorted(cores.usable_cores()) == sorted(os.sched_getaffinity(0))


# ------------------------------------------------------------------------------ cores


def test_siblings_are_adjacent_and_nodes_contiguous(machine: Path) -> None:
    # as Linux numbers a 2-socket machine with hyper-threads: 0-3 first threads, 4-7 their siblings,
    # even cores on node 0
    for core in range(8):
        first = core % 4
        topology(machine, core, f"{first},{first + 4}", first % 2)
    assert cores.usable_cores() == [0, 4, 2, 6, 1, 5, 3, 7]
    cpu = environment.collect([])["cpu"]
    assert (cpu["usable"], cpu["cores"], cpu["sockets"], cpu["numa_nodes"]) == (8, 4, 2, 2)


def test_only_cores_of_the_affinity_mask(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 1})
    assert cores.usable_cores() == [1, 5]


@pytest.mark.parametrize(
    ("text", "expected"), [("0", [0]), ("0-2,8\n", [0, 1, 2, 8]), ("", []), ("3,1", [3, 1])]
)
def test_cpu_list(text: str, expected: list[int]) -> None:
    assert cores.cpu_list(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0-2,8", "1,3-4,6"])
def test_cpu_ranges(text: str) -> None:
    expected = cores.cpu_list(text)
    assert cores.cpu_ranges([*reversed(expected), *expected]) == text


# ------------------------------------------------------------------------------ the host


def test_a_machine_that_tells_nothing(machine: Path) -> None:
    found = environment.collect([])
    assert found["cpu"]["flags"] == []
    assert found["cpu"]["governor"] is None
    assert found["cpu"]["turbo"] is None
    assert found["memory"]["total_bytes"] is None
    assert found["limits"] == {"cpus": None, "memory_bytes": None}
    assert found["virtualisation"] == {"hypervisor": False, "product": None, "container": None}
    json.dumps(found)


def test_cpu_and_memory(machine: Path) -> None:
    put(
        machine,
        {
            "proc/cpuinfo": "processor : 0\nmodel name\t: Xeon\nflags\t\t: fpu avx2 amx_bf16 vme "
            "hypervisor\nmodel name : other\n",
            "proc/meminfo": "MemTotal:       2048 kB\nSwapTotal: 0 kB\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "3500000\n",
            "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
            "sys/class/dmi/id/sys_vendor": "QEMU\n",
            ".dockerenv": "",
        },
    )
    found = environment.collect([])
    assert found["cpu"]["model"] == "Xeon"
    assert found["cpu"]["flags"] == ["avx2", "amx_bf16"]
    assert (found["cpu"]["governor"], found["cpu"]["max_khz"]) == ("powersave", 3_500_000)
    assert found["cpu"]["turbo"] is True
    assert found["memory"] == {"total_bytes": 2048 * 1024, "swap_bytes": 0}
    assert found["virtualisation"] == {
        "hypervisor": True,
        "product": "QEMU",
        "container": "docker",
    }


@pytest.mark.parametrize(
    ("model", "called"),
    [
        (None, f"{platform.machine()}, implementer 0x41, part 0xd4f"),
        ("NVIDIA Jetson AGX Orin Developer Kit\0", "NVIDIA Jetson AGX Orin Developer Kit"),
    ],
)
def test_arm_s_cores_have_no_name(machine: Path, model: str | None, called: str) -> None:
    put(machine, {"proc/cpuinfo": "processor : 0\nCPU implementer : 0x41\nCPU part : 0xd4f\n"})
    put(machine, {"proc/device-tree/model": model} if model else {})
    assert environment.cpu_model() == called


def test_how_linux_runs_this_process(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: os.SCHED_BATCH)
    monkeypatch.setattr(os, "getpriority", lambda *_: 7)
    pages = "sys/kernel/mm/transparent_hugepage"
    files = {
        "proc/self/personality": "00000000\n", "proc/sys/kernel/randomize_va_space": "2\n",
        f"{pages}/enabled": "always [madvise] never\n",
        f"{pages}/defrag": "always defer [defer+madvise] madvise never\n",
        "sys/devices/system/cpu/isolated": "2-3\n",
    }  # fmt: skip
    put(machine, files)
    found = environment.collect([])
    assert found["process"] == {
        "nice": 7, "scheduler": "SCHED_BATCH", "address_randomisation": 2,
        "huge_pages": "madvise", "huge_pages_defrag": "defer+madvise",
    }  # fmt: skip
    assert found["cpu"]["isolated"] == "2-3"
    put(machine, {"proc/self/personality": "00040000\n"})  # setarch -R
    assert environment.collect([])["process"]["address_randomisation"] == 0


def test_limits_of_control_groups_version_2(machine: Path) -> None:
    put(
        machine,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/cpu.max": "150000 100000\n",  # the parent's limit binds too
            "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
            "sys/fs/cgroup/outer/inner/memory.max": "1073741824\n",
        },
    )
    assert environment.limits() == {"cpus": 1.5, "memory_bytes": 2**30}


def test_limits_of_control_groups_version_1(machine: Path) -> None:
    put(
        machine,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=x:/\n",
            # inside a container the group lies at the mount's root
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert environment.limits() == {"cpus": 2.0, "memory_bytes": None}


@pytest.mark.parametrize(
    ("group", "file", "text"),
    [
        ("0::/outer/inner", "outer/cpu.stat", "usage_usec 9\nnr_throttled 2\nthrottled_usec 7\n"),
        ("3:cpu,cpuacct:/a", "cpu,cpuacct/cpu.stat", "nr_throttled 2\nthrottled_time 7000\n"),
    ],
)
def test_what_a_quota_has_withheld(machine: Path, group: str, file: str, text: str) -> None:
    put(machine, {"proc/self/cgroup": f"{group}\n", f"sys/fs/cgroup/{file}": text})
    assert cgroups.throttled_ns() == 7000


# ------------------------------------------------------------------------------ the GPUs


class NvmlError(Exception):
    pass


def nvml(**overrides: Any) -> Any:
    """Just enough of pynvml for one GPU; an override that is None is not supported."""
    memory = SimpleNamespace(total=80 * 2**30)
    values: dict[str, Any] = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetHandleByUUID": "handle",
        "nvmlDeviceGetName": "H100",
        "nvmlDeviceGetUUID": "GPU-1",
        "nvmlDeviceGetCudaComputeCapability": (9, 0),
        "nvmlDeviceGetPciInfo": SimpleNamespace(busId="00000000:01:00.0"),
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlSystemGetDriverVersion": "580.1",
        "nvmlSystemGetCudaDriverVersion": 13000,
        "nvmlDeviceGetApplicationsClock": 1980,
        "nvmlDeviceGetDefaultApplicationsClock": 1980,
        "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        "nvmlDeviceGetClockInfo": 345,
        "nvmlDeviceGetMaxClockInfo": 1980,
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetEccMode": (1, 1),
        "nvmlDeviceGetComputeMode": 0,
    } | overrides
    lost = type("Lost", (NvmlError,), {})
    module = SimpleNamespace(NVMLError=NvmlError, NVMLError_GpuIsLost=lost, NVML_CLOCK_SM=1,
                             NVML_DEVICE_MIG_ENABLE=1)  # fmt: skip

    def function(name: str, value: Any) -> Any:
        def call(*_: Any) -> Any:
            if value is None and name not in ("nvmlInit", "nvmlShutdown"):
                raise NvmlError
            return value

        return call

    unsupported = dict.fromkeys(
        (
            "nvmlDeviceGetMigMode",
            "nvmlDeviceIsMigDeviceHandle",
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
        )
    )
    for name, value in (unsupported | values).items():
        setattr(module, name, function(name, value))
    return module


@pytest.fixture
def all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpu_settings(all_gpus: None) -> None:
    (found,) = environment._gpus(nvml())
    assert found["name"] == "H100"
    assert found["uuid"] == "GPU-1"
    assert found["driver"] == "580.1"
    assert found["clocks"] == "floating"
    assert found["power_cap_w"] == 700
    assert found["persistence"] is True
    assert found["ecc"] is True
    json.dumps(found)


def test_gpu_with_application_clocks(all_gpus: None) -> None:
    (found,) = environment._gpus(nvml(nvmlDeviceGetApplicationsClock=1200))
    assert found["clocks"] == "application"


def test_gpu_that_says_little(all_gpus: None) -> None:
    fake = nvml(
        nvmlDeviceGetApplicationsClock=None,
        nvmlDeviceGetEnforcedPowerLimit=None,
        nvmlDeviceGetEccMode=None,
    )
    del fake.nvmlDeviceGetPersistenceMode  # an older pynvml
    (found,) = environment._gpus(fake)
    assert [found[k] for k in ("clocks", "power_cap_w", "ecc", "persistence")] == [None] * 4


# ------------------------------------------------------------------------------ comparability


def sample() -> dict[str, Any]:
    gpu = {"index": 0, "uuid": "GPU-1", "name": "H100", "driver": "580.1", "sm_clock_mhz": 345}
    return {
        "time": "2026-01-01",
        "host": "one",
        "command": ["a"],
        "gpubench": {"version": "0.1.0", "commit": "abc", "dirty": False},
        "os": {"kernel": "6.1.0-13-amd64", "name": "Debian"},
        "python": {"version": "3.11.4"},
        "cpu": {"model": "Xeon", "flags": ["avx2"], "governor": None},
        "memory": {"total_bytes": 2**34 + 5},
        "limits": {"cpus": None},
        "gpus": [gpu],
        "process": {"nice": 0, "scheduler": "SCHED_OTHER", "huge_pages": "madvise"},
        "libraries": {"torch": "2.9.0"},
        "variables": {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "1"},
    }


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        ("time", "later", None),
        ("host", "two", None),
        ("command", ["b"], None),
        ("gpubench.commit", "def", None),
        ("gpubench.version", "0.2.0", "gpubench.version"),
        ("os.kernel", "6.1.0-14-amd64", None),
        ("os.kernel", "6.5.0-1", "kernel"),
        ("python.version", "3.11.5", None),
        ("python.version", "3.12.0", "python"),
        ("cpu.model", "EPYC", "cpu.model"),
        ("cpu.flags", ["avx2", "amx_bf16"], "cpu.flags"),
        ("cpu.governor", "performance", "cpu.governor"),
        ("memory.total_bytes", 2**34 - 9999, None),
        ("memory.total_bytes", 2**35, "memory_gib"),
        ("limits.cpus", 1.5, "limits.cpus"),
        ("gpus.0.uuid", "GPU-2", None),
        ("gpus.0.sm_clock_mhz", 1980, None),
        ("gpus.0.pcie_generation", 5, None),
        ("gpus.0.pcie_width", 16, None),
        ("gpus.0.local_cores", "0-3", None),
        ("topology", [{"gpus": [0, 1], "path": "SYS", "nvlinks": 0}], None),
        ("gpus.0.pcie_width_max", 8, "gpus.0.pcie_width_max"),
        ("gpus.0.driver", "590", "gpus.0.driver"),
        ("gpus.0.name", "A100", "gpus.0.name"),
        ("libraries.torch", "2.10.0", "libraries.torch"),
        ("variables.OMP_NUM_THREADS", "4", "variables.OMP_NUM_THREADS"),
        ("variables.CUDA_VISIBLE_DEVICES", "0", None),
        ("variables.PYTHONTRACEMALLOC", "1", "variables.PYTHONTRACEMALLOC"),
        ("variables.LD_PRELOAD", "libjemalloc.so", "variables.LD_PRELOAD"),
        ("process.nice", 5, "process.nice"),
        ("process.huge_pages", "always", "process.huge_pages"),
    ],
)
def test_what_makes_runs_incomparable(where: str, value: Any, named: str | None) -> None:
    one, two = sample(), sample()
    *path, last = where.split(".")
    at: Any = two
    for step in path:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[last] = value
    assert environment.differences(one, two) == ([named] if named else [])
    assert (environment.fingerprint(one) == environment.fingerprint(two)) is (named is None)


def test_changes_have_both_values() -> None:
    one = {"libraries": {"torch": "2.9.0"}, "cpu": {"flags": ["avx", "fma"], "model": "a" * 80}}
    two = {"libraries": {"onnx": "1"}, "cpu": {"flags": ["avx", "amx"], "model": "b"}}
    assert environment.changes(one, two) == {
        "cpu.flags": "['fma'] -> ['amx']", "cpu.model": "a" * 59 + "\u2026 -> b",
        "libraries.onnx": "unset -> 1", "libraries.torch": "2.9.0 -> unset",
    }  # fmt: skip
    two["cpu"] = {"flags": ["fma", "avx"], "model": "a" * 80}
    assert environment.changes(one, two)["cpu.flags"] == "['avx', 'fma'] -> ['fma', 'avx']"


def test_sections_are_where_comparable_keys_begin() -> None:
    found = {key.partition(".")[0] for key in environment.comparable(sample())}
    assert found <= set(environment.SECTIONS)


def test_another_number_of_gpus_is_named() -> None:
    one, two = sample(), sample()
    two["gpus"] = []
    assert "gpus.0.name" in environment.differences(one, two)


def test_machines_that_differ_are_told_apart_with_both_values() -> None:
    one = {"libraries": {"torch": "2.10.0"}, "cpu": {"model": "x"}, "host": "a"}
    two = {"libraries": {"torch": "2.9.0"}, "cpu": {"model": "x"}, "host": "b"}
    assert environment.node_differences([one]) == []
    assert environment.node_differences([one, {**one, "host": "c"}, two]) == [
        "node 2: libraries.torch 2.9.0, node 0: 2.10.0"
    ]


def test_the_fingerprint_of_several_machines_is_that_of_all_by_rank() -> None:
    one, two = {"libraries": {"torch": "2.10.0"}}, {"libraries": {"torch": "2.9.0"}}
    found = {
        environment.fingerprint_of(nodes)
        for nodes in ([one], [two], [one, one], [one, two], [two, one])
    }
    assert len(found) == 5
    assert environment.fingerprint_of([one]) == environment.fingerprint(one)

"""What this machine is: hardware, driver, clocks, library versions, settings, commit.

Light: reads files below /proc and /sys, package metadata and NVML; imports no runtime. Whatever a
machine does not tell is None, never an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpubench.machine import cgroups, cores, gpu, software, topology

Environment = dict[str, Any]

CPU_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
    *("asimd", "asimdhp", "bf16", "i8mm", "sve", "sve2"),  # Arm
)
"""CPU features that decide how fast a precision is."""

SCHEDULERS = ("SCHED_OTHER", "SCHED_BATCH", "SCHED_IDLE", "SCHED_FIFO", "SCHED_RR")
ADDR_NO_RANDOMIZE = 0x0040000
"""Of a process's personality: <linux/personality.h>."""

LOCATES = re.compile(r"VISIBLE_DEVICES$|(PATH|HOME|DIR|ROOT|CACHE)$|LD_LIBRARY_PATH")
"""Variables that only say where something lies: they do not make two runs incomparable."""


def collect(command: Sequence[str]) -> Environment:
    """Everything a reader needs to judge or repeat a run, as JSON-able values."""
    gpus = _gpus()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "host": platform.node(),
        "gpubench": {
            "version": version("gpubench"),
            **software.commit(Path(__file__).parent, own=True),
        },
        "directory": software.commit(Path.cwd()),
        "os": _os(),
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
        },
        "cpu": _cpu(),
        "memory": _memory(),
        "limits": limits(),
        "process": _process(),
        "virtualisation": _virtualisation(),
        "gpus": gpus,
        "topology": topology.pairs(gpus),
        "libraries": software.libraries(),
        "variables": software.variables(os.environ),
    }


SECTIONS = ("cpu", "gpus", "libraries", "virtualisation", "limits", "process",
            "gpubench", "python", "kernel", "memory_gib", "variables")  # fmt: skip
"""Where the keys of `comparable` begin. The first six are taken whole."""


def comparable(environment: Environment) -> dict[str, Any]:
    """The part that must match for two stored runs to be comparable, as {dotted key: value}.

    The kind of machine, not the one machine: neither host name nor UUIDs, so that runs of a pool of
    equal runners compare. Paths, times and commits are left out too.
    """
    wanted = {key: environment.get(key) for key in SECTIONS[:6]}
    wanted["gpubench"] = {"version": environment.get("gpubench", {}).get("version")}
    wanted["python"] = _minor(environment.get("python", {}).get("version"))
    wanted["kernel"] = _minor(environment.get("os", {}).get("kernel"))
    total = environment.get("memory", {}).get("total_bytes")
    wanted["memory_gib"] = None if total is None else round(total / 2**30)
    kept = environment.get("variables", {}).items()
    wanted["variables"] = {name: value for name, value in kept if not LOCATES.search(name)}
    return {
        key: value
        for key, value in _flat(wanted)
        if value is not None and key.rpartition(".")[2] not in _OF_ONE_MACHINE
    }


_OF_ONE_MACHINE = (
    *("uuid", "pci_bus_id", "numa_node", "local_cores", "index"),
    *("sm_clock_mhz", "pcie_generation", "pcie_width"),  # an idle GPU lowers them
)


def fingerprint(environment: Environment) -> str:
    """SHA-256 (hex) of `comparable`: equal for runs whose difference can be the code's."""
    text = json.dumps(comparable(environment), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(a: Environment, b: Environment) -> list[str]:
    """Dotted names of what makes two environments incomparable, such as 'libraries.torch'."""
    one, two = comparable(a), comparable(b)
    return sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))


def changes(a: Environment, b: Environment) -> dict[str, str]:
    """Each of `differences` -> what ``a`` and ``b`` have there: '2.9.0 -> 2.10.0'.

    Of two lists what is in one alone; long values are cut.
    """
    one, two = comparable(a), comparable(b)
    found = {}
    for key in differences(a, b):
        old, new = one.get(key), two.get(key)
        if isinstance(old, list) and isinstance(new, list):
            apart = [x for x in old if x not in new], [x for x in new if x not in old]
            old, new = apart if any(apart) else (old, new)
        found[key] = " -> ".join("unset" if v is None else _cut(str(v)) for v in (old, new))
    return found


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}\u2026"


def fingerprint_of(nodes: Sequence[Environment]) -> str:
    """Of one machine its `fingerprint`; of several that of all, in the order of ranks."""
    found = [fingerprint(node) for node in nodes]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def node_differences(nodes: Sequence[Environment]) -> list[str]:
    """In words, what makes a machine incomparable with the first one, with both values."""
    first = comparable(nodes[0])
    return [
        f"node {rank}: {key} {comparable(node).get(key)}, node 0: {first.get(key)}"
        for rank, node in enumerate(nodes)
        for key in differences(nodes[0], node)
    ]


def cpu_model() -> str:
    return str(_cpu()["model"])


def near_cores(one: gpu.Gpu, root: Path = topology.DEVICES) -> tuple[int, ...]:
    """Usable cores next to a GPU; () where that is all of them, or unknown."""
    usable = os.sched_getaffinity(0)
    near = usable.intersection(cores.cpu_list(topology.local_cores(one, root)))
    return tuple(sorted(near)) if near != usable else ()


# ------------------------------------------------------------------------------ the host


def _os() -> Environment:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        name = None
    return {"name": name, "system": platform.system(), "kernel": platform.release()}


def _cpu() -> Environment:
    info = cores.read(cores.ROOT / "proc/cpuinfo") or ""
    fields: dict[str, str] = {}
    for line in info.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    usable = cores.usable_cores()
    places = [cores.place(core) for core in usable]
    system = cores.ROOT / "sys/devices/system/cpu"
    frequency = system / f"cpu{usable[0] if usable else 0}" / "cpufreq"
    return {
        "model": fields.get("model name") or _board(fields) or platform.machine(),
        "machine": platform.machine(),
        "logical": os.cpu_count(),
        "usable": len(usable),
        "cores": len(set(places)),
        "sockets": len({place[1] for place in places}),
        "numa_nodes": len({place[0] for place in places}),
        "flags": [flag for flag in CPU_FLAGS if flag in present],
        "governor": cores.read(frequency / "scaling_governor"),
        "frequency_driver": cores.read(frequency / "scaling_driver"),
        "max_khz": cores.number(frequency / "scaling_max_freq"),
        "isolated": cores.read(system / "isolated") or None,
        "turbo": _turbo(system),
    }


def _board(fields: dict[str, str]) -> str | None:
    """What an Arm machine, whose CPU has no name, is called: the board, or its cores' kind."""
    board = (cores.read(cores.ROOT / "proc/device-tree/model") or "").strip("\0")
    maker, part = fields.get("CPU implementer"), fields.get("CPU part")
    return board or (f"{platform.machine()}, implementer {maker}, part {part}" if part else None)


def _turbo(system: Path) -> bool | None:
    off = cores.number(system / "intel_pstate/no_turbo")
    if off is not None:
        return not off
    boost = cores.number(system / "cpufreq/boost")
    return None if boost is None else bool(boost)


def _memory() -> Environment:
    info = cores.read(cores.ROOT / "proc/meminfo") or ""
    rows = re.findall(r"^(\w+):\s+(\d+) kB", info, re.MULTILINE)
    found = {name: int(kib) * 1024 for name, kib in rows}
    return {"total_bytes": found.get("MemTotal"), "swap_bytes": found.get("SwapTotal")}


def limits() -> Environment:
    """The control groups' limits, versions 1 and 2: CPUs' worth of time, bytes of memory."""
    cpus: list[float] = []
    memory: list[int] = []
    for at in cgroups.directories():
        quota, period = (*(cores.read(at / "cpu.max") or "max 0").split(), "0")[:2]
        if quota == "max":
            quota = cores.read(at / "cpu.cfs_quota_us") or "-1"
            period = cores.read(at / "cpu.cfs_period_us") or "0"
        if int(quota) > 0 and int(period) > 0:
            cpus.append(int(quota) / int(period))
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = cores.number(at / name)
            if limit is not None and limit < 2**60:  # version 1 writes "no limit" as 2**63
                memory.append(limit)
    return {"cpus": min(cpus, default=None), "memory_bytes": min(memory, default=None)}


def _process() -> Environment:
    """How Linux runs this process, and those that it starts, where that changes their speed."""
    personality = cores.read(cores.ROOT / "proc/self/personality")
    fixed = int(personality or "0", 16) & ADDR_NO_RANDOMIZE
    layout = cores.number(cores.ROOT / "proc/sys/kernel/randomize_va_space")
    pages = cores.ROOT / "sys/kernel/mm/transparent_hugepage"
    chosen = {n: re.search(r"\[([\w+]+)\]", cores.read(pages / n) or "")
              for n in ("enabled", "defrag")}  # fmt: skip
    policy = os.sched_getscheduler(0)
    return {
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "scheduler": {getattr(os, n): n for n in SCHEDULERS}.get(policy, str(policy)),
        "address_randomisation": 0 if fixed else layout,
        "huge_pages": chosen["enabled"] and chosen["enabled"][1],
        "huge_pages_defrag": chosen["defrag"] and chosen["defrag"][1],
    }


def _virtualisation() -> Environment:
    dmi = cores.ROOT / "sys/class/dmi/id"
    words = [cores.read(dmi / name) for name in ("sys_vendor", "product_name")]
    flags = cores.read(cores.ROOT / "proc/cpuinfo") or ""
    marks = {"docker": ".dockerenv", "podman": "run/.containerenv"}
    return {
        "hypervisor": bool(re.search(r"^flags\s*:.*\bhypervisor\b", flags, re.MULTILINE)),
        "product": " ".join(word for word in words if word) or None,
        "container": next((n for n, mark in marks.items() if (cores.ROOT / mark).exists()), None),
    }


# ------------------------------------------------------------------------------ the GPUs


def _gpus(nvml: Any = None) -> list[Environment]:
    found = gpu.visible_gpus(nvml)
    mps = gpu.mps() if found else None
    with gpu.session(nvml) as library:
        return [
            {name: getattr(one, name) for name in one.__struct_fields__}
            | _gpu_settings(library, one.uuid)
            | topology.links(library, one)
            | {"mps": mps}
            for one in found
        ]


def _gpu_settings(nvml: Any, uuid: str) -> Environment:
    """Clocks, power cap and modes. NVML has no query for clocks locked by ``nvidia-smi -lgc``;
    application clocks that differ from their default are all it can say ahead of a run."""

    ask = gpu.asking(nvml)
    handle = ask("nvmlDeviceGetHandleByUUID", uuid)
    if handle is None:
        return {}
    handle = gpu.physical(nvml, handle)
    chosen = ask("nvmlDeviceGetApplicationsClock", handle, nvml.NVML_CLOCK_SM)
    default = ask("nvmlDeviceGetDefaultApplicationsClock", handle, nvml.NVML_CLOCK_SM)
    cap = ask("nvmlDeviceGetEnforcedPowerLimit", handle)
    usual = ask("nvmlDeviceGetPowerManagementDefaultLimit", handle)
    ecc = ask("nvmlDeviceGetEccMode", handle)
    persistence = ask("nvmlDeviceGetPersistenceMode", handle)
    return {
        "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": ask("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
        "application_sm_clock_mhz": chosen,
        "clocks": None if chosen is None else "floating" if chosen == default else "application",
        "power_cap_w": None if cap is None else cap / 1000,
        "power_default_w": None if usual is None else usual / 1000,
        "persistence": None if persistence is None else bool(persistence),
        "ecc": None if ecc is None else bool(ecc[0]),
        "compute_mode": ask("nvmlDeviceGetComputeMode", handle),
    }


def _minor(version: str | None) -> str | None:
    """'3.11.4' -> '3.11'; '6.1.0-13-amd64' -> '6.1'."""
    return None if version is None else ".".join(version.split(".")[:2])


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested tables, and of lists of tables, by dotted key."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, item in value.items():
        yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))

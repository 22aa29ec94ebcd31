"""What this machine can run, what it lacks with the exact remedy, and what will disturb numbers.

Imports no runtime itself: each is imported for real in a process of its own, so that a broken or
hanging one is a finding and not the end of the doctor.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gpubench import plugins, units
from gpubench.backends import base
from gpubench.backends._inductor import compiler
from gpubench.backends.onnxruntime import CUDA, REMEDIES
from gpubench.cache import Cache
from gpubench.errors import CacheError, InputError, Unavailable
from gpubench.machine import cores, environment, processes
from gpubench.machine.gpu import NO_GPU, WSL
from gpubench.machine.import_check import remedy_of, try_imports
from gpubench.machine.telemetry import energy
from gpubench.pipeline.decoders import base as decoders_base
from gpubench.run import availability
from gpubench.run.results import Shown

Status = Literal["ok", "note", "warn", "missing", "broken"]


class Check(Struct, frozen=True):
    """One finding. warn: it works but numbers may suffer; missing: install it to use it."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


class Section(Struct, frozen=True):
    """Findings about one subject."""

    title: str
    checks: list[Check]


class Report(Shown, Struct, frozen=True):
    """All findings, and the environment as a run would record it."""

    sections: list[Section]
    environment: dict[str, Any]

    @property
    def broken(self) -> list[Check]:
        """What is installed and does not work."""
        return [c for section in self.sections for c in section.checks if c.status == "broken"]

    def _parts(self) -> Sequence[RenderableType]:
        """Nothing is cut off, remedies can be copied."""
        colours = {"ok": "green", "note": "cyan", "warn": "yellow", "missing": "magenta"}
        tables: list[RenderableType] = []
        told: set[str] = set()
        for section in self.sections:
            table = Table(title=section.title, title_justify="left", title_style="bold", box=None)
            table.show_header = False
            for width in (8, 24):
                table.add_column(min_width=width, overflow="fold", no_wrap=False)
            table.add_column(overflow="fold")
            for check in section.checks:
                words = Text(check.detail)
                if check.remedy and check.remedy not in told:
                    told.add(check.remedy)
                    words.append(f"\nremedy: {check.remedy}", style="italic")
                status = Text(check.status, style=colours.get(check.status, "bold red"))
                table.add_row(status, Text(check.name), words)
            tables += [table, Text()]
        return tables


def doctor(*, cache_dir: str | Path | None = None, timeout_s: float = 120.0) -> Report:
    """What this machine can run, what it lacks with the exact remedy, and what disturbs numbers.

    Takes as long as importing the runtimes does, each in a process of its own, and at most
    ``timeout_s`` each. ``sections`` has the findings; ``environment`` what a run would record.
    """
    cache_root = Path(cache_dir) if cache_dir else None
    here = environment.collect(["gpubench", "doctor"])
    imports: dict[str, dict[str, Any]] = {}
    backends = [check for _, check in _registered(base, imports, timeout_s)]
    decoders = [*_decoders(imports, timeout_s, cuda=bool(here["gpus"]))]
    return Report(
        [
            Section("Machine", _machine(here)),
            Section("GPU", _gpus(here, imports)),
            Section("Runtimes", _runtimes(imports)),
            Section("Backends", backends),
            Section("Decoders", decoders),
            Section("Tools and cache", [_compiler(), *_cache(cache_root)]),
            Section("What disturbs measurements", _noise(here)),
        ],
        here,
    )


# ------------------------------------------------------------------------------ machine


def _machine(here: dict[str, Any]) -> list[Check]:
    cpu, memory = here["cpu"], here["memory"]["total_bytes"]
    cores = f"{cpu['usable']} of {cpu['logical']} logical CPUs usable, {cpu['cores']} cores"
    system = f"{here['os']['name'] or here['os']['system']}, kernel {here['os']['kernel']}"
    return [
        Check("system", "note", f"{system}, Python {here['python']['version']}"),
        Check("CPU", "note", f"{cpu['model']}; {cores}, {cpu['numa_nodes']} NUMA node(s)"),
        Check("memory", "note", units.size(memory) if memory else "unknown"),
        *cpu_features(cpu["flags"]),
        _energy(),
        *_kind(here),
    ]


def _wsl(here: dict[str, Any]) -> bool:
    return "microsoft" in here["os"]["kernel"].lower()


def _kind(here: dict[str, Any]) -> Iterator[Check]:
    """What is other on kinds of machines that are Linux, and not a server with x86."""
    if _wsl(here):
        detail = ("Windows has the clocks, and other programs that no counter here shows; NVML "
                  "names no processes: a co-tenant of the GPU is not seen")  # fmt: skip
        remedy = "keep files and --cache-dir out of /mnt; lock clocks by nvidia-smi in Windows"
        yield Check("WSL 2", "note", detail, remedy)
    if here["cpu"]["machine"] == "aarch64":
        detail = ("PyTorch and ONNX Runtime have wheels; ONNX Runtime for CUDA from glibc 2.34 on, "
                  "OpenVINO and TensorRT-RTX from 2.35 on")  # fmt: skip
        remedy = "on a Jetson take NVIDIA's own builds: see docs, Installing"
        yield Check("aarch64", "note", detail, remedy)


def _energy() -> Check:
    """Whether energy per image can be measured on the CPU."""
    count, board = len(energy.packages(cores.ROOT)), energy.Board(cores.ROOT)
    if board.watts() is not None:
        detail = f"of the module with its GPU: {' + '.join(board.rails)}, by its INA3221 sensors"
        return Check("energy", "ok", detail)
    if not count:
        return Check("CPU energy", "note", "not counted here; virtual machines rarely show it")
    words = f"{count} package{'' if count == 1 else 's'}"
    if energy.Rapl(cores.ROOT).read() is None:
        detail = f"{words}; only root may read the counters, which can betray what others compute"
        remedy = f"sudo chmod a+r /{energy.POWERCAP}/intel-rapl:*/energy_uj, until the next start"
        return Check("CPU energy", "missing", detail, remedy)
    return Check("CPU energy", "ok", f"{words}, counted by RAPL")


def cpu_features(flags: Iterable[str]) -> list[Check]:
    """What the CPU's instructions mean for each reduced precision."""
    have, found = set(flags), []
    for precision, instructions, without in (
        ("bf16", "amx_bf16 avx512_bf16 bf16", "converted in software, often slower than fp32"),
        ("int8", "amx_int8 avx512_vnni avx_vnni i8mm",
         "without dot-product instructions, little or no gain"),
        ("fp16", "amx_fp16 avx512_fp16 asimdhp", "emulated: supported, not fast"),
    ):  # fmt: skip
        here = [name for name in instructions.split() if name in have]
        lacking = f"no {' / '.join(instructions.split())}: {without}"
        detail = f"native: {', '.join(here)}" if here else lacking
        matrix = " (matrix unit)" if any(name.startswith("amx") for name in here) else ""
        found.append(Check(f"CPU {precision}", "ok" if here else "note", detail + matrix))
    return found


def _gpus(here: dict[str, Any], imports: dict[str, dict[str, Any]]) -> list[Check]:
    gpus = here["gpus"]
    if not gpus:
        return [_no_gpu(here["variables"], wsl=_wsl(here))]
    checks = [
        Check(
            f"GPU {gpu['index']}",
            "ok",
            f"{gpu['name']}, {units.size(gpu['total_bytes'])}, compute capability "
            f"{gpu['compute_capability']}{', MIG slice' if gpu['mig'] else ''}, {gpu['uuid']}",
        )
        for gpu in gpus
    ]
    driver, supported = gpus[0]["driver"], gpus[0]["cuda_driver"]
    checks.append(Check("driver", "ok", f"{driver}, supports CUDA up to {supported}"))
    for name in ("cuda-runtime", "cudnn"):
        installed = {k: v for k, v in here["libraries"].items() if f"nvidia-{name}" in k}
        words = ", ".join(f"{k} {v}" for k, v in installed.items())
        checks.append(Check(name, "ok" if words else "note", words or "not from a Python package"))
    return [
        *checks,
        *_torch_cuda(imports.get("torch", {}), supported),
        *_onnxruntime_cuda(imports.get("onnxruntime", {})),
    ]


def _torch_cuda(torch: dict[str, Any], driver: str) -> list[Check]:
    if "cuda_available" not in torch:
        return []
    built = torch["cuda_build"]
    if torch["cuda_available"]:
        return [Check("torch on CUDA", "ok", f"works, built for CUDA {built}")]
    if built is None:
        remedy = "install a torch built for CUDA: see docs, Installing"
        return [Check("torch on CUDA", "broken", "torch is a build without CUDA", remedy)]
    detail = f"torch (CUDA {built}) cannot use the GPU; the driver supports CUDA {driver}"
    remedy = f"update the driver to one for CUDA {built}, or install a torch for CUDA {driver}"
    return [Check("torch on CUDA", "broken", detail, remedy)]


def _onnxruntime_cuda(onnxruntime: dict[str, Any]) -> list[Check]:
    if CUDA in onnxruntime.get("providers_built_in", [CUDA]):
        return []
    detail = "onnxruntime is a build without CUDA: its cells on the GPU are skipped"
    return [Check("onnxruntime on CUDA", "missing", detail, REMEDIES[CUDA])]


def _no_gpu(variables: dict[str, str], *, wsl: bool) -> Check:
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        detail = f"none visible with CUDA_VISIBLE_DEVICES={visible!r}"
        return Check("GPU", "missing", detail, "unset CUDA_VISIBLE_DEVICES, or name a GPU in it")
    if wsl:
        there = (cores.ROOT / WSL).exists()
        detail = "WSL 2 shows no NVIDIA GPU, " + (
            f"and has Windows' driver in /{WSL.parent}" if there else "and no driver of Windows'"
        )
        remedy = "install NVIDIA's driver in Windows, none in here; then in Windows: wsl --update"
        loads = f"export LD_LIBRARY_PATH=/{WSL.parent}, until /{WSL.parent}/nvidia-smi lists it"
        return Check("GPU", "missing" if there else "note", detail, loads if there else remedy)
    if (cores.ROOT / "proc/driver/nvidia/version").exists():
        detail = "the NVIDIA driver is loaded but shows this process no GPU"
        return Check("GPU", "missing", detail, "in a container: start it with --gpus all")
    bus = cores.ROOT / "sys/bus/pci/devices"
    if any(cores.read(vendor) == "0x10de" for vendor in bus.glob("*/vendor")):
        detail = "an NVIDIA device is on the PCI bus, but no driver is loaded"
        return Check("GPU", "missing", detail, "install NVIDIA's driver until nvidia-smi lists it")
    detail = "no NVIDIA GPU and no driver: suites run on the CPU, and what needs CUDA is skipped"
    return Check("GPU", "note", detail, NO_GPU)


# ------------------------------------------------------------------------------ backends

REINSTALL = "reinstall the package that registers it, or remove it"
_ALTERNATIVES = {"tensorrt": ("tensorrt", "tensorrt_rtx")}
"""Runtimes a backend imports only where they are installed."""


def _decoders(
    imports: dict[str, dict[str, Any]], timeout_s: float, *, cuda: bool
) -> Iterator[Check]:
    """A check for each registered decoder; ``cuda``: is there a device for who decodes on one?"""
    for decoder, check in _registered(decoders_base, imports, timeout_s):
        if check.status == "ok" and decoder.on_device and not cuda:
            check = Check(check.name, "note", "decodes on a CUDA device, and none is visible")
        yield check


def _registered(
    registry: Any, imports: dict[str, dict[str, Any]], timeout_s: float
) -> list[tuple[Any, Check]]:
    """What is registered (or why it cannot be loaded), and what is found about it.

    ``imports``: what importing each runtime showed; those that are not in it are tried, and added.
    """
    found: dict[str, Any] = {}
    for name in registry.names():
        try:
            found[name] = registry.get(name)
        except InputError as error:
            found[name] = error
    wanted = {n: _modules(p) for n, p in found.items() if not isinstance(p, InputError)}
    new = {tuple(m for m in modules if m not in imports) for modules in wanted.values()}
    groups = [g for g in new if g and not any(set(g) < set(other) for other in new)]
    with ThreadPoolExecutor(2) as pool:  # two at a time: imports are heavy on small machines
        try:
            for part in pool.map(lambda group: try_imports(group, timeout_s), groups):
                imports |= part
        except BaseException:  # the end of the program: leaving the pool waits for its threads
            pool.shutdown(wait=False, cancel_futures=True)
            for pid in processes.descendants([os.getpid()]):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise
    return [
        (part, Check(name, "broken", str(part), REINSTALL))
        if isinstance(part, InputError)
        else (part, _part(part, {m: imports[m] for m in wanted[name]}))
        for name, part in found.items()
    ]


def _modules(backend: base.Backend | decoders_base.Decoder) -> tuple[str, ...]:
    """What it is tried with; of what is missing anyway, those parts that are there."""
    modules = [m.partition(".")[0] for m in backend.preload]
    here = list(filter(importlib.util.find_spec, [*modules, *_ALTERNATIVES.get(backend.name, ())]))
    return tuple(dict.fromkeys(here if availability.lack(backend) else [*modules, *here]))


def _runtimes(imports: dict[str, dict[str, Any]]) -> list[Check]:
    """Those that were tried, and whatever else is here and too old: that says more than a trial."""
    tried = {name: _runtime(name, found) for name, found in imports.items()}
    old = plugins.outdated().items()
    missing = {name: Check(name, "missing", lack.reason, lack.remedy) for name, lack in old}
    return [*(tried | missing).values(), *_onnxruntimes()]


def _onnxruntimes() -> Iterator[Check]:
    """Whether its builds, which have the same files, lie on each other."""
    if len(found := plugins.builds("onnxruntime")) > 1:
        detail = f"{' and '.join(found)} have the same files: what runs is what came last"
        remedy = f"pip uninstall {' '.join(found)}, then install the one that you want"
        yield Check("ONNX Runtime", "warn", detail, remedy)


def _runtime(name: str, found: dict[str, Any]) -> Check:
    """What importing it showed, which is said here once for all that use it."""
    if "error" in found:
        remedy = remedy_of(found["error"], plugins.reinstall(name))
        return Check(name, "broken", found["error"], remedy)
    more = {k: v for k, v in found.items() if k not in ("seconds", "version")}
    words = [f"{key} {_say(value)}" for key, value in more.items()]
    version = [found["version"]] if found.get("version") else []
    return Check(name, "ok", "; ".join([*version, *words, f"import {found['seconds']:.1f} s"]))


def _part(
    backend: base.Backend | decoders_base.Decoder, imports: dict[str, dict[str, Any]]
) -> Check:
    try:
        facts = backend.probe()
    except Unavailable as error:
        return Check(backend.name, "missing", error.reason, error.remedy)
    except Exception as error:  # noqa: BLE001  # a third party's module may raise anything
        return Check(backend.name, "broken", f"its probe failed: {error!r}", REINSTALL)
    if failed := [name for name, found in imports.items() if "error" in found]:
        return Check(backend.name, "broken", f"{', '.join(failed)} cannot be imported: see above")
    own = {
        key: value for key, value in facts.items() if imports.get(key, {}).get("version") != value
    }
    words = [f"{key} {_say(value)}" for key, value in own.items()]
    words += [f"with {', '.join(imports)}"] if imports else []
    return Check(backend.name, "ok", "; ".join(words) or "needs nothing")


def _say(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ------------------------------------------------------------------------------ the rest


def _compiler() -> Check:
    try:
        return Check("C++ compiler", "ok", compiler()["c++"])
    except Unavailable as error:
        return Check("C++ compiler", "missing", error.reason, error.remedy)


REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "lustre", "ceph", "beegfs"}
"""File systems of another machine; 9p is also Windows' disks in WSL 2."""


def _cache(root: Path | None) -> list[Check]:
    try:
        cache = Cache(root)
        used = sum(usage.bytes for usage in cache.info())
        free = shutil.disk_usage(cache.root).free
    except (CacheError, OSError) as error:
        return [Check("cache", "broken", str(error), "run, plan and cache take --cache-dir")]
    detail = f"{cache.root}: {units.size(used)} used, {units.size(free)} free"
    found = [
        _judged("cache", detail, free < 2 * 2**30, "free some space, or: gpubench cache clear")
    ]
    if (kind := _file_system(cache.root)) in REMOTE:
        detail = f"on {kind}: locks wait for a server, and what is large is read through it"
        found.append(Check("cache's disk", "warn", detail, "--cache-dir, on a local disk"))
    return found


def _file_system(path: Path) -> str:
    """What the kernel calls the one that ``path`` is on, such as 'nfs4'; '' if it does not say."""
    mounts = cores.read(cores.ROOT / "proc/self/mountinfo") or ""
    fields = [(line.split(), line.partition(" - ")[2].split()) for line in mounts.splitlines()]
    above = [(where[4], kind[0]) for where, kind in fields if path.is_relative_to(where[4])]
    return max(above, key=lambda found: len(found[0]), default=("", ""))[1]


def _judged(name: str, detail: str, bad: bool, remedy: str, good: Status = "ok") -> Check:
    """With a warning and its remedy where it is ``bad``."""
    return Check(name, "warn", detail, remedy) if bad else Check(name, good, detail)


def _noise(here: dict[str, Any]) -> list[Check]:
    cpu, limits, virtual = here["cpu"], here["limits"], here["virtualisation"]
    load, logical = os.getloadavg()[0], cpu["logical"] or 1
    detail = f"{load:.2f} on {logical} logical CPUs in the last minute"
    checks = [
        _judged("load", detail, load > 0.2 * logical + 0.3, "stop what else is running"),
        _steal(virtual["hypervisor"]),
    ]
    if (governor := cpu["governor"]) is None:
        words = "not visible here: it cannot be fixed or checked"
        checks.append(Check("CPU frequency", "note", words))
    else:
        remedy = "sudo cpupower frequency-set -g performance"
        checks.append(_judged("CPU governor", governor, governor != "performance", remedy))
    if cpu["turbo"]:
        checks.append(Check("turbo", "note", "on: clocks depend on heat and on busy neighbours"))
    if (limit := limits["cpus"]) is not None:
        detail = f"a container limit of {limit:g} CPUs' time, {cpu['usable']} cores visible"
        remedy = "pin cores (--cpuset-cpus) instead of limiting their time (--cpus)"
        checks.append(_judged("CPU limit", detail, limit < cpu["usable"], remedy, "note"))
    for gpu in here["gpus"]:
        checks += _gpu_noise(gpu)
    return checks


def _gpu_noise(gpu: dict[str, Any]) -> list[Check]:
    """By names that hold whatever CUDA_VISIBLE_DEVICES shows; a slice's are its GPU's."""
    name, checks = f"GPU {gpu['index']}", []
    smi = f"sudo nvidia-smi -i {gpu['pci_bus_id'] if gpu['mig'] else gpu['uuid']}"
    if gpu.get("clocks") != "application" and (most := gpu.get("max_sm_clock_mhz")):
        known = "application clocks at their default" if gpu.get("clocks") else "no such clocks"
        detail = f"{known}; NVML does not say whether clocks are locked, records show if they moved"
        remedy = f"{smi} -lgc MHZ, below {most} MHz; undo with -rgc"
        checks.append(Check(f"{name} clocks", "note", detail, remedy))
    if gpu.get("persistence") is False:
        remedy = f"{smi} -pm 1"
        checks.append(Check(f"{name} persistence", "warn", "off: every start is slower", remedy))
    cap, usual = gpu.get("power_cap_w"), gpu.get("power_default_w")
    if cap and usual and cap < usual:
        detail = f"{cap:g} W, by default {usual:g} W"
        checks.append(Check(f"{name} power limit", "warn", detail, f"{smi} -pl {usual:g}"))
    width, widest = gpu.get("pcie_width"), gpu.get("pcie_width_max")
    if width and widest and width < widest:
        detail = f"PCIe x{width} of x{widest}: copies take longer"
        checks.append(Check(f"{name} bus", "warn", detail, "another slot, or reseat it"))
    if mps := gpu.get("mps"):
        share = mps.get("active_thread_percentage")
        detail = f"replicas share it through MPS{'' if share is None else f', {share:g} % each'}"
        checks.append(Check(f"{name} MPS", "note", detail))
    return checks


def _steal(hypervisor: bool) -> Check:
    try:
        ticks = [int(t) for t in (cores.ROOT / "proc/stat").read_text().split()[1:9]]
        share = ticks[7] / sum(ticks)
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return Check("virtual machine", "note", "stolen CPU time is not known here")
    if not hypervisor:
        return Check("virtual machine", "ok", "no hypervisor")
    detail = f"yes; {units.percent(share)} of the CPU time since boot was stolen by the hypervisor"
    remedy = "use dedicated cores, and believe intervals rather than medians"
    return _judged("virtual machine", detail, share > 0.01, remedy, "note")


def cluster(address: str, insecure: bool) -> list[str]:
    """The machines of a Ray cluster, and what makes their measurements incomparable."""
    from gpubench.report import formatting
    from gpubench.run.cluster.ray_cluster import Cluster

    with Cluster(address, insecure) as found:
        seen = found.environments
    apart = environment.node_differences(seen)
    return [*formatting.nodes(seen), *(f"differs: {line}" for line in apart or ["nothing"])]

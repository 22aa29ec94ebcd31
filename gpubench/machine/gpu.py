"""The GPUs a process can see, asked of the driver (NVML) without creating a CUDA context."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from msgspec import Struct

from gpubench.errors import Unavailable
from gpubench.machine import cores


class Gpu(Struct, frozen=True, kw_only=True):
    """One CUDA device: a whole GPU, or one MIG slice of it."""

    index: int
    """Its place among the visible ones; of a whole GPU the index that CUDA gives it."""
    uuid: str
    """'GPU-...' or 'MIG-...'."""
    name: str
    total_bytes: int
    compute_capability: str
    """'9.0'."""
    pci_bus_id: str
    numa_node: int | None
    driver: str
    cuda_driver: str
    """Newest CUDA version that the driver supports: '13.0'."""
    mig: bool = False


@contextmanager
def session(nvml: Any = None) -> Iterator[Any]:
    """The initialised NVML module (``pynvml``), or None on a machine without a driver."""
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def visible_gpus(nvml: Any = None, environ: Mapping[str, str] | None = None) -> list[Gpu]:
    """The GPUs that processes may use under ``CUDA_VISIBLE_DEVICES``, in its order.

    Accepts indices and (abbreviated) GPU or MIG UUIDs; like CUDA, it stops at the first entry that
    names nothing. [] without a driver. Indices follow the PCI bus, which is CUDA's order when all
    GPUs are of one kind or CUDA_DEVICE_ORDER=PCI_BUS_ID. Of MIG slices CUDA shows a process one
    only, by its UUID; here all are listed, for each replica is a process. Beside slices, whole GPUs
    are left out, as CUDA does.
    """
    wanted = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    with session(nvml) as library:
        if library is None:
            return []
        found = []
        for index, handle in enumerate(_selected(library, wanted)):
            with suppress(library.NVMLError_GpuIsLost):  # it fell off its bus: the others are here
                if handle is not _LOST:
                    found.append(_describe(library, handle, index))
        return found


def first() -> Gpu:
    """The one that a process computes on, and that is built for, unless it says another.

    Raises Unavailable where there is none.
    """
    for one in visible_gpus():
        return one
    raise Unavailable("no NVIDIA GPU is visible", NO_GPU)


def physical(nvml: Any, handle: Any) -> Any:
    """The whole GPU that ``handle`` is, or is a slice of; only that has clocks, heat, power."""
    whole = asking(nvml)("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
    return handle if whole is None else whole


def asking(nvml: Any) -> Callable[..., Any]:
    """A query's answer, or None: not supported here, or not in this version of the library."""

    def ask(name: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, name)(*arguments)
        except (nvml.NVMLError, AttributeError):
            return None

    return ask


def mps(environ: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """What MPS, through which processes share a GPU's units at the same time, gives to each.

    {"active_thread_percentage": of the units, or None where its daemon does not say}. None where no
    daemon serves who starts here: processes that share a GPU then take turns (time slicing).
    """
    environ = os.environ if environ is None else environ
    pipes = Path(environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")  # noqa: S108
    if not (pipes / "control").exists():
        return None
    control = shutil.which("nvidia-cuda-mps-control", path=environ.get("PATH"))
    share = environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "")
    if control is not None:  # in a container only its pipes may be there
        try:
            asked = subprocess.run(
                [control], input="get_default_active_thread_percentage\n", text=True, timeout=5,
                capture_output=True, check=True, env=dict(environ),
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None  # the pipes of one that has ended
        share = share or asked.stdout.strip()
    try:
        return {"active_thread_percentage": float(share)}
    except ValueError:
        return {"active_thread_percentage": None}


WSL = Path("usr/lib/wsl/lib/libnvidia-ml.so.1")
"""NVML of Windows' driver, which WSL 2 puts there."""
NO_GPU = "needs an NVIDIA GPU and its driver: look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES"
"""The remedy for whatever computes on one."""
_LOST = object()
"""Stands for a GPU that NVML gives no handle of, so that the others keep their numbers."""


def _handle(nvml: Any, index: int) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError_GpuIsLost:
        return _LOST


def _selected(nvml: Any, wanted: str | None) -> list[Any]:
    whole = [_handle(nvml, i) for i in range(nvml.nvmlDeviceGetCount())]
    chosen = whole
    if wanted is not None:
        named = (_find(nvml, whole, entry.strip()) for entry in wanted.split(","))
        chosen = list(takewhile(lambda handle: handle is not None, named))
    cut = [[h] if _is_mig(nvml, h) else _slices(nvml, h) for h in chosen if h is not _LOST]
    slices = {nvml.nvmlDeviceGetUUID(piece): piece for pieces in cut for piece in pieces}
    return list(slices.values()) or chosen


def _find(nvml: Any, whole: list[Any], entry: str) -> Any | None:
    if entry.isdigit():
        return whole[int(entry)] if int(entry) < len(whole) else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    candidates = [handle for handle in whole if handle is not _LOST]
    if entry.startswith("MIG-"):
        candidates = [piece for handle in candidates for piece in _slices(nvml, handle)]
    matches = [h for h in candidates if nvml.nvmlDeviceGetUUID(h).startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _slices(nvml: Any, handle: Any) -> list[Any]:
    ask = asking(nvml)
    mode = ask("nvmlDeviceGetMigMode", handle)
    if mode is None or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
        return []
    slots = range(ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
    found = [ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, slot) for slot in slots]
    return [piece for piece in found if piece is not None]


def _is_mig(nvml: Any, handle: Any) -> bool:
    return bool(asking(nvml)("nvmlDeviceIsMigDeviceHandle", handle))


def _describe(nvml: Any, handle: Any, index: int) -> Gpu:
    gpu = physical(nvml, handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(gpu)
    bus = _text(nvml.nvmlDeviceGetPciInfo(gpu).busId)
    cuda = nvml.nvmlSystemGetCudaDriverVersion()
    memory = asking(nvml)("nvmlDeviceGetMemoryInfo", handle)
    return Gpu(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        total_bytes=int(memory.total) if memory else 0,  # those that share the host's do not say
        compute_capability=f"{major}.{minor}",
        pci_bus_id=bus,
        numa_node=_numa(bus),
        driver=nvml.nvmlSystemGetDriverVersion(),
        cuda_driver=f"{cuda // 1000}.{cuda % 1000 // 10}",
        mig=_is_mig(nvml, handle),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def kernel_bus(bus: str | bytes) -> str:
    """A PCI address as the kernel writes it: the domain with four digits (NVML: eight)."""
    return _text(bus).lower()[-12:]


def _numa(bus: str, root: Path = Path("/sys/bus/pci/devices")) -> int | None:
    node = cores.number(root / kernel_bus(bus) / "numa_node")
    return None if node is None or node < 0 else node

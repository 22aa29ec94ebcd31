"""How GPUs are connected: to the host, to CPU cores, to each other. Asked of NVML and of /sys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from gpubench.machine import cores, gpu
from gpubench.machine.gpu import Gpu

PATHS = {0: "BOARD", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""NVML's levels of a common ancestor, as `nvidia-smi topo -m` calls them: the same board, one PCIe
switch, several, a host bridge, a NUMA node, the whole system."""
DEVICES = Path("/sys/bus/pci/devices")


def local_cores(one: Gpu, root: Path = DEVICES) -> str:
    """CPU cores next to it, as the kernel writes them ('0-15,32-47'); '' where it does not say."""
    return cores.read(root / gpu.kernel_bus(one.pci_bus_id) / "local_cpulist") or ""


def links(nvml: Any, one: Gpu, root: Path = DEVICES) -> dict[str, Any]:
    """Of one GPU: PCIe link (best possible, and now), NVLinks that are up, cores next to it."""
    ask = gpu.asking(nvml)
    handle = ask("nvmlDeviceGetHandleByUUID", one.uuid)
    whole = None if handle is None else gpu.physical(nvml, handle)
    return {
        "pcie_generation_max": ask("nvmlDeviceGetMaxPcieLinkGeneration", whole),
        "pcie_width_max": ask("nvmlDeviceGetMaxPcieLinkWidth", whole),
        "pcie_generation": ask("nvmlDeviceGetCurrPcieLinkGeneration", whole),
        "pcie_width": ask("nvmlDeviceGetCurrPcieLinkWidth", whole),
        "nvlinks": sum(_nvlinks(nvml, whole).values()),
        "local_cores": local_cores(one, root) or None,
    }


def pairs(found: Sequence[dict[str, Any]], nvml: Any = None) -> list[dict[str, Any]]:
    """Of every two GPUs: the path between them (`PATHS`) and the NVLinks that join them.

    ``found``: `Gpu`'s fields. Slices of one GPU are one. Links to a switch join no two GPUs in
    particular: `links` counts them only.
    """
    boards = {gpu.kernel_bus(one["pci_bus_id"]): one for one in reversed(found)}
    if len(boards) < 2:
        return []
    with gpu.session(nvml) as library:
        if library is None:
            return []
        ask = gpu.asking(library)
        handles = {
            bus: gpu.physical(library, handle)
            for bus, one in boards.items()
            if (handle := ask("nvmlDeviceGetHandleByUUID", one["uuid"])) is not None
        }
        peers = {bus: _nvlinks(library, handle) for bus, handle in handles.items()}
        return [
            {
                "gpus": [boards[a]["index"], boards[b]["index"]],
                "path": PATHS.get(
                    ask("nvmlDeviceGetTopologyCommonAncestor", handles[a], handles[b])
                ),
                "nvlinks": peers[a][b],
            }
            for a, b in combinations(reversed(handles), 2)
        ]


def _nvlinks(nvml: Any, whole: Any) -> Counter[str]:
    """NVLinks that are up, by the bus address of what they lead to: a GPU or a switch."""
    ask = gpu.asking(nvml)
    found: Counter[str] = Counter()
    for link in range(getattr(nvml, "NVML_NVLINK_MAX_LINKS", 0)):
        state = ask("nvmlDeviceGetNvLinkState", whole, link)
        if state is None:  # it has no more
            break
        if state:
            remote = ask("nvmlDeviceGetNvLinkRemotePciInfo", whole, link)
            found["" if remote is None else gpu.kernel_bus(remote.busId)] += 1
    return found

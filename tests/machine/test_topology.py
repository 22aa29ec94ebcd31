from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace as Bag
from typing import Any

import pytest

from gpubench.machine import topology
from gpubench.machine.gpu import Gpu, visible_gpus
from tests.fake_nvml import FakeNvml, NotSupported, NVMLError

A, B = "00000000:0A:00.0", "00000000:0B:00.0"
SWITCH = "00000000:C0:00.0"
BUSES = {"GPU-a": Bag(busId=A), "GPU-b": Bag(busId=B)}


def machine(**answers: Any) -> tuple[FakeNvml, list[Gpu]]:
    nvml = FakeNvml(("H100", "GPU-a"), ("H100", "GPU-b"), nvmlDeviceGetPciInfo=BUSES, **answers)
    return nvml, visible_gpus(nvml, {})


def local(root: Path, **lists: str) -> Path:
    for bus, text in lists.items():
        (root / f"0000:{bus}:00.0").mkdir()
        (root / f"0000:{bus}:00.0/local_cpulist").write_text(text + "\n")
    return root


def test_the_links_of_a_gpu(tmp_path: Path) -> None:
    nvml, (one, other) = machine()
    nvml.nvlinks["GPU-a"] = [B, "", B, SWITCH]
    found = topology.links(nvml, one, local(tmp_path, **{"0a": "0-15,32-47"}))
    assert found == {
        "pcie_generation_max": 5,
        "pcie_width_max": 16,
        "pcie_generation": 1,
        "pcie_width": 8,
        "nvlinks": 3,
        "local_cores": "0-15,32-47",
    }
    assert topology.links(nvml, other, tmp_path)["local_cores"] is None


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    names = ("MaxPcieLinkGeneration", "MaxPcieLinkWidth", "CurrPcieLinkGeneration",
             "CurrPcieLinkWidth")  # fmt: skip
    nvml, (one, _) = machine(**{f"nvmlDeviceGet{name}": NotSupported for name in names})
    found = topology.links(nvml, one, tmp_path)
    assert found.pop("nvlinks") == 0
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    ("level", "path"), [(0, "BOARD"), (10, "PIX"), (50, "SYS"), (7, None), (NVMLError, None)]
)
def test_pairs(level: Any, path: str | None) -> None:
    nvml, found = machine(nvmlDeviceGetTopologyCommonAncestor=level)
    nvml.nvlinks = {"GPU-a": [B, B, SWITCH], "GPU-b": [A, A]}
    gpus = [{"index": g.index, "uuid": g.uuid, "pci_bus_id": g.pci_bus_id} for g in found]
    assert topology.pairs(gpus, nvml) == [{"gpus": [0, 1], "path": path, "nvlinks": 2}]
    assert topology.pairs(gpus[:1], nvml) == []
    assert nvml.sessions == 0


def test_slices_of_one_gpu_are_no_pair() -> None:
    nvml = FakeNvml(("A100", "GPU-a", ["MIG-1", "MIG-2"]))
    gpus = [{"index": g.index, "uuid": g.uuid, "pci_bus_id": g.pci_bus_id}
            for g in visible_gpus(nvml, {})]  # fmt: skip
    assert len(gpus) == 2
    assert topology.pairs(gpus, nvml) == []

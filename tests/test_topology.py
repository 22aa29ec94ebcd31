from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace as Bag
from typing import Any

import pytest

from gpubench import topology
from gpubench.gpu import Gpu, visible_gpus
from gpubench.run.messages import Measure
from gpubench.run.placement import placed
from gpubench.suite import Policy
from tests.fake_nvml import FakeNvml, NotSupported, NVMLError
from tests.measure.virtual import make_cell

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


def request(**changes: Any) -> Measure:
    cell = make_cell(**{"device": "cuda", "cores": 0} | changes)
    return Measure(cell, Policy(), "", "", [()] * cell.replicas)


def test_replicas_are_pinned_next_to_their_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    _, gpus = machine()
    root = local(tmp_path, **{"0a": "0-3,64-67", "0b": "4-7,68-71"})
    made = placed(request(replicas=4, replicas_per_device=2), gpus, root)
    assert made.uuids == ["GPU-a", "GPU-b"]
    assert made.cores == [(0, 1, 2, 3)] * 2 + [(4, 5, 6, 7)] * 2
    assert placed(request(), gpus, root).uuids == ["GPU-a"]


@pytest.mark.parametrize("text", ["0-7", "64-71", "", None])
def test_nothing_is_pinned_where_that_would_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    _, gpus = machine()
    root = tmp_path if text is None else local(tmp_path, **{"0a": text})
    assert placed(request(), gpus, root).cores == [()]


def test_a_gpu_that_is_not_there_any_more_is_left_to_the_backend(tmp_path: Path) -> None:
    made = placed(request(replicas=2), [], tmp_path)
    assert (made.uuids, made.cores) == ([], [(), ()])


def test_on_cpu_the_plan_decides(tmp_path: Path) -> None:
    plain = Measure(make_cell(), Policy(), "", "", [(1,)])
    assert placed(plain, [], tmp_path) is plain

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpubench.machine import gpu
from gpubench.machine.gpu import mps, visible_gpus
from tests.fake_nvml import FakeNvml, GpuIsLost, NotSupported, NVMLError

TWO = ("A100", "GPU-aaaa-1"), ("T4", "GPU-bbbb-2")
CUT = ("A100", "GPU-aaaa-1", ["MIG-1111", "MIG-2222"])


def uuids(nvml: FakeNvml, visible: str | None) -> list[str]:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = visible_gpus(nvml, environ)
    assert [g.index for g in found] == list(range(len(found)))
    assert nvml.sessions == 0
    return [g.uuid for g in found]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-aaaa-1", "GPU-bbbb-2"]),
        ("1,0", ["GPU-bbbb-2", "GPU-aaaa-1"]),
        (" 1 ", ["GPU-bbbb-2"]),
        ("GPU-b", ["GPU-bbbb-2"]),
        ("GPU-", []),  # names two
        ("0,7,1", ["GPU-aaaa-1"]),  # stops where CUDA stops
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices(visible: str | None, expected: list[str]) -> None:
    assert uuids(FakeNvml(*TWO), visible) == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["MIG-1111", "MIG-2222"]),
        ("0,1", ["MIG-1111", "MIG-2222"]),
        ("1", ["GPU-bbbb-2"]),
        ("MIG-2222", ["MIG-2222"]),
        ("MIG-2222,MIG-1111", ["MIG-2222", "MIG-1111"]),
        ("MIG-2222,0", ["MIG-2222", "MIG-1111"]),
        ("MIG-2222,MIG-9,MIG-1111", ["MIG-2222"]),
        ("MIG-9", []),
    ],
)
def test_every_visible_slice_is_listed_and_then_no_whole_gpu(
    visible: str | None, expected: list[str]
) -> None:
    assert uuids(FakeNvml(CUT, ("T4", "GPU-bbbb-2")), visible) == expected


def test_description_of_a_gpu_and_of_a_slice() -> None:
    (whole,) = visible_gpus(FakeNvml(TWO[0]), {})
    assert (whole.name, whole.compute_capability, whole.mig) == ("A100", "9.0", False)
    assert (whole.driver, whole.cuda_driver, whole.total_bytes) == ("580.65", "13.0", 80 << 30)
    piece, _ = visible_gpus(FakeNvml(CUT), {})
    assert piece.mig
    assert piece.pci_bus_id == whole.pci_bus_id


def test_no_driver_means_no_gpus() -> None:
    nvml = FakeNvml(nvmlInit=NVMLError)
    assert visible_gpus(nvml, {}) == []
    assert nvml.sessions == 0


def test_a_gpu_that_shares_the_hosts_memory_is_listed() -> None:
    (found,) = visible_gpus(FakeNvml(TWO[0], nvmlDeviceGetMemoryInfo=NotSupported), {})
    assert found.total_bytes == 0


def test_a_gpu_that_fell_off_its_bus_is_left_out_and_the_others_keep_their_index() -> None:
    answers = iter([GpuIsLost, (9, 0)])

    def capability() -> tuple[int, int]:
        answer = next(answers)
        if answer is GpuIsLost:
            raise GpuIsLost("gone")
        return answer  # type: ignore[return-value]

    nvml = FakeNvml(*TWO, nvmlDeviceGetCudaComputeCapability=capability)
    assert [(g.index, g.uuid) for g in visible_gpus(nvml, {})] == [(1, TWO[1][1])]


@pytest.mark.parametrize("visible", [None, "0,1"])
def test_a_gpu_without_a_handle_is_lost_too(
    monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    nvml = FakeNvml(*TWO)

    def handle(index: int) -> object:
        if index == 0:
            raise GpuIsLost("gone")
        return nvml.whole[index]

    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", handle)
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [(g.index, g.uuid) for g in visible_gpus(nvml, environ)] == [(1, TWO[1][1])]


@pytest.mark.parametrize(("text", "node"), [("1\n", 1), ("-1\n", None), ("?", None), (None, None)])
def test_numa_node(tmp_path: Path, text: str | None, node: int | None) -> None:
    if text is not None:
        (tmp_path / "0000:65:00.0").mkdir()
        (tmp_path / "0000:65:00.0/numa_node").write_text(text)
    assert gpu._numa("00000000:65:00.0", tmp_path) == node


def test_importing_it_loads_no_gpu_library() -> None:
    code = (
        "import sys, gpubench.machine.gpu; sys.exit(bool({'pynvml', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_mps_is_what_its_daemon_and_the_environment_say(tmp_path: Path) -> None:
    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text('#!/bin/sh\nread asked; test "$asked" = get_default_active_thread_percentage'
                       ' && echo 40.0\n')  # fmt: skip
    control.chmod(0o700)
    environ = {"PATH": f"{tmp_path}:/bin:/usr/bin", "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    assert mps(environ) is None, "no pipes"
    (tmp_path / "control").touch()
    assert mps(environ) == {"active_thread_percentage": 40.0}
    own = environ | {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25"}
    assert mps(own) == {"active_thread_percentage": 25.0}
    assert mps(environ | {"PATH": ""}) == {"active_thread_percentage": None}, "a container"
    control.write_text("#!/bin/sh\nexit 1\n")
    assert mps(environ) is None, "the daemon has ended, its pipes are left"

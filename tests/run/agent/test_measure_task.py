"""What a replica's process sees of a GPU, and which cores it is pinned to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gpubench.backends.base import Device
from gpubench.errors import Unavailable
from gpubench.run.agent import measure_task
from gpubench.run.agent.messages import Measure
from gpubench.suite.types import Policy
from tests.measure.virtual import make_cell


def device(replica: int, uuids: list[str], **changes: Any) -> Any:
    cell = make_cell(**{"device": "cuda", "cores": 0} | changes)
    asked = Measure(cell, Policy(), "", "", [()] * cell.replicas, uuids=uuids)
    return measure_task._device(asked, replica)


def test_a_slice_is_all_that_its_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    found = device(3, ["MIG-1", "MIG-2"], replicas=4, replicas_per_device=2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-2"
    assert (found.index, found.uuid, str(found)) == (0, "MIG-2", "cuda:MIG-2")


def test_a_whole_gpu_is_all_that_its_process_sees_and_keeps_its_number_in_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    found = device(1, ["GPU-a", "GPU-b"], replicas=2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert (found.index, found.uuid, str(found)) == (0, "GPU-b", "cuda:1")
    seen = device(1, ["GPU-a"], replicas=2)
    assert (seen.index, str(seen)) == (1, "cuda:1"), "the backend says that it is not there"
    assert str(Device("cuda", 1)) == "cuda:1"


def test_how_replicas_share_a_gpu_is_settled_before_cuda_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", "")
    two = {"replicas": 2, "replicas_per_device": 2}
    with pytest.raises(Unavailable, match="no MPS daemon") as caught:
        device(1, ["GPU-a"], **two, sharing="mps")
    assert "nvidia-cuda-mps-control -d" in caught.value.remedy
    (tmp_path / "control").touch()
    device(1, ["GPU-a"], **two, sharing="mps")
    device(1, ["GPU-a"], **two)
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path)
    device(1, ["GPU-a"], **two, sharing="time-slicing")
    assert measure_task.gpu.mps() is None, "where CUDA looks for a daemon there is none"


def test_cores_next_to_a_gpu_size_no_thread_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Any] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: pinned.append(cores))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3})
    cell = make_cell(device="cuda", cores=0)
    found = measure_task._device(Measure(cell, Policy(), "", "", [(2, 3)], uuids=["GPU-a"]), 0)
    assert (found.threads, found.cores, pinned) == (0, (), [(2, 3)])
    own = measure_task._device(Measure(make_cell(cores=2), Policy(), "", "", [(2, 3)]), 0)
    assert (own.threads, str(own), pinned) == (2, "cpu:2,3", [(2, 3)] * 2)

"""Whether a deployment fits a machine, and which cores it gets there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gpubench.errors import InputError
from gpubench.run.serving import compatibility, manifest, readme
from gpubench.run.serving.manifest import Machine, Manifest

MADE = Machine(cpu="Example 9000", int8=["amx_int8"], libraries={"onnxruntime": "1.2"})


@pytest.fixture
def made(deploy: Callable[..., Path]) -> Manifest:
    return replace(manifest.read(deploy()), made_for=MADE)


def test_where_it_was_made_it_fits_in_silence(made: Manifest) -> None:
    compatibility.check(made, MADE)


def test_another_cpu_or_library_is_warned_of(made: Manifest) -> None:
    with pytest.warns(compatibility.DeploymentWarning, match="measured on Example 9000.*has Other"):
        compatibility.check(made, replace(MADE, cpu="Other"))
    with pytest.warns(
        compatibility.DeploymentWarning, match=r"checked with onnxruntime 1.2 \(here 1.3\)"
    ):
        compatibility.check(made, replace(MADE, libraries={"onnxruntime": "1.3"}))
    with pytest.warns(compatibility.DeploymentWarning, match=r"onnxruntime 1.2 \(here none\)"):
        compatibility.check(made, replace(MADE, libraries={}))


@pytest.mark.parametrize(
    ("cell", "before", "here", "words"),
    [
        ({"backend": "torch-compile"}, {}, {"cpu": "Other"}, "machine code was made for Example"),
        ({"precision": "int8"}, {}, {"int8": []}, "int8 was made for a CPU with amx_int8"),
        ({"backend": "tensorrt", "device": "cuda"}, {"gpu": "H100"}, {"gpu": "L4"},
         "made for H100, and this machine has L4"),
        ({"options": {"provider": "tensorrt"}, "device": "cuda"}, {"gpu": "H100"}, {"gpu": "L4"},
         "made for H100, and this machine has L4"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(
    made: Manifest,
    cell: dict[str, Any],
    before: dict[str, Any],
    here: dict[str, Any],
    words: str,
) -> None:
    made = replace(made, cell=replace(made.cell, **cell), made_for=replace(MADE, **before))
    with pytest.raises(InputError, match=f"{words}.*deploy again"):
        compatibility.check(
            made, replace(MADE, **before, **here) if not before else replace(MADE, **here)
        )


def placed(made: Manifest, pin: bool = True) -> list[tuple[int, ...]]:
    cores, claims = compatibility.places(made, pin)
    claims.close()
    return cores


def test_cores_are_the_cells_or_as_many_others(
    made: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compatibility, "usable_cores", lambda: [4, 5, 6, 7])
    shared = replace(made, cores=[[4, 5], [4, 5], [6, 7], [6, 7]])
    assert placed(shared) == [(4, 5), (4, 5), (6, 7), (6, 7)]
    elsewhere = replace(made, cores=[[0, 1], [0, 1], [2, 3], [2, 3]])
    assert placed(elsewhere) == [(4, 5), (4, 5), (6, 7), (6, 7)]
    many = replace(made, cell=replace(made.cell, cores=2, replicas=6, replicas_per_device=2))
    many = replace(many, cores=[[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]])
    told = r"the 6 core\(s\) of 6 replica\(s\) are more than the 4 usable here: not pinned"
    with pytest.warns(compatibility.DeploymentWarning, match=told):
        assert placed(many) == [()] * 6
    assert "as many\nprocesses as `cores / 6`" in readme.text(many)
    alone = replace(made, cores=[[0, 1]])
    assert placed(alone, pin=False) == [()]


def test_no_core_is_pinned_to_twice(made: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "usable_cores", lambda: [4, 5, 6])
    alone, double = replace(made, cores=[[4]]), replace(made, cores=[[4, 5]])
    first, claim = compatibility.places(alone, True)
    second, other = compatibility.places(alone, True)
    assert (first, second) == ([(4,)], [(5,)])
    with pytest.warns(compatibility.DeploymentWarning, match="pinned to 2 of the 3.*start fewer"):
        assert placed(double) == [()]
    assert placed(alone) == [(6,)], "what had too few has claimed none"
    pid = os.fork()
    if not pid:
        claim.close()  # as the interpreter's end does; nothing is its own to give back
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert placed(alone) == [(6,)]
    claim.close()
    assert placed(alone) == [(4,)]
    other.close()
    assert placed(double) == [(4, 5)]


def test_threads_are_the_cells_pinned_or_not(made: Manifest) -> None:
    cell = replace(made.cell, cores=3)
    assert compatibility.device(cell, 0, (4, 5, 6), own_process=False).cores == (4, 5, 6)
    assert compatibility.device(cell, 0, (), own_process=False).threads == 3


def test_gpus_are_shared_out_as_in_a_run(made: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [
        compatibility.gpu.Gpu(
            index=i, uuid=f"{kind}-{i}", name="H100", total_bytes=1, compute_capability="9.0",
            pci_bus_id="0", numa_node=None, driver="1", cuda_driver="13.0",
        )
        for i, kind in enumerate(("GPU", "MIG"))
    ]  # fmt: skip
    monkeypatch.setattr(compatibility.gpu, "visible_gpus", lambda: gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    cell = replace(made.cell, device="cuda", replicas=5, replicas_per_device=2, cores=0)
    assert compatibility.device(cell, 1, (), own_process=True).index == 0
    assert compatibility.device(cell, 2, (), own_process=True).index == 0, (
        "a slice is all that it sees"
    )
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-1"
    with pytest.raises(compatibility.Unavailable, match="replica 4 needs GPU 2; visible: 2"):
        compatibility.device(cell, 4, (), own_process=True)

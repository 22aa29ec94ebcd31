"""The backend: what it finds, what it caches, what it refuses to load."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace as Bag
from typing import Any

import pytest
from msgspec import to_builtins

from gpubench.backends import tensorrt
from gpubench.backends.base import Device
from gpubench.cache import Cache, digest
from gpubench.errors import CellFailed, Unavailable
from gpubench.machine.gpu import Gpu
from gpubench.suite.types import Cell
from tests.backends.fake_tensorrt import FakeTorch, FakeTrt
from tests.backends.onnx_files import conv_net

ADA = Gpu(
    index=0,
    uuid="GPU-1",
    name="NVIDIA L4",
    total_bytes=24 << 30,
    compute_capability="8.9",
    pci_bus_id="0",
    numa_node=None,
    driver="580.65",
    cuda_driver="13.0",
)
HOPPER = Gpu(
    **{f: getattr(ADA, f) for f in ADA.__struct_fields__}
    | {"name": "H200", "compute_capability": "9.0"}
)


def cell(**changes: Any) -> Cell:
    base = {
        "backend": "tensorrt",
        "device": "cuda",
        "model": "resnet18",
        "weights": "random",
        "images": "synthetic",
        "precision": "fp32",
        "batch_size": 4,
        "replicas": 1,
        "cores": 0,
        "scenario": "latency",
        "boundary": "compute",
    }
    return Cell(**(base | changes))  # type: ignore[arg-type]


# What this machine has


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that just these modules, distributions and GPUs are there."""

    def pretend(modules: str = "", gpus: tuple[Gpu, ...] = (ADA,), **versions: str) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(
            tensorrt, "find_spec", lambda name: name if name in modules.split() else None
        )
        monkeypatch.setattr(tensorrt, "version", version)
        monkeypatch.setattr(tensorrt.gpu, "visible_gpus", lambda: list(gpus))
        monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
        monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)

    return pretend


BOTH = "tensorrt tensorrt_libs tensorrt_rtx tensorrt_rtx_libs"


def test_probe_with_both_flavours(installed: Callable[..., None]) -> None:
    installed(BOTH, tensorrt="10.16.1.11", tensorrt_rtx="1.7.1.116")
    assert tensorrt.TensorRT().probe() == {
        "flavours": {"tensorrt": "10.16.1.11", "tensorrt_rtx": "1.7.1.116"},
        "gpu": "NVIDIA L4",
        "driver": "580.65",
    }


@pytest.mark.parametrize(
    ("here", "reason", "remedy"),
    [
        ({}, "neither tensorrt nor tensorrt_rtx is installed", "gpubench[tensorrt-rtx]"),
        ({"modules": "tensorrt_bindings"}, "tensorrt is installed without its native", "NVIDIA's"),
        (
            {"modules": "tensorrt tensorrt_bindings"},
            "without its native libraries",
            "gpubench[tens",
        ),
        (
            {"modules": "tensorrt tensorrt_libs", "tensorrt": "10.9.0.34"},
            "tensorrt 10.9.0.34 is installed, and gpubench needs >=10.12",
            "pip install -U 'gpubench[tensorrt]' with NVIDIA's own package index",
        ),
        (
            {"modules": "tensorrt_rtx tensorrt_rtx_libs", "tensorrt_rtx": "1.0.0.21"},
            "tensorrt_rtx 1.0.0.21 is installed, and gpubench needs >=1.4",
            "gpubench[tensorrt-rtx]",
        ),
        (
            {"modules": BOTH, "tensorrt": "11.4", "tensorrt_rtx": "1.7", "gpus": ()},
            "no NVIDIA GPU is visible",
            "nvidia-smi",
        ),
    ],
)
def test_probe_says_what_is_missing(
    installed: Callable[..., None], here: dict[str, Any], reason: str, remedy: str
) -> None:
    installed(**here)
    with pytest.raises(Unavailable) as caught:
        tensorrt.TensorRT().probe()
    assert reason in caught.value.reason
    assert remedy in caught.value.remedy


def test_libraries_of_the_system_count(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed("tensorrt")
    (tmp_path / "libnvinfer.so.10").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    assert tensorrt.TensorRT().probe()["flavours"] == {"tensorrt": "unknown"}


def test_the_flavour_of_a_cell(installed: Callable[..., None]) -> None:
    installed(BOTH, tensorrt="10.16", tensorrt_rtx="1.7")
    assert tensorrt._choose("auto") == "tensorrt"
    assert tensorrt._choose("tensorrt_rtx") == "tensorrt_rtx"
    installed("tensorrt_rtx tensorrt_rtx_libs", tensorrt_rtx="1.7")
    assert tensorrt._choose("auto") == "tensorrt_rtx"
    with pytest.raises(Unavailable):
        tensorrt._choose("tensorrt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"precision": "bf16"}, None),
        ({"device": "cpu"}, "GPUs only"),
        ({"precision": "amp"}, "PyTorch"),
        ({"precision": "int8"}, None),
        ({"precision": "fp16", "options": {"calibration": "entropy"}}, "is an option of int8"),
    ],
)
def test_unsupported(changes: dict[str, Any], words: str | None) -> None:
    reason = tensorrt.TensorRT().unsupported(cell(**changes))
    assert reason is None if words is None else words in str(reason)


# Preparing and opening


class Prepared:
    """The backend over a fake TensorRT, a real cache and a real ONNX file."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trt = FakeTrt(FakeTorch())
        monkeypatch.setitem(sys.modules, "torch", self.trt.torch)  # type: ignore[arg-type]
        self.cache = Cache(tmp_path / "cache")
        self.onnx = conv_net(tmp_path / "net.onnx")
        self.backend = tensorrt.TensorRT()
        monkeypatch.setattr(tensorrt.trt_build, "load_flavour", lambda flavour: self.trt)

    def __call__(self, **changes: Any) -> Path:
        precision = "int8" if changes.get("precision") == "int8" else "fp32"
        model: Any = Bag(name="net", precision=precision, onnx=lambda precision: self.cached())
        return self.backend.prepare(cell(**changes), model, self.cache)

    def cached(self) -> Path:
        """The file as every model keeps it."""
        recipe = {"file": digest(self.onnx)}
        entry = self.cache.get_or_make("onnx", recipe, lambda at: shutil.copy(self.onnx, at))
        return entry / self.onnx.name

    def builds(self) -> int:
        return len(self.trt.called("build_serialized_network"))


@pytest.fixture
def prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: Callable[..., None]
) -> Prepared:
    installed(BOTH, tensorrt="10.16", tensorrt_rtx="1.7")
    return Prepared(tmp_path, monkeypatch)


def test_an_engine_is_built_once(prepared: Prepared) -> None:
    first = prepared()
    assert first.read_bytes() == b"a plan"
    assert prepared(scenario="throughput", boundary="transfer", replicas=2) == first
    assert prepared(options={"cuda_graph": True}) == first
    assert prepared.builds() == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 8},
        {"precision": "tf32"},
        {"options": {"flavour": "tensorrt_rtx"}},
        {"options": {"flavour": "tensorrt_rtx", "cuda_graph": True}},
        {"options": {"optimization_level": 4}},
        {"options": {"avg_timing_iterations": 1}},
        {"options": {"workspace_mib": 64}},
        {"options": {"flavour": "tensorrt_rtx", "optimization_level": 5}},
    ],
)
def test_what_decides_about_an_engine_makes_another(
    prepared: Prepared, changes: dict[str, Any]
) -> None:
    assert prepared() != prepared(**changes)
    assert prepared.builds() == 2


def test_another_network_library_gpu_or_driver_makes_another(
    prepared: Prepared, installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [prepared()]
    conv_net(prepared.onnx, operator="Sigmoid")
    found.append(prepared())
    monkeypatch.setattr(prepared.trt, "__version__", "10.16.2")
    found.append(prepared())
    for change in ({"name": "T4"}, {"compute_capability": "7.5"}, {"driver": "581.00"}):
        monkeypatch.setattr(
            tensorrt.gpu, "visible_gpus", lambda c=change: [Gpu(**(to_builtins(ADA) | c))]
        )
        found.append(prepared())
    assert len(set(found)) == prepared.builds() == 6


def test_what_the_host_gives_makes_another(prepared: Prepared) -> None:
    from gpubench.workload.models import given_input
    from gpubench.workload.models.onnx_model import OnnxModel

    own = OnnxModel(prepared.onnx, prepared.cache)
    for dtype in ("float32", "uint8", "float16"):
        model = given_input.given(own, dtype, prepared.cache)  # type: ignore[arg-type]
        prepared.backend.prepare(cell(input=dtype), model, prepared.cache)
    assert prepared.builds() == 3


def test_timings_are_kept_between_builds(prepared: Prepared) -> None:
    prepared()
    prepared(batch_size=8)
    assert prepared.trt.called("create_timing_cache") == [(b"",), (b"+",)]
    (file,) = prepared.cache.root.glob("timing/*/content")
    assert file.read_bytes() == b"++"
    file.write_bytes(file.read_bytes()[:-1] + b"!")  # not what we wrote: left alone
    prepared(batch_size=16)
    assert prepared.trt.called("create_timing_cache")[2:] == [(b"",)]
    assert prepared.cache.clear() > 0
    assert not file.exists()


def test_int8_of_a_file_that_brings_it(prepared: Prepared) -> None:
    conv_net(prepared.onnx, "int8")
    assert prepared(precision="int8", model="net.onnx").exists()


def test_a_failed_build_leaves_nothing(prepared: Prepared) -> None:
    prepared.trt.answers["build_serialized_network"] = None
    with pytest.raises(CellFailed):
        prepared()
    assert [usage.kind for usage in prepared.cache.info()] == ["onnx"]


@pytest.mark.parametrize("graph", [False, True])
def test_an_rtx_engine_brings_its_kernels_and_can_be_captured(
    prepared: Prepared, graph: bool
) -> None:
    options = {"flavour": "tensorrt_rtx", "cuda_graph": graph}
    artefact = prepared(options=options)
    with prepared.backend.open(cell(options=options), artefact, Device("cuda", 0)) as session:
        assert session.facts["kernels_loaded"] is True
        assert session.facts["cuda_graph"] is graph
        assert ("REQUIRE_USER_ALLOCATION" in session.facts["builder_flags"]) is graph
    assert prepared.trt.called("deserialize") == [(b"kernels",)], "at the open, not before"
    (artefact.parent / "kernels.bin").write_bytes(b"a plot")
    with pytest.raises(CellFailed, match=r"kernels.bin is not what was written there"):
        prepared.backend.open(cell(options=options), artefact, Device("cuda", 0))


def test_build_routes_need_a_library_that_has_them(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match=r"of TensorRT 11.1 and later, not of tensorrt 10.16.1"):
        prepared(options={"build_route": "-conv=off"})
    monkeypatch.setattr(prepared.trt, "__version__", "11.4.0")
    with pytest.raises(Unavailable, match=r"not of tensorrt_rtx"):
        prepared(options={"build_route": "-conv=off", "flavour": "tensorrt_rtx"})


def test_rtx_has_kernels_for_what_it_names(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt.gpu, "visible_gpus", lambda: [HOPPER])
    with pytest.raises(Unavailable, match=r"10.16.1 has no kernels for H200 .*capability 9.0"):
        prepared(options={"flavour": "tensorrt_rtx"})
    assert prepared()


def opened(
    prepared: Prepared, artefact: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Any:
    """The session and its arguments, with a session that only remembers them."""
    from gpubench.backends import _trt_session

    seen: list[Any] = []

    def session(*arguments: Any, **_: Any) -> Any:
        seen.extend(arguments)
        return Bag(facts={"io": {}})

    monkeypatch.setattr(_trt_session, "TrtSession", session)
    return prepared.backend.open(cell(**changes), artefact, Device("cuda", 0)), seen


def test_open(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    artefact = prepared(precision="tf32")
    session, seen = opened(
        prepared, artefact, monkeypatch, precision="tf32", options={"cuda_graph": True}
    )
    assert seen == [prepared.trt, "tensorrt", b"a plan", 4, Device("cuda", 0), True]
    facts = session.facts
    assert facts["flavour"] == "tensorrt"
    assert facts["version"] == "10.16.1"
    assert facts["builder_flags"] == ["TF32"]
    assert facts["settings"]["avg_timing_iterations"] == 8
    assert facts["io"] == {}
    assert len(facts["sha256"]) == 64
    json.dumps(facts)


def test_only_our_own_unchanged_engines_are_loaded(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = prepared()
    artefact.parent.chmod(0o770)
    with pytest.raises(CellFailed, match=r"is not private \(drwxrwx---\)"):
        opened(prepared, artefact, monkeypatch)
    artefact.parent.chmod(0o700)
    artefact.write_bytes(b"a plot")
    with pytest.raises(CellFailed, match="is not the engine that was written there"):
        opened(prepared, artefact, monkeypatch)
    artefact.write_bytes(b"a plan")
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(CellFailed, match="is not private"):
        opened(prepared, artefact, monkeypatch)


def test_an_engine_for_another_gpu_or_library_is_not_loaded(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = prepared()
    monkeypatch.setattr(tensorrt.gpu, "visible_gpus", lambda: [HOPPER])
    with pytest.raises(CellFailed, match="the engine is for NVIDIA L4, but device 0 is H200"):
        opened(prepared, artefact, monkeypatch)
    monkeypatch.setattr(tensorrt.gpu, "visible_gpus", list)
    with pytest.raises(Unavailable, match="CUDA device 0 is not visible"):
        opened(prepared, artefact, monkeypatch)
    monkeypatch.setattr(tensorrt.gpu, "visible_gpus", lambda: [ADA])
    monkeypatch.setattr(prepared.trt, "__version__", "10.17")
    with pytest.raises(CellFailed, match=r"engine of tensorrt 10.16.1, not 10.17"):
        opened(prepared, artefact, monkeypatch)

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gpubench.backends import _inductor, base
from gpubench.backends.aot_inductor import AotInductor
from gpubench.backends.base import Device
from gpubench.cache import Cache
from gpubench.errors import CellFailed, Unavailable, Unsupported
from gpubench.suite.types import Workload
from gpubench.workload.models import builder, compiled_package, registry
from tests.backends import contract, tiny

pytestmark = pytest.mark.usefixtures("tiny_network")
BACKEND = AotInductor()
CORE = Device("cpu", 0, (0,))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": "int8"}, "int8"),
        ({"precision": "tf32"}, "tensor cores"),
        ({"options": {"cuda_graph": True}}, "needs device = 'cuda'"),
        ({"model": "x.onnx"}, "aot-inductor runs networks of PyTorch"),
    ],
)
def test_unsupported_says_why(changes: dict[str, Any], reason: str) -> None:
    assert reason in (BACKEND.unsupported(tiny.cell("aot-inductor", **changes)) or "")


def test_only_building_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"C\+\+ compiler") as caught:
        BACKEND.probe()
    assert "apt-get install g++" in caught.value.remedy
    assert BACKEND.probe_to_open()["torch"]
    assert base.get("null").probe_to_open() == {}


def test_on_cuda_it_needs_no_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else inductor raises, whatever the driver: with torch's packages all headers are found."""
    pytest.importorskip("setuptools", reason="torch.utils.cpp_extension imports it")
    from torch._inductor import cpp_builder
    from torch.utils import cpp_extension

    pytest.importorskip("nvidia.cu13", reason="needs PyTorch built for CUDA 13")
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_INC_PATH", raising=False)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    with pytest.raises(OSError, match="CUDA_HOME"):
        cpp_builder.get_cpp_torch_device_options("cuda", aot_mode=True)
    with _inductor.cuda_headers():
        folders = cpp_builder.get_cpp_torch_device_options("cuda", aot_mode=True)[1]
        assert os.environ["CUDA_HOME"] == cpp_extension.CUDA_HOME
    names = ("cuda.h", "cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h", "cuda_fp8.h")
    file = tmp_path / "all.cpp"
    file.write_text("".join(f"#include <{name}>\n" for name in names))  # of AOTInductor's own
    command = ["g++", "-std=c++20", "-fsyntax-only", *(f"-I{folder}" for folder in folders)]
    subprocess.run([*command, str(file)], check=True)
    assert "CUDA_HOME" not in os.environ
    assert cpp_extension.CUDA_HOME is None
    for name in ("nothing_here", "gpubench"):  # no such package, and one without the part
        monkeypatch.setattr(_inductor, "find_spec", lambda _, name=name: find_spec(f"{name}.x"))
        with pytest.raises(Unavailable, match="no CUDA toolkit"), _inductor.cuda_headers():
            pass


def test_what_cannot_be_exported_is_told_with_its_reason(
    model: tiny.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    class Chosen(nn.Module):
        def forward(self, images: Any) -> Any:
            return images.mean((2, 3)) if images.sum() > 0 else images.sum((2, 3))

    network = nn.Sequential(nn.Conv2d(3, 3, 1), Chosen())
    monkeypatch.setattr(builder, "load_module", lambda state: network.eval())
    monkeypatch.setattr("gpubench.backends._inductor.compiler", lambda: {"c++": "g++"})
    with pytest.raises(CellFailed, match=r"torch\.export refuses the network: .*data-dependent"):
        BACKEND.prepare(tiny.cell("aot-inductor"), model, Cache(tmp_path))  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_gpu_no_run_waits_for_the_one_before(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared for several threads, the one model of a package waits, on the host, until it has
    done its last batch: then launches and copies never overlap the work."""
    import torch._inductor

    about = {"torch": "", "shape": [1], "dtype": "float32", "channels_last": False, "weights": ""}
    (tmp_path / "package.json").write_text(json.dumps(about))

    def load(*given: object) -> None:
        names = inspect.signature(own).bind("model.pt2", *given[1:]).arguments
        raise LookupError(names["run_single_threaded"], names["device_index"])

    own = torch._inductor.aoti_load_package
    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    monkeypatch.setattr(BACKEND, "_enter", lambda *_: object() if device == "cuda" else None)
    monkeypatch.setattr("gpubench.backends._torch.Input", lambda *_: None)
    with pytest.raises(LookupError) as caught:
        BACKEND.open(tiny.cell("aot-inductor", device=device), tmp_path, Device(device, 0))
    assert caught.value.args == ((True, 0) if device == "cuda" else (False, -1))


@pytest.mark.slow
def test_a_package_is_moved_opened_and_taken_as_a_model(
    model: tiny.Model, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was compiled here, without its compiler, and as if it were a user's own."""
    try:
        BACKEND.probe()
    except Unavailable as error:
        pytest.skip(f"{error.reason}; {error.remedy}")
    cell = tiny.cell("aot-inductor", batch_size=2)
    entry = BACKEND.prepare(cell, model, cache)  # type: ignore[arg-type]
    monkeypatch.setenv("PATH", "")  # nothing may call the compiler now
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    moved = BACKEND.export(entry, tmp_path / "deployed").rename(tmp_path / "moved")
    with BACKEND.open(cell, moved, CORE) as session:
        facts = session.facts
        assert facts["compiled_for"]
        assert (facts["compiled_by"], facts["dtype"]) == (facts["torch"], "float32")
        contract.check(BACKEND, session, 2, "fp32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"], (
        "it was unpacked, and left"
    )

    about = json.loads((moved / "package.json").read_text())
    (moved / "package.json").write_text(json.dumps(about | {"torch": "2.0.0"}))
    with pytest.raises(CellFailed, match=r"compiled by torch 2\.0\.0, and this is"):
        BACKEND.open(cell, moved, CORE)

    with monkeypatch.context() as patch:
        patch.setattr("gpubench.backends._inductor.vector_units", lambda: "AVX1")
        with pytest.raises(CellFailed, match=r"compiled for .*, and this CPU has AVX1"):
            BACKEND.open(cell, entry, CORE)

    file = Path(shutil.copy(entry / "model.pt2", tmp_path / "own.pt2"))
    _check_as_model(file, cache, monkeypatch)


def _check_as_model(file: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the network is the package's now
    work = Workload(model=str(file), weights="file")
    look = registry.seen(work)
    assert look is not None
    assert (look.precision, look.batch, look.device) == ("fp32", 2, "cpu")
    own = registry.resolve(work, cache)
    assert (own.fixed_batch, own.num_classes, own.input_shape) == (2, 10, (3, 32, 32))
    assert "compared with its own" in "; ".join(own.notes)
    images = tiny.images(5)
    assert contract.same(own.answers(images), tiny.reference(images), 1e-4)
    with pytest.raises(Unsupported, match="no network to export"):
        own.onnx("fp32")
    cell = tiny.cell("aot-inductor", model=str(file), weights="file", batch_size=2)
    with BACKEND.open(cell, BACKEND.prepare(cell, own, cache), CORE) as session:
        assert session.facts["compiled_by"] == "not known"
        contract.check(BACKEND, session, 2, "fp32")
    other = tiny.cell("aot-inductor", model=str(file), options={"freezing": True})
    with pytest.raises(Unsupported, match="is compiled already: leave freezing out"):
        BACKEND.prepare(other, own, cache)
    assert compiled_package.is_package(str(file))

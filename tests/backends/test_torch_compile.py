from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from gpubench.backends import base
from gpubench.backends.base import Device
from gpubench.backends.torch_compile import TorchCompile, keep
from gpubench.backends.torch_eager import TorchSession
from gpubench.cache import Cache
from gpubench.errors import CellFailed, Unavailable
from tests.backends import contract, tiny

pytestmark = pytest.mark.usefixtures("tiny_network")
BACKEND = TorchCompile()
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"options": {"mode": "reduce-overhead"}}, "needs device = 'cuda'"),
        ({"options": {"cuda_graph": True, "mode": "max-autotune"}, "device": "cuda"}, "itself"),
        ({"precision": "int8"}, "int8"),
        ({"precision": "tf32"}, "tensor cores"),
    ],
)
def test_unsupported_says_why(changes: dict[str, object], reason: str) -> None:
    assert reason in (BACKEND.unsupported(tiny.cell("torch-compile", **changes)) or "")


def test_without_a_compiler_it_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"C\+\+ compiler") as caught:
        BACKEND.probe()
    assert "apt-get install g++" in caught.value.remedy
    assert BACKEND.probe_to_open()["torch"], "opening only loads"


def test_without_python_headers_it_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "c++"
    compiler.touch(mode=0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(Unavailable, match=r"Python\.h") as caught:
        BACKEND.probe()
    assert "python3-dev" in caught.value.remedy


@pytest.mark.skipif(not tiny.no_cuda(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["torch-compile", "aot-inductor"])
def test_where_torch_is_built_for_cpus_cuda_is_unavailable(
    name: str, model: tiny.Model, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a PyTorch comes without Triton."""

    def version(package: str) -> str:
        if package == "triton":
            raise PackageNotFoundError(package)
        return "2.9.0"

    monkeypatch.setattr("gpubench.backends._inductor.version", version)
    monkeypatch.setattr("gpubench.backends._inductor.compiler", lambda: {"c++": "g++"})
    with pytest.raises(Unavailable, match="cannot use CUDA device 0"):
        base.get(name).prepare(tiny.cell(name, device="cuda"), model, cache)  # type: ignore[arg-type]


@pytest.mark.slow
def test_open_compiles_nothing_and_recompiling_is_counted(
    model: tiny.Model, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        BACKEND.probe()
    except Unavailable as error:
        pytest.skip(f"{error.reason}; {error.remedy}")
    cell = tiny.cell("torch-compile", batch_size=2)
    entry = BACKEND.prepare(cell, model, cache)  # type: ignore[arg-type]
    assert [log.hit for log in cache.log if log.path == entry] == [False]

    as_it_was = [os.environ.get(name) for name in CACHES]
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")  # nothing may call the compiler now
        session = BACKEND.open(cell, entry, Device("cpu", 0, (0,)))
    with session:
        private = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert private.is_dir()
        assert Path(os.environ["TRITON_CACHE_DIR"]).parent == private
        facts = session.facts
        assert (facts["graphs"], facts["graph_breaks"]) == (1, 0)
        assert (facts["inductor_cache_hits"], facts["inductor_cache_misses"]) == (1, 0)
        assert session.counters()["compiled_at_open"] == 0

        before = session.counters()
        contract.answer(session, tiny.images(2))
        arrays = contract.slots(2)
        assert session.attach(arrays)
        contract.check_attached(session, arrays, 2, "fp32")
        assert session.counters() == before
        _try_another_shape(session)
        assert session.counters()["recompilations"] == before["recompilations"] + 1
    assert not private.exists()
    assert [os.environ.get(name) for name in CACHES] == as_it_was
    assert BACKEND.prepare(cell, model, cache) == entry, "the entry was changed by opening it"  # type: ignore[arg-type]


def test_tritons_own_module_is_kept_and_loads_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cache of its own making: a kernel's files, with absolute paths, stay behind."""
    if not (shutil.which("gcc") or shutil.which("clang")):
        pytest.skip("Triton needs a C compiler")
    build = pytest.importorskip("triton.runtime.build")
    source = """#include <Python.h>
    static struct PyModuleDef m = {PyModuleDef_HEAD_INIT, "helper", 0, -1, 0};
    PyMODINIT_FUNC PyInit_helper(void) { return PyModule_Create(&m); }"""

    def load(work: Path) -> Path:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(work / "triton"))
        found = build.compile_module_from_src(source, "helper")
        return Path(found.__file__)

    for name in ("fxgraph/ab/entry", "triton/KEY/__grp__kernel.json", "locks/a.lock"):
        (tmp_path / "work" / name).parent.mkdir(parents=True)
        (tmp_path / "work" / name).touch()
    load(tmp_path / "work")
    keep(tmp_path / "work", tmp_path / "kept")
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["fxgraph", "triton"]
    assert not [*(tmp_path / "kept").rglob("KEY")], "inductor lays a kernel out where none is"
    shutil.rmtree(tmp_path / "work")
    monkeypatch.setattr(build, "_build", lambda *_, **__: pytest.fail("it ran the C compiler"))
    assert load(tmp_path / "kept").is_relative_to(tmp_path / "kept")


@pytest.mark.parametrize(
    ("skips", "recorded", "said"),
    [(0, 1, ""), (1, 1, "inductor skipped 1"), (0, 0, "recorded none")],
)
def test_a_graph_mode_is_one_only_where_graphs_were_recorded_and_none_skipped(
    model: tiny.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    skips: int, recorded: int, said: str,
) -> None:  # fmt: skip
    """Inductor's own counters, moved as it moves them; with a module that Triton compiles."""
    import torch
    from torch._dynamo.utils import counters

    calls: list[object] = []

    def compiled(images: object) -> None:
        calls.append(images)
        counters["stats"]["unique_graphs"] = 1
        counters["inductor"]["cudagraph_skips"] += skips and len(calls) == 1
        counters["inductor"]["cudagraph_recorded_non_static_inputs"] += recorded * len(calls) == 2
        (tmp_path / "triton").mkdir(exist_ok=True)
        (tmp_path / "triton/helper.so").touch()

    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    cell = tiny.cell("torch-compile", options={"mode": "reduce-overhead"})
    with ExitStack() as stack:
        opening = (tmp_path, cell, model.state(), Device("cpu", 0, (0,)), stack)
        if said:
            with pytest.raises(CellFailed, match=said) as caught:
                BACKEND._open_with(*opening)
            assert caught.value.kind == "fallback"
            return
        session = BACKEND._open_with(*opening)
        assert len(calls) == 3, "run, record, replay"
        assert session.counters()["compiled_at_open"] == session.facts["compiled_at_open"] == 1


def _try_another_shape(session: TorchSession) -> None:
    """Make dynamo start compiling again, without the minute that finishing would take."""
    import torch._dynamo
    from torch._dynamo.exc import RecompileError

    with torch._dynamo.config.patch(error_on_recompile=True), pytest.raises(RecompileError):
        session._forward(session._input.tensor[:1].clone())

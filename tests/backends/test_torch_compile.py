from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gpubench.backends.base import Device
from gpubench.backends.torch_compile import _NOT_KEPT, TorchCompile
from gpubench.backends.torch_eager import TorchSession
from gpubench.cache import Cache
from gpubench.errors import Unavailable
from tests.backends import contract, tiny

pytestmark = pytest.mark.usefixtures("tiny_network")
BACKEND = TorchCompile()


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

        before = session.counters()
        contract.answer(session, tiny.images(2))
        arrays = contract.slots(2)
        assert session.attach(arrays)
        contract.check_attached(session, arrays, 2, "fp32")
        assert session.counters() == before
        _try_another_shape(session)
        assert session.counters()["recompilations"] == before["recompilations"] + 1
    assert not private.exists()
    assert not {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"} & os.environ.keys()
    assert BACKEND.prepare(cell, model, cache) == entry, "the entry was changed by opening it"  # type: ignore[arg-type]


def test_only_what_can_be_moved_is_kept(tmp_path: Path) -> None:
    for name in ("fxgraph/ab/entry", "triton/0/KEY/__grp__kernel.json", "locks/a.lock"):
        (tmp_path / "work" / name).parent.mkdir(parents=True)
        (tmp_path / "work" / name).touch()
    shutil.copytree(tmp_path / "work", tmp_path / "kept", ignore=_NOT_KEPT)
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["fxgraph"]


def _try_another_shape(session: TorchSession) -> None:
    """Make dynamo start compiling again, without the minute that finishing would take."""
    import torch._dynamo
    from torch._dynamo.exc import RecompileError

    with torch._dynamo.config.patch(error_on_recompile=True), pytest.raises(RecompileError):
        session._forward(session._input.tensor[:1].clone())

"""Torch-TensorRT over a stand-in that computes with PyTorch: no GPU, and not the real package.

Which names of the real one are used is checked against its source, where that is installed.
"""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from gpubench.backends import torch_tensorrt
from gpubench.backends.base import Device
from gpubench.backends.torch_tensorrt import TorchTensorRT
from gpubench.cache import Cache
from gpubench.errors import CellFailed, Unavailable
from tests.backends import contract, tiny

pytestmark = pytest.mark.usefixtures("tiny_network")
BACKEND = TorchTensorRT()
CORE = Device("cpu", 0, (0,))


class TorchTensorRTModule(nn.Module):
    """By its name what an engine is told by."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        object.__setattr__(self, "run", network)  # no child, as an engine has none

    def forward(self, *given: Any) -> Any:
        (found,) = pytree.tree_leaves(self.run(*given))
        return found


class Fake:
    """``left``: operators that it leaves to PyTorch; ``built``: what it was asked to build."""

    __version__ = "2.14.0"

    def __init__(self) -> None:
        self.left, self.engines = False, True
        self.built: list[dict[str, Any]] = []
        self.dynamo = SimpleNamespace(compile=self.convert)

    def convert(self, program: Any, arg_inputs: Any, **settings: Any) -> Any:
        self.built.append(settings)
        return self._partitioned(program.module())

    def backend(self, graph: Any, examples: Any, options: Any) -> Any:
        self.built.append(options)
        Path(options["engine_cache_dir"], f"{len(self.built)}.engine").touch()
        return self._partitioned(graph)

    def _partitioned(self, network: Any) -> Any:
        graph, module = torch.fx.Graph(), nn.Module()
        nodes = [node for node in network.graph.nodes if node.op == "placeholder"]
        given = tuple(graph.placeholder(node.name) for node in nodes)  # dynamo's has weights, too
        found = given[-1]
        if self.engines:
            module.engine = TorchTensorRTModule(network)
            found = graph.call_module("engine", given)
        if self.left:
            found = graph.call_function(torch.relu, (found,))
        graph.output(found if len(given) == 1 else (found,))  # as dynamo has it
        return torch.fx.GraphModule(module, graph)

    def save(self, module: Any, file_path: str, *, arg_inputs: Any) -> None:
        self.saved = (module, arg_inputs[0])
        Path(file_path).write_text("program")

    def load(self, file_path: str) -> Any:
        assert Path(file_path).read_text() == "program"
        module, images = self.saved
        node = SimpleNamespace(op="placeholder", name="images", meta={"val": images})
        return SimpleNamespace(
            graph=SimpleNamespace(nodes=[node]),
            graph_signature=SimpleNamespace(user_inputs=("images",)),
            module=lambda: module,
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    found = Fake()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", found)  # type: ignore[arg-type]
    monkeypatch.setattr(torch_tensorrt, "version", lambda name: "2.14.0")
    one = SimpleNamespace(name="NVIDIA L4", compute_capability="8.9", driver="580.1")
    monkeypatch.setattr(torch_tensorrt.gpu, "visible_gpus", lambda: [one])
    monkeypatch.setattr("torch._dynamo.lookup_backend", lambda name: found.backend)
    return found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cpu"}, "NVIDIA GPUs only"),
        ({"precision": "amp"}, "use fp16"),
        ({"precision": "int8"}, "quantised already"),
        ({"model": "x.onnx"}, "torch-tensorrt runs networks of PyTorch"),
    ],
)
def test_unsupported_says_why(changes: dict[str, Any], reason: str) -> None:
    cell = tiny.cell("torch-tensorrt", **{"device": "cuda"} | changes)
    assert reason in (BACKEND.unsupported(cell) or "")


def test_what_lacks_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("torch_tensorrt"):
        pytest.skip("it is installed")
    with pytest.raises(Unavailable, match="torch-tensorrt is not installed") as caught:
        BACKEND.probe()
    assert "NVIDIA's own package index" in caught.value.remedy
    monkeypatch.setattr("gpubench.plugins.installed", lambda *names, remedy: {"torch": "2.14"})
    monkeypatch.setattr(torch_tensorrt, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="without TensorRT"):
        BACKEND.probe()


@pytest.mark.parametrize("path", ["export", "compile"])
def test_whole_networks_are_opened_and_kept(
    path: str, fake: Fake, model: tiny.Model, tmp_path: Path
) -> None:
    cache, options = Cache(tmp_path / "cache"), {"path": path, "optimization_level": 5}
    cell = tiny.cell("torch-tensorrt", options=options)  # on the CPU, as there is no other
    entry = BACKEND.prepare(cell, model, cache)  # type: ignore[arg-type]
    [settings] = fake.built
    assert (settings["disable_tf32"], settings["optimization_level"]) == (True, 5)
    assert settings.get("immutable_weights", True) is (path == "export"), "kept if refittable"
    moved = BACKEND.export(entry, tmp_path / "deployed")
    with BACKEND.open(cell, moved, CORE) as session:
        assert (session.facts["engines"], session.facts["path"]) == (1, path)
        contract.check(BACKEND, session, 4, "fp32")
        flagged = session.counters().get("compiled_at_open")
    assert len(fake.built) == (1 if path == "export" else 2)
    assert session.facts.get("engines_built_at_open") == (None if path == "export" else 1)
    assert flagged == session.facts.get("engines_built_at_open")
    tf32 = tiny.cell("torch-tensorrt", precision="tf32", options=options)
    assert BACKEND.prepare(tf32, model, cache) != entry  # type: ignore[arg-type]
    assert fake.built[-1]["disable_tf32"] is False


@pytest.mark.parametrize("path", ["export", "compile"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"left": True}, r"PyTorch would compute 1 operators \(.*relu"),
        ({"engines": False}, "all of"),
    ],
)
def test_what_stays_with_pytorch_is_refused(
    path: str, change: dict[str, bool], words: str, fake: Fake, model: tiny.Model, tmp_path: Path
) -> None:
    vars(fake).update(change)
    cell = tiny.cell("torch-tensorrt", options={"path": path})
    with pytest.raises(CellFailed, match=words) as caught:
        BACKEND.prepare(cell, model, Cache(tmp_path))  # type: ignore[arg-type]
    assert caught.value.kind == "fallback"


@pytest.mark.parametrize("path", ["export", "compile"])
def test_an_error_of_the_builder_is_the_cells(
    path: str, fake: Fake, model: tiny.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no converter\nand a page more")

    monkeypatch.setattr(fake, "_partitioned", refuse)
    cell = tiny.cell("torch-tensorrt", options={"path": path})
    with pytest.raises(CellFailed, match=r"Torch-TensorRT refuses it: no converter$"):
        BACKEND.prepare(cell, model, Cache(tmp_path))  # type: ignore[arg-type]


def test_the_real_package_has_what_is_used() -> None:
    """By its source: importing it needs TensorRT's libraries."""
    spec = find_spec("torch_tensorrt")
    if spec is None or spec.origin is None:
        pytest.skip("torch-tensorrt is not installed: pip install --no-deps torch-tensorrt")
    root = Path(spec.origin).parent
    used = {*BACKEND._settings(tiny.cell("torch-tensorrt"))}
    dynamo = _functions(root / "dynamo/_compiler.py")
    assert used | {"arg_inputs"} <= dynamo["compile"]
    public = _functions(root / "_compile.py")
    assert {"module", "file_path", "arg_inputs"} <= public["save"]
    assert "file_path" in public["load"]
    kept = {"immutable_weights", "cache_built_engines", "reuse_cached_engines"}
    settings = (root / "dynamo/_settings.py").read_text()
    assert all(f"    {name}: " in settings for name in used | kept)
    assert "engine_cache_dir" in (root / "dynamo/utils.py").read_text()
    assert (
        '@td.register_backend(name="torch_tensorrt")'
        in (root / "dynamo/backend/backends.py").read_text()
    )
    assert (
        "class TorchTensorRTModule("
        in (root / "dynamo/runtime/_TorchTensorRTModule.py").read_text()
    )


def _functions(file: Path) -> dict[str, set[str]]:
    """Names of the parameters of each function at the top of a module."""
    body = ast.parse(file.read_text()).body
    return {
        node.name: {arg.arg for arg in [*node.args.args, *node.args.kwonlyargs]}
        for node in body
        if isinstance(node, ast.FunctionDef)
    }

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpubench.cache import Cache
from gpubench.errors import CellFailed, InputError
from gpubench.suite.types import Workload
from gpubench.workload.models import builder, onnx_export, onnx_graph
from gpubench.workload.models.base import Model
from gpubench.workload.models.registry import resolve
from tests.backends.onnx_files import conv_net

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(cache: Cache) -> Model:
    return resolve(Workload(model="resnet18", weights="random"), cache)


def describe(file: Path) -> tuple[Counter[str], Any, Any]:
    import onnx

    graph = onnx.load(file).graph
    types = Counter(onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer)
    return types, graph.input[0], graph.output[0]


def test_fp32_with_any_batch_size(model: Model, capfd: pytest.CaptureFixture[str]) -> None:
    import onnxruntime
    import torch

    file = model.onnx("fp32")
    assert capfd.readouterr() == ("", "")
    assert model.onnx("tf32") == model.onnx("amp") == file
    assert [p.name for p in file.parent.iterdir() if p.name != "manifest.json"] == ["model.onnx"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    for size in (1, 3):
        images = np.random.default_rng(size).normal(size=(size, 3, 224, 224)).astype(np.float32)
        with torch.inference_mode():
            expected = model.module()(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(session.run(None, {"images": images})[0], expected, atol=1e-3)


@pytest.mark.parametrize(("precision", "name"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
def test_reduced_precision_leaves_no_fp32_weight(model: Model, precision: str, name: str) -> None:
    import onnx

    file = model.onnx(precision, 4)
    types, given, answer = describe(file)
    assert types["FLOAT"] == 0
    assert types[name] >= 21  # weights of 20 convolutions and the last layer
    for value in (given, answer):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.DataType.Value(name)
        assert value.type.tensor_type.shape.dim[0].dim_value == 4
    assert not any(n.op_type == "BatchNormalization" for n in onnx.load(file).graph.node)


@pytest.mark.parametrize(("precision", "error"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_batch_norms_are_folded_in_fp32_whatever_class_or_shape_the_network_has(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, error: float
) -> None:
    """Of a variance that fp16 does not have; a norm of another class, one before a convolution, one
    of two uses of a layer; weights that something else uses, too; Python's `if`, which torch.fx
    does not trace; a HardSwish."""
    import onnx
    import onnxruntime
    import torch
    from torch import nn

    class Active(nn.BatchNorm2d):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.hardswish(super().forward(x))

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.norm = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), Active(8)
            self.twice, self.last = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
            self.tied = nn.Conv2d(8, 8, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.conv(self.first(x)))
            if x.shape[-1] > 2:
                x = self.last(self.twice(x)) + self.twice(x)
            return self.tied(x).mean((2, 3)) @ self.tied.weight.flatten(1).t()

    torch.manual_seed(0)
    network = Network().eval()
    network.conv.weight.data *= 1e-4
    network.conv.bias.data *= 1e-4
    network.norm.running_var.fill_(1e-8)
    network.norm.eps = 1e-9
    images = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        wanted = network(images).numpy()
    monkeypatch.setattr(builder, "load_module", lambda state: network)
    file = onnx_export.onnx(Cache(tmp_path), model.state(), precision, None)
    made = onnx.load(file)
    onnx.checker.check_model(made, full_check=True)
    kinds = Counter(n.op_type for n in made.graph.node)
    assert kinds["BatchNormalization"] == 2  # the first, and that of two uses
    assert kinds["HardSwish"] == (precision == "fp16")
    single = onnx.TensorProto.FLOAT
    assert not [t.name for t in made.graph.initializer if t.data_type == single]
    was = made.graph.input[0].type.tensor_type.elem_type
    onnx_graph.cast(made, was, single, lambda _, numbers: numbers.astype(np.float32))
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    [found] = session.run(None, {"images": images.numpy()})
    assert np.abs(found - wanted).max() < error * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("precision", "opset", "message"),
    [
        ("fp32", 18, "wrote opset 18 with float32 input, not opset 20 with float32"),
        ("fp16", 20, "wrote opset 20 with float32 input, not opset 20 with float16"),
    ],
)
def test_another_opset_or_type_than_asked_for_is_not_kept(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    opset: int,
    message: str,
) -> None:
    import onnx
    import torch
    from onnxscript import ir

    written = onnx.load(conv_net(tmp_path / "net.onnx"))
    written.opset_import[0].version = opset
    program = SimpleNamespace(
        model=ir.from_proto(written), optimize=lambda: None,
        save=lambda file, **_: onnx.save(written, file),
    )  # fmt: skip
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    cache = Cache(tmp_path / "cache")
    with pytest.raises(CellFailed, match=f"resnet18 {message}"):
        onnx_export.onnx(cache, model.state(), precision, None)
    assert cache.info() == []


def test_a_network_that_cannot_be_traced_says_so(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    class Branching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) if x.sum() > 0 else x

    monkeypatch.setattr(builder, "load_module", lambda state: Branching().eval())
    for precision, dtype in (("fp16", "float16"), ("fp32", "float32")):
        words = rf"ONNX export of resnet18 in {dtype} failed: .*data-dependent"
        with pytest.raises(CellFailed, match=words):
            onnx_export.onnx(Cache(tmp_path / "cache"), model.state(), precision, None)


def test_int8_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="'int8': ONNX export knows fp32"):
        model.onnx("int8")

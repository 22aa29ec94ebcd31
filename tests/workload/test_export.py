from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubench.errors import InputError
from gpubench.suite import Workload
from gpubench.workload import export
from gpubench.workload.cache import Cache
from gpubench.workload.models import Model, resolve

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


def test_folding_changes_nothing(model: Model) -> None:
    import torch

    module = model.module()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            export.fused(module)(images), module(images), rtol=1e-4, atol=1e-4
        )


def test_int8_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="'int8': ONNX export knows fp32"):
        model.onnx("int8")

"""What networks are judged by, and one that is small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpubench.workload.data.preprocess import Spec
from gpubench.workload.reference import Reference


@pytest.fixture
def reference() -> Reference:
    """64 images, 10 classes, every image with a clear answer of its own."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, 64)
    logits = (rng.normal(size=(64, 10)) + 5 * np.eye(10)[labels]).astype(np.float32)
    labels[::8] = -1
    images = np.zeros((64, 3, 2, 2), np.float32)
    names, spec = [str(i) for i in range(64)], Spec(size=(2, 2), resize=2)
    return Reference(
        images=images,
        labels=labels,
        names=names,
        logits=logits,
        engine="made up",
        path=Path(),
        spec=spec,
    )


@pytest.fixture
def tiny_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Writes a classifier (global pooling, then 3 -> classes) as an ONNX file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def write(
        name: str = "tiny.onnx",
        *,
        shape: tuple[object, ...] = ("n", 3, 8, 8),
        classes: int = 5,
        kind: int = TensorProto.FLOAT,
        outputs: int = 1,
        external: bool = False,
    ) -> Path:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        weight = np.random.default_rng(0).normal(size=(3, classes)).astype(dtype)
        nodes = [
            helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["out0"]),
            helper.make_node("Relu", ["out0"], ["out1"]),
        ]
        graph = helper.make_graph(
            nodes[: 2 + outputs],
            "tiny",
            [helper.make_tensor_value_info("pixels", kind, shape)],
            [
                helper.make_tensor_value_info(f"out{i}", kind, (shape[0], classes))
                for i in range(outputs)
            ],
            [numpy_helper.from_array(weight, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(
            model,
            tmp_path / name,
            save_as_external_data=external,
            location=f"{name}.data",
            size_threshold=0,
        )
        return tmp_path / name

    return write

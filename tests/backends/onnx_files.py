"""Small convolutional networks as ONNX files, made without torch: milliseconds, not seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def conv_net(
    path: Path, precision: str = "fp32", batch: int | str = "batch", **changes: Any
) -> Path:
    """Convolution, ReLU, global pooling, linear: (batch, 3, 8, 8) -> (batch, 4).

    ``int8`` quantises the convolution's input, and its weights per channel, symmetrically.
    ``changes``: ``operator`` replaces ReLU; ``external`` keeps the weights in a file beside it.
    """
    import ml_dtypes
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind, of = {
        "fp16": (TensorProto.FLOAT16, np.float16),
        "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    }.get(precision, (TensorProto.FLOAT, np.float32))
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(8, 3, 3, 3)).astype(of),
        "b": random.normal(size=8).astype(of),
        "f": random.normal(size=(8, 4)).astype(of),
    }
    nodes = []
    source, kernel = "images", "w"
    if precision == "int8":
        scales = np.abs(weights["w"]).max(axis=(1, 2, 3)) / 127
        quantized = np.rint(weights["w"] / scales[:, None, None, None]).astype(np.int8)
        weights |= {"w": quantized, "ws": scales, "wz": np.zeros(8, np.int8)}
        weights |= {"xs": np.float32(0.05), "xz": np.int8(0)}
        nodes += [
            helper.make_node("QuantizeLinear", ["images", "xs", "xz"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        ]
        source, kernel = "xd", "wd"
    nodes += [
        helper.make_node("Conv", [source, kernel, "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node(changes.get("operator", "Relu"), ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["v"]),
        helper.make_node("MatMul", ["v", "f"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", kind, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", kind, [batch, 4])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    beside = changes.get("external")
    if beside:
        onnx.save(model, path, save_as_external_data=True, location=beside, size_threshold=0)
    else:
        onnx.save(model, path)
    return path

"""Small convolutional networks as ONNX files, made without torch: milliseconds, not seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def conv_net(
    path: Path, precision: str = "fp32", batch: int | str = "batch", **changes: Any
) -> Path:
    """Convolution, ReLU, global pooling, linear: (batch, 3, 8, 8) -> (batch, 4).

    ``int8`` quantises the convolution's input, and its weights per channel, symmetrically.
    ``changes``: ``operator`` replaces ReLU; ``external`` keeps the weights in a file beside it.
    """
    import ml_dtypes

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


FLOAT, HALF, DOUBLE, BYTES = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8
)  # fmt: skip
WEIGHTS = np.random.default_rng(0).normal(size=(3, 5))
"""(channels, classes): a network answers with the mean colour times these."""


def colour_net(
    path: Path,
    shape: tuple[Any, ...] = ("n", 3, 8, 8),
    kind: int = FLOAT,
    *,
    ends: tuple[tuple[str, dict[str, Any]], ...] = (),
    weights: NDArray[Any] = WEIGHTS,
    reshape: tuple[int, ...] = (),
    fed: int = 0,
    last: bool = False,
    outputs: dict[str, tuple[Any, ...] | None] | None = None,
    opset: int = 18,
    external: bool = False,
) -> Path:
    """(Cast,) (transpose from NHWC,) convolution, mean, product "z"; then ``ends``, each of "z".

    ``ends``: (operator, its attributes), its output called as the operator. ``outputs``: by name,
    and what the graph says of their shapes.
    """
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    channels = len(weights)
    nodes, source = [], "pixels"

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    if fed:
        source = node("Cast", [source], "cast", to=kind)
    if last:
        source = node("Transpose", [source], "first", perm=[0, 3, 1, 2])
    source = node("Conv", [source, "same"], "c")
    source = node("GlobalAveragePool", [source], "p")
    source = node(*(("Reshape", [source, "to"]) if reshape else ("Flatten", [source])), "v")
    node("MatMul", [source, "w"], "z")
    for operator, attributes in ends:
        node(operator, ["z", *attributes.pop("also", ())], operator, **attributes)
    same = np.eye(channels)[:, :, None, None]
    constants = {"same": same.astype(dtype), "w": weights.astype(dtype)}
    constants |= {"to": np.array(reshape, np.int64)} if reshape else {}
    outputs = outputs or {"z": ("n", weights.shape[1])}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("pixels", fed or kind, shape)],
        [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name == "ArgMax" else kind, declared
            )
            for name, declared in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(made, path, save_as_external_data=external, location="w.bin", size_threshold=0)
    return path

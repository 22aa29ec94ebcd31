"""The project's network: `python network.py` writes model.onnx."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS = 100


def build(layers: int) -> onnx.ModelProto:
    """(n, 3, 32, 32) -> (n, 10): a stem, then so many equal residual convolutions."""
    rng = np.random.default_rng(0)
    shapes = {"stem": (16, 3, 3, 3), "layer": (16, 16, 3, 3), "head": (16, 10)}
    weights = {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }
    weights["layer"] *= 0.1
    same = {"pads": [1] * 4, "kernel_shape": [3, 3]}
    nodes = [helper.make_node("Conv", ["images", "stem"], ["x0"], strides=[2, 2], **same)]
    for at in range(layers):
        nodes += [
            helper.make_node("Relu", [f"x{at}"], [f"r{at}"]),
            helper.make_node("Conv", [f"r{at}", "layer"], [f"c{at}"], **same),
            helper.make_node("Add", [f"x{at}", f"c{at}"], [f"x{at + 1}"]),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{layers}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


if __name__ == "__main__":
    onnx.save(build(LAYERS), "model.onnx")

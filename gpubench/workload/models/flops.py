"""The work in one image, counted from shapes alone: nothing is computed.

A torch network runs on the meta device while every operator's shapes are looked at; an ONNX file's
graph is walked. Both count alike:

- FLOPs of matrix products and convolutions, a multiplication and an addition being two;
- as weights the constants that these multiply with, not their biases;
- as activations what these and pooling read and write: all else is fused into them. Second inputs
  of additions (residuals) are left out.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from gpubench.errors import InputError
from gpubench.records.record import Work
from gpubench.workload.models.base import worded
from gpubench.workload.models.onnx_graph import inputs

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

    from gpubench.cache import Cache
    from gpubench.workload.models.base import Model

FORMAT = 1
"""Raised whenever the same network would be counted differently."""
_FILE = "work.json"
_POOLS = ("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
          "mean")  # fmt: skip
"""Operators of aten. Pooling to one number a channel is ``mean`` there."""

Shape = tuple[int, ...]

CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1}
PRODUCTS = {"MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "Gemm": 1, "FusedMatMul": 1}
"""Operator -> the position of what it multiplies its first input with."""
POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean")
UNCOUNTED = ("ConvTranspose", "DeformConv", "Einsum", "Attention", "MultiHeadAttention",
             "QLinearGemm", "RNN", "LSTM", "GRU", "If", "Loop", "Scan")  # fmt: skip
"""Operators with products in them, or in graphs of their own."""
_PASSING = ("DequantizeLinear", "QuantizeLinear", "Identity", "Cast", "Transpose", "Reshape",
            "Squeeze", "Unsqueeze")  # fmt: skip
"""What these make of a constant counts as that constant."""
_OF_SHAPES = ("Add", "Cast", "Concat", "Div", "Gather", "Mul", "Range", "Reshape", "Slice",
              "Squeeze", "Sub", "Unsqueeze")  # fmt: skip
_INTEGERS = (6, 7)
"""onnx.TensorProto.INT32 and INT64."""
_ROUNDS = 16
"""Shapes that follow from what was computed of shapes that followed ... at most."""
_MOST_VALUES = 4096
"""Larger tensors hold weights, never a shape."""


class Tally(Struct):
    """What the layers of a network add up to, for one image."""

    flops: int = 0
    weights: int = 0
    activations: int = 0


def of(model: Model, cache: Cache) -> Work:
    """The work in one image of ``model``; counted once.

    Raises InputError where an ONNX file's shapes do not follow from it, or for a product in it that
    is not counted here; and for a module that needs numbers, or is compiled.
    """
    counts = "onnx" if model.is_onnx else "torch"
    versions = {counts: version(counts)}
    recipe = {"format": FORMAT, "network": model.identity, "versions": versions}

    def make(at: Path) -> None:
        ends = math.prod(model.input_shape) + model.num_classes
        if model.is_onnx:
            tally = count_graph(model.onnx(model.precision, model.fixed_batch))
        else:
            shape = (model.fixed_batch or 1, *model.input_shape)
            tally = count_module(model.module(), shape, model.spec.dtype)
        found = Work(ends=ends, **msgspec.structs.asdict(tally))
        (at / _FILE).write_bytes(msgspec.json.encode(found))

    entry = cache.get_or_make("work", recipe, make)
    return msgspec.json.decode((entry / _FILE).read_bytes(), type=Work)


def count_module(module: torch.nn.Module, shape: Shape, dtype: str = "float32") -> Tally:
    """Of a network in eval mode, which is on the meta device afterwards; ``shape``: of a batch.

    Raises InputError where it needs numbers, or is compiled.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    module = module.to("meta")
    constants = {p.untyped_storage()._cdata for p in module.parameters()}
    tally = Tally()

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            operator = func.overloadpacket
            if operator in flop_registry or operator.__name__ in _POOLS:
                tensors = [each for each in args if isinstance(each, torch.Tensor)]
                own = [t for t in tensors if t.untyped_storage()._cdata in constants]
                tally.weights += sum(t.numel() for t in own if t.dim() > 1)
                moved = [t for t in tensors if not any(t is each for each in own)]
                results = out if isinstance(out, tuple) else (out,)
                tally.activations += sum(t.numel() for t in (*moved, results[0]))
            return out

    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for all of it, counted by nobody
    try:
        # The last one entered sees an operator first; it takes apart what it cannot count.
        with Watch(), counter:
            _idle(module, shape, dtype)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    batch = shape[0]
    flops, activations = counter.get_total_flops() // batch, tally.activations // batch
    return Tally(flops, tally.weights, activations)


def _idle(module: torch.nn.Module, shape: Shape, dtype: str) -> None:
    """Call it with shapes alone. Raises InputError."""
    import torch

    try:
        with torch.inference_mode():
            module(torch.empty(shape, dtype=getattr(torch, dtype), device="meta"))
    except InputError:
        raise
    except Exception as error:  # whatever a network does with numbers that it does not have
        raise InputError(f"it cannot be run on shapes alone ({worded(error)})") from error


def by_module(module: torch.nn.Module, shape: Shape, dtype: str, depth: int) -> dict[str, int]:
    """FLOPs of one image by the name of the module, ``depth`` deep; otherwise as `count_module`."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, depth=None)
    with counter:
        _idle(module.to("meta"), shape, dtype)
    found = {
        name.partition(".")[2]: sum(counts.values()) // shape[0]
        for name, counts in counter.get_flop_counts().items()
    }
    deep = {name: flops for name, flops in found.items() if name and name.count(".") < depth}
    return {n: f for n, f in deep.items() if f and not any(o.startswith(f"{n}.") for o in deep)}


def count_graph(file: Path) -> Tally:
    """Of an ONNX file that is made for any batch size, or for one.

    Raises InputError for a shape that does not follow from that of its input, and for operators
    with products that are not counted.
    """
    model, batch = _for_one_image(file)
    graph = model.graph
    shapes, constants = _shapes(graph), _constants(graph)
    tally = Tally()

    def of(name: str) -> Shape:
        if name not in shapes:
            raise InputError(f"the shape of {name!r} in its graph cannot be inferred")
        return shapes[name]

    for node in graph.node:
        operands = _operands(node)
        if not operands:
            continue
        results = of(node.output[0])
        for name in operands:
            if name in constants:
                tally.weights += math.prod(of(name))
            else:
                tally.activations += math.prod(of(name))
        tally.activations += math.prod(results)
        tally.flops += _flops(node, [of(name) for name in operands], results)
    return Tally(tally.flops // batch, tally.weights, tally.activations // batch)


def _flops(node: NodeProto, operands: list[Shape], results: Shape) -> int:
    if node.op_type in CONVOLUTIONS:  # (out, in / groups, *kernel)
        return 2 * math.prod(results) * math.prod(operands[1][1:])
    if node.op_type in PRODUCTS:
        first = operands[0]
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * math.prod(results) * (first[-2] if turned else first[-1])
    return 0


def _operands(node: NodeProto) -> list[str]:
    """Inputs that count, the constant last; none of an operator that does not."""
    if node.op_type in UNCOUNTED:
        raise InputError(f"products in {node.op_type} are not counted")
    second = CONVOLUTIONS.get(node.op_type) or PRODUCTS.get(node.op_type)
    if second:
        return [node.input[0], node.input[second]]
    return [node.input[0]] if node.op_type in POOLS else []


def _for_one_image(file: Path) -> tuple[ModelProto, int]:
    """The file with every shape inferred, for one image or its fixed batch size; that number."""
    import onnx
    from onnx import inliner, shape_inference

    model = onnx.load(file, load_external_data=False)
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = model.graph
    for tensor in graph.initializer:  # only shapes are needed, and values that tell of shapes
        if math.prod(tensor.dims) > _MOST_VALUES:
            tensor.ClearField("raw_data")
    first = inputs(graph)[0].type.tensor_type.shape.dim[0]
    batch = first.dim_value or 1
    first.dim_value = batch
    del graph.value_info[:]  # they speak of any batch size
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        model = shape_inference.infer_shapes(model, data_prop=True)
        for _ in range(_ROUNDS):
            if not _fold(model.graph):
                break
            model = shape_inference.infer_shapes(model, data_prop=True)
    except shape_inference.InferenceError as error:
        words = f"the shapes in its graph cannot be inferred: {error}"
        raise InputError(words) from error
    return model, batch


def _fold(graph: GraphProto) -> bool:
    """Compute what the graph computes of shapes, which inference does in part only; if anything.

    An exporter writes a strided view, for one, as arithmetic on the batch size.
    """
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    shapes = _shapes(graph)
    tensors = [(t.name, t) for t in graph.initializer]
    constants = [node for node in graph.node if node.op_type == "Constant"]
    tensors += [(n.output[0], a.t) for n in constants for a in n.attribute if a.name == "value"]
    values = {
        name: numpy_helper.to_array(tensor)
        for name, tensor in tensors
        if tensor.data_type in _INTEGERS and math.prod(tensor.dims) <= _MOST_VALUES
    }
    known, left = set(values), []
    for node in graph.node:
        out = node.output[0]
        if node.op_type == "Shape" and node.input[0] in shapes:
            ends = {a.name: a.i for a in node.attribute}
            part = shapes[node.input[0]][ends.get("start", 0) : ends.get("end")]
            values[out] = np.array(part, np.int64)
        elif node.op_type in _OF_SHAPES and all(name in values for name in node.input if name):
            inputs = {name: values[name] for name in node.input if name}
            if node.op_type == "Range" and _length(list(inputs.values())) > _MOST_VALUES:
                left.append(node)
                continue
            values[out] = np.asarray(ReferenceEvaluator(node).run(None, inputs)[0])
        else:
            left.append(node)
    made = [numpy_helper.from_array(values[name], name) for name in values if name not in known]
    if made:
        del graph.node[:], graph.value_info[:]  # what is known of shapes is known in part
        graph.node.extend(left)
        graph.initializer.extend(made)
    return bool(made)


def _length(of_range: list[NDArray[np.int64]]) -> float:
    start, limit, delta = (int(value) for value in of_range)
    return (limit - start) / delta if delta else math.inf


def _shapes(graph: GraphProto) -> dict[str, Shape]:
    """By name, of whatever has one without unknown sizes."""
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            found[value.name] = tuple(d.dim_value for d in kind.shape.dim)
    return found


def _constants(graph: GraphProto) -> set[str]:
    found = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        passes = node.op_type in _PASSING and node.input[0] in found
        if node.op_type == "Constant" or passes:
            found.update(node.output)
    return found

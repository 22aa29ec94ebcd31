"""What an ONNX graph says of itself, and how it is cut to one input and one output.

Nothing here runs a network. Functions raise ValueError with the end of a sentence that begins as
"model 'x.onnx' ...".
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from gpubench import files
from gpubench.suite.schema import MOST_SIDE
from gpubench.suite.types import Layout
from gpubench.workload.models.onnx_external_data import messages, tensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

    from gpubench.workload.models.outputs import Kind

MOST_BYTES = 2**31
"""Protobuf's limit."""
MOST_LITERAL = 256
"""Of batch sizes hidden in a reshape, of which some images are tried."""
MOST_BATCH = 65_536
"""Of the input: 64 images must fit into memory before anything says whether it is real."""
BATCH = "batch"
"""What the copy calls a batch size that is open."""
_OTHERS = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it: export it with torch.onnx.export"),
    (b"\x80", "a pickle, not an ONNX file: export the network with torch.onnx.export"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it: convert it with tf2onnx"),
)
"""How files of other kinds begin, and what to do."""
_TYPES = {1: "float32", 2: "uint8", 6: "uint8", 7: "uint8", 10: "float16", 11: "float32",
          16: "bfloat16"}  # fmt: skip
"""Type of the input -> NumPy's name of what its copy takes (of a double, see `single`; of whole
numbers, see `give`)."""
WHOLE = (6, 7)
"""int32, int64: pixels, of which every backend is given a quarter or an eighth of the bytes."""
_PRECISIONS = {1: "fp32", 10: "fp16", 11: "fp32", 16: "bf16"}
FLOATING = tuple(_PRECISIONS)
_FLOAT, _INT64, _DOUBLE = 1, 7, 11
_ONNX = ("", "ai.onnx")
_BROADCASTS = 7
"""Opset from which on a product with one number for each channel is as NumPy's."""
_ENDS: dict[str, Kind] = {
    "Softmax": "probabilities",
    "Sigmoid": "probabilities",
    "HardSigmoid": "probabilities",
    "LogSoftmax": "log-probabilities",
}
_PASSING = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose",
            "Dropout", "QuantizeLinear", "DequantizeLinear")  # fmt: skip
"""What comes behind the layer that says what an output is."""
_AHEAD = ("Cast", "Identity", "Add", "Sub", "Mul", "Div", "QuantizeLinear", "DequantizeLinear")
"""What may come between the input and a transpose to channels first."""


class Input(Struct, frozen=True):
    """The one input of a classifier."""

    name: str
    dtype: str
    """NumPy's name of its type."""
    batch: int
    """0: any, as far as the graph says."""
    layout: Layout
    channels: int
    """1 or 3."""
    size: tuple[int, int]
    """Height and width; 0: not said."""


def read(file: Path) -> tuple[ModelProto, str]:
    """The file, parsed, and its SHA-256."""
    import onnx

    size = file.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"has {size:,} bytes; no ONNX file is larger than {MOST_BYTES:,}")
    body = file.read_bytes()
    if other := files.strange(body[:200], *_OTHERS):
        raise ValueError(f"is {other}")
    try:
        model = onnx.load_model_from_string(body)
    except Exception as error:  # protobuf's, which is no dependency here
        raise ValueError(f"is not an ONNX file, or is cut off ({error})") from error
    if not model.graph.node:
        raise ValueError("is not an ONNX file, or one without a graph")
    return model, hashlib.sha256(body).hexdigest()


def inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """What a graph is fed with; old files list their constants among the inputs."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def precision(graph: GraphProto) -> str:
    """That of most of its weights; of doubles fp32 (see `single`), int8 with Q/DQ nodes."""
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return "int8"
    return floating(graph)


def floating(graph: GraphProto) -> str:
    """The precision of most of its weights in floating point; without any, that of its input."""
    found: Counter[str] = Counter()
    for tensor in tensors(graph):
        if tensor.data_type in _PRECISIONS:
            found[_PRECISIONS[tensor.data_type]] += math.prod(tensor.dims)
    own = inputs(graph)[0].type.tensor_type.elem_type
    return found.most_common(1)[0][0] if found else _PRECISIONS.get(own, "fp32")


def image_input(graph: GraphProto, layout: Layout | None = None) -> Input:
    """The input, if it is a batch of pictures. ``layout``: where the shape leaves it open."""
    import onnx

    fed = inputs(graph)
    if len(fed) != 1:
        names = ", ".join(repr(value.name) for value in fed)
        raise ValueError(f"has {len(fed)} inputs ({names}), and a classifier of images has one")
    value = fed[0]
    kind, name = value.type.tensor_type.elem_type, value.name
    dims = value.type.tensor_type.shape.dim
    shape = [max(d.dim_value, 0) if d.dim_value >= -1 else d.dim_value for d in dims]
    known = {number: word.lower() for word, number in onnx.TensorProto.DataType.items()}
    told = f"{known.get(kind, f'of type {kind}')} ({', '.join(map(_told, dims))})"
    wanted = (
        "not pictures: (batch, channels, height, width) or (batch, height, width, channels), of "
        f"1 or 3 channels and at most {MOST_SIDE} pixels a side, in floating point, uint8, int32 "
        "or int64"
    )
    wrong = ValueError(f"input {name!r} is {told}, {wanted}")
    if kind not in _TYPES or len(shape) != 4 or not 0 <= shape[0] <= MOST_BATCH:
        raise wrong
    first, last = (shape[at] in (1, 3) for at in (1, 3))
    if first == last:  # neither is a number of channels, or both may be: of names, one may be
        first, last = (shape[at] == 0 for at in (1, 3))
    if first == last:
        layout = layout or ("NHWC" if _turned(graph, name) else "NCHW")
    else:
        layout = "NHWC" if last else "NCHW"
    channels, size = shape[1], (shape[2], shape[3])
    if layout == "NHWC":
        channels, size = shape[3], (shape[1], shape[2])
    channels = channels or _channels(graph)
    if channels not in (1, 3) or not all(0 <= side <= MOST_SIDE for side in size):
        raise wrong
    return Input(name, _TYPES[kind], shape[0], layout, channels, size)


def _told(dim: Any) -> str:
    return str(dim.dim_value or dim.dim_param or "?")


def _turned(graph: GraphProto, name: str) -> bool:
    """Whether the input is transposed from channels last to channels first."""
    for node in graph.node:  # in the order in which they are computed
        if node.input and node.input[0] == name:
            if node.op_type == "Transpose":
                return any(list(a.ints) == [0, 3, 1, 2] for a in node.attribute)
            if node.op_type not in _AHEAD:
                return False
            name = node.output[0]
    return False


def _channels(graph: GraphProto) -> int:
    """What the first convolution takes; 3 where that is not known."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    first = next((node for node in graph.node if node.op_type == "Conv"), None)
    shape = shapes.get(first.input[1], []) if first else []
    return shape[1] if len(shape) == 4 else 3


def _last(graph: GraphProto, name: str) -> NodeProto | None:
    """What the tensor ``name`` is made by, but for what only passes it on."""
    made = {output: node for node in graph.node for output in node.output}
    while name in made and made[name].op_type in _PASSING:
        name = made[name].input[0]
    return made.get(name)


def kind_of(graph: GraphProto, name: str) -> Kind:
    """What the graph makes of the tensor ``name`` at last."""
    node = _last(graph, name)
    return _ENDS.get(node.op_type, "logits") if node else "logits"


def before_argmax(graph: GraphProto, name: str) -> str | None:
    """Of an output that holds only the numbers of the best classes: what they were taken from."""
    node = _last(graph, name)
    return node.input[0] if node and node.op_type in ("ArgMax", "TopK") else None


def literal_batches(graph: GraphProto) -> list[int]:
    """First sizes that are numbers in what tensors are reshaped to, sorted."""
    from onnx import numpy_helper

    shapes = {n.input[1] for n in graph.node if n.op_type == "Reshape" and len(n.input) > 1}
    made = [(n.output[0], a) for n in graph.node if n.op_type == "Constant" for a in n.attribute]
    named = [(tensor.name, tensor) for tensor in graph.initializer]
    found = {a.ints[0] for name, a in made if name in shapes and a.ints}
    for name, tensor in (*named, *((name, a.t) for name, a in made)):
        inside = tensor.data_location != tensor.EXTERNAL and tensor.data_type == _INT64
        if name in shapes and inside and tensor.dims:
            found.update(numpy_helper.to_array(tensor).reshape(-1)[:1].tolist())
    return sorted(size for size in found if 1 <= size <= MOST_LITERAL)


def settle(graph: GraphProto, given: Input, size: tuple[int, int], batch: int) -> None:
    """Put sizes in the place of names; a ``batch`` of 0 stays open, under our own name."""
    shape = [given.channels, *size] if given.layout == "NCHW" else [*size, given.channels]
    del graph.value_info[:]  # they speak of the sizes that were open
    [value] = inputs(graph)
    for dim, wanted in zip(value.type.tensor_type.shape.dim, [batch, *shape], strict=True):
        if wanted:
            dim.dim_value = wanted
        else:
            dim.dim_param = BATCH


def give(
    model: ModelProto,
    dtype: str,
    factor: NDArray[np.float32] | None = None,
    offset: NDArray[np.float32] | None = None,
) -> None:
    """Let the input be ``dtype``, as the host gives it, and make what it was of that in the graph.

    uint8: pixels, times ``factor``, plus ``offset``, in float32; without these only cast. Raises
    ValueError.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    graph, opset = model.graph, max(o.version for o in model.opset_import if o.domain in _ONNX)
    normalised = dtype == "uint8" and factor is not None
    if normalised and opset < _BROADCASTS:
        raise ValueError(f"has opset {opset}, in which its input cannot be cast and normalised: "
                         f"export it in {_BROADCASTS} or later")  # fmt: skip
    [value] = inputs(graph)
    own, name = value.type.tensor_type.elem_type, value.name
    nodes = [part for part in messages(graph) if part.DESCRIPTOR.name == "NodeProto"]
    taken = {each.name for each in (*graph.initializer, *graph.input)}
    taken.update(out for node in nodes for out in node.output)
    made, at, free = [], name, f"{name}_given"
    while any(each.startswith(free) for each in taken):
        free += "_"
    wanted = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    steps: list[tuple[str, Any]] = [("Cast", own)] if wanted != own else []
    if normalised:
        steps = [("Cast", _FLOAT), ("Mul", factor), ("Add", offset)]
        steps += [("Cast", own)] if own != _FLOAT else []
    for number, (kind, by) in enumerate(steps):
        out, more = f"{free}{number}", []
        if kind != "Cast":
            more = [f"{free}{kind}"]
            graph.initializer.append(numpy_helper.from_array(by, *more))
        made.append(helper.make_node(kind, [at, *more], [out], **({} if more else {"to": by})))
        at = out
    for node in nodes:  # also those of graphs inside nodes, which use names from outside
        for place, taken_in in enumerate(node.input):
            node.input[place] = at if taken_in == name else taken_in
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made, *rest])
    value.type.tensor_type.elem_type = wanted


def doubles(model: ModelProto) -> bool:
    """Whether there is anything in double precision."""
    return any(_of_type(message, _DOUBLE) for message in messages(model))


def _of_type(message: Any, number: int) -> bool:
    kind = message.DESCRIPTOR.name
    if kind == "AttributeProto":
        return message.name in ("to", "dtype") and message.i == number
    if kind == "TensorProto":
        return bool(message.data_type == number)
    return bool(kind == "Tensor" and message.elem_type == number)  # of a TypeProto


def single(model: ModelProto) -> None:
    """Make floats of doubles, which no runtime here has convolutions for."""
    cast(model, _DOUBLE, _FLOAT, lambda _, numbers: numbers.astype("float32"))


def cast(model: ModelProto, was: int, wanted: int, numbers: Callable[[str, Any], Any]) -> None:
    """Let all that is of type ``was`` be ``wanted``, weights by ``numbers``(name, array): an array
    of as many bytes. Weights in other files must have been loaded. Scales of a Resize stay: they
    are float32, whatever it resizes."""
    import numpy as np
    from onnx import numpy_helper

    nodes = model.graph.node
    scales = {
        n.input[2] for n in nodes if n.op_type == "Resize" and len(n.input) > 2 and n.input[2]
    }
    kept = [t for t in model.graph.initializer if t.name in scales]
    kept += [a.t for n in nodes if n.op_type == "Constant" and n.output[0] in scales
             for a in n.attribute]  # fmt: skip
    as_they_were = [copy.deepcopy(t) for t in kept]
    for message in [m for m in messages(model) if _of_type(m, was)]:
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto":
            name, dims = message.name, list(message.dims)
            with np.errstate(over="ignore"):
                made = numbers(name, numpy_helper.to_array(message))
            message.Clear()
            message.name, message.data_type, message.raw_data = name, wanted, made.tobytes()
            message.dims.extend(dims)
        elif kind == "Tensor":
            message.elem_type = wanted
        else:
            message.i = wanted
    for message, own in zip(kept, as_they_were, strict=True):
        if was == _FLOAT:
            message.CopyFrom(own)


def end_at(graph: GraphProto, name: str, dtype: Any, batch: int, shape: tuple[int, ...]) -> None:
    """Leave the tensor ``name`` as the only output, and only what it is computed from.

    ``dtype``: NumPy's. ``batch`` 0: any. ``shape``: of one image's answer; flattened, if need be.
    Of a single number, two are made: those of both classes.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(dtype)
    if len(shape) != 1:
        flat = f"{name}_flat"
        graph.node.append(helper.make_node("Flatten", [name], [flat], axis=1))
        name = flat
    if math.prod(shape) == 1:  # yes or no: the other class beside it
        one = numpy_helper.from_array(np.ones(1, dtype), f"{name}_one")
        minuend = one.name if kind_of(graph, name) == "probabilities" else name
        other, both = f"{name}_other", f"{name}_both"
        graph.initializer.append(one)
        graph.node.append(helper.make_node("Sub", [minuend, name], [other]))
        graph.node.append(helper.make_node("Concat", [other, name], [both], axis=1))
        name = both
    del graph.output[:]
    dims = [batch or BATCH, max(2, math.prod(shape))]
    graph.output.append(helper.make_tensor_value_info(name, kind, dims))
    _prune(graph, {name})


def _prune(graph: GraphProto, wanted: set[str]) -> None:
    """Drop nodes and weights that ``wanted`` does not need; inputs stay."""
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            for part in messages(node):  # graphs inside it use names from outside
                if part.DESCRIPTOR.name == "NodeProto":
                    wanted.update(part.input)
                elif part.DESCRIPTOR.name == "GraphProto":
                    wanted.update(value.name for value in part.output)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    wanted.update(value.name for value in inputs(graph))
    for part in (graph.initializer, graph.input):
        needed = [one for one in part if one.name in wanted]
        del part[:]
        part.extend(needed)

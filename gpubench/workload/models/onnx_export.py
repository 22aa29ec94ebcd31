"""From a network in the cache to an ONNX file in the cache."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench import plugins
from gpubench.cache import Cache, content
from gpubench.errors import CellFailed, InputError
from gpubench.workload.models import builder

if TYPE_CHECKING:
    from torch import Tensor
    from torch.onnx import ONNXProgram

TYPES = {"fp32": "float32", "tf32": "float32", "amp": "float32", "fp16": "float16"} | {
    "bf16": "bfloat16"
}
"""Precision -> type of the file's weights, input and output."""
INPUT, OUTPUT, FILE = "images", "logits", "model.onnx"
MADE_WITH = ("torch", "onnx", "onnxscript")
_OPSET = {"float32": 20, "float16": 20, "bfloat16": 22}
"""The oldest that serves, for old runtimes: bf16 convolutions exist from 22 on."""
_FOLDED = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm")
"""The exporter folds the first into the others."""
_ONE_FILE = 1.9e9
"""Bytes of weights below which they fit into the .onnx file itself (protobuf's limit is 2 GiB)."""


def onnx(cache: Cache, state: Path, precision: str, batch: int | None) -> Path:
    """The ONNX file of the network in cache entry ``state``; ``batch`` None: any batch size.

    Its input is "images" (batch, 3, H, W), its output "logits" (batch, classes), both of the
    type of TYPES. fp16 and bf16 are cast after batch-norms are folded into convolutions, in fp32.
    Raises InputError for another precision, Unavailable without what it is made with, CellFailed
    when the exporter fails or writes another opset or type than it was asked for (it only warns
    when its converter gives up).
    """
    if precision not in TYPES:
        raise InputError(f"precision {precision!r}: ONNX export knows {', '.join(TYPES)}")
    dtype = TYPES[precision]
    recipe = {
        "format": 1 if dtype == "float32" else 2,
        "network": content(state),
        "dtype": dtype,
        "batch": batch,
        "opset": _OPSET[dtype],
        "versions": plugins.installed(*MADE_WITH),
    }
    entry = cache.get_or_make("onnx", recipe, lambda at: _export(state, dtype, batch, at / FILE))
    return entry / FILE


def _export(state: Path, dtype: str, batch: int | None, file: Path) -> None:
    import torch

    module = builder.load_module(state)
    name, spec = builder.card(state).name, builder.card(state).spec
    # An example of 1 would be taken for a constant.
    example = torch.zeros(batch or 2, *spec.shape, dtype=getattr(torch, dtype))
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    try:
        own = module.state_dict()  # as it is now
        module = module.to(getattr(torch, dtype))
        size = sum(p.numel() * p.element_size() for p in module.parameters())
        with quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=_OPSET[dtype],
                dynamic_shapes=shapes,
                optimize=dtype == "float32",
                verbose=False,
            )
            if dtype != "float32":
                _optimise(program, own, dtype)
            program.save(file, external_data=size > _ONE_FILE)
    except Exception as error:  # whatever the exporter raises, the cell cannot go on
        step = type(error).__module__.startswith("torch.onnx")  # it says in which it was
        why = (step and error.__cause__) or error
        reason = str(why).strip().splitlines()[0] if str(why).strip() else repr(why)
        raise CellFailed("error", f"ONNX export of {name} in {dtype} failed: {reason}") from error
    if (written := _written(file)) != (_OPSET[dtype], dtype):
        raise CellFailed(
            "error",
            f"ONNX export of {name} wrote opset {written[0]} with {written[1]} input, not opset "
            f"{_OPSET[dtype]} with {dtype}: use another version of torch or onnxscript",
        )


def _written(file: Path) -> tuple[int, str]:
    """Opset and input type that a file really has."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    kind = model.graph.input[0].type.tensor_type.elem_type
    return opset, str(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _optimise(program: ONNXProgram, own: Mapping[str, Tensor], dtype: str) -> None:
    """Of a network whose weights have been cast from its ``own``, fp32.

    Batch-norms are folded into convolutions in fp32 and cast then: of weights in ``dtype`` the
    exporter makes less exact ones, and for bf16 some of float32, with which no file is valid. A
    HardSwish in bf16, which TensorRT refuses, becomes what ONNX defines it as.
    """
    from onnxscript import ir

    graph, kind = program.model.graph, ir.DataType[dtype.upper()]

    def weights() -> Iterator[ir.Value]:
        for node in graph:
            if node.op_type in _FOLDED and node.inputs[0].dtype != ir.DataType.FLOAT:
                yield from (v for v in node.inputs[1:] if v is not None and v.const_value)

    for value in weights():
        if value.name in own and all(user.op_type in _FOLDED for user, _ in value.uses()):
            value.const_value = ir.tensor(own[value.name].numpy(), name=value.name)
            value.dtype = ir.DataType.FLOAT
    program.optimize()
    for value in weights():
        if value.dtype == ir.DataType.FLOAT:
            made = value.const_value.numpy().astype(kind.numpy())
            value.const_value, value.dtype = ir.tensor(made, name=value.name), kind
    for node in graph:
        if (node.op_type, dtype) == ("HardSwish", "bfloat16"):
            part = ir.node("HardSigmoid", node.inputs, {"alpha": 1 / 6, "beta": 0.5})
            whole = ir.node("Mul", [node.inputs[0], part.outputs[0]])
            ir.convenience.replace_nodes_and_values(
                graph, node, [node], [part, whole], node.outputs, whole.outputs
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without an exporter's, or quantiser's, warnings, log lines and progress marks."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)

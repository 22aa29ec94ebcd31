"""int8 in ONNX Runtime: proof that it computes in integers, from the graph that it runs.

A Q/DQ network is one in floating point until ONNX Runtime fuses its nodes into integer operators;
where it does not, it computes in fp32, more slowly than the network that was quantised.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.errors import CellFailed
from gpubench.suite.types import Cell
from gpubench.workload.models import quantization

if TYPE_CHECKING:
    from gpubench.backends.base import Facts

_INTEGER = (
    *("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm"),
    *("MatMulIntegerToFloat", "QAttention"),
)
"""Operators that multiply integers."""
_FLOATING = ("Conv", "FusedConv", "Gemm", "MatMul", "FusedGemm", "FusedMatMul")


def unsupported(cell: Cell, provider: str) -> str | None:
    """Why an int8 cell would not compute in integers."""
    if cell.precision != "int8":
        return None
    if provider == "CUDAExecutionProvider":
        return (
            "int8: ONNX Runtime's CUDA provider has no integer convolution and would compute in "
            "fp32; use provider = 'tensorrt', or the backend tensorrt"
        )
    if provider == "OpenVINOExecutionProvider":
        return "int8: nothing tells whether this provider computes in it; use the backend openvino"
    level = cell.options.get("graph_optimization", "all")
    if provider == "CPUExecutionProvider" and level in ("basic", "disable"):
        return (
            f"int8: with graph_optimization = {level!r} ONNX Runtime fuses no integer operators "
            "and would compute in fp32; say 'all' or 'extended'"
        )
    return None


@contextmanager
def dumped(cell: Cell) -> Iterator[Path | None]:
    """A file for the graph that an int8 session runs, until the end of the block."""
    if cell.precision != "int8":
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="gpubench-") as folder:
        yield Path(folder, "run.onnx")


def facts(file: Path, dump: Path | None) -> Facts:
    """How ``file`` was quantised, and which products the graph in ``dump`` computes in integers.

    Raises CellFailed("fallback") when there are none.
    """
    if dump is None:
        return {}
    import onnx

    graph = onnx.load(dump, load_external_data=False).graph
    types = Counter(node.op_type for node in graph.node)
    integer = {name: types[name] for name in _INTEGER if types[name]}
    floating = {name: types[name] for name in _FLOATING if types[name]}
    if not integer:
        raise CellFailed(
            "fallback",
            f"none of the network's products is computed in integers; ONNX Runtime runs {floating}",
        )
    return quantization.facts(file) | {
        "integer_operators": integer,
        "floating_operators": floating,
        "int8_instructions": quantization.instructions(),
    }

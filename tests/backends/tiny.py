"""A convolutional network small enough to open in milliseconds, as torch module and as ONNX."""

from __future__ import annotations

import ctypes
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from gpubench.suite.types import Cell
from gpubench.workload.data.preprocess import Spec

CROP, CLASSES = 32, 10
SPEC = Spec(size=(CROP, CROP), resize=CROP)
CHANNELS = 64
"""Enough for a GPU's tensor cores, so that TF32 shows where it is on."""


def cell(backend: str, **changes: Any) -> Cell:
    """A cell of the tiny network: fp32 on one CPU core, batch 4."""
    base = Cell(
        backend=backend,
        device="cpu",
        model="resnet18",
        weights="random",
        images="synthetic",
        precision="fp32",
        batch_size=4,
        replicas=1,
        cores=1,
        scenario="latency",
        boundary="compute",
    )
    return msgspec.structs.replace(base, **changes)


def images(batch: int, seed: int = 0) -> Any:
    """(batch, 3, 32, 32) float32."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, 3, CROP, CROP)).astype(np.float32)


@cache
def weights() -> dict[str, Any]:
    """Of two convolutions and a linear layer."""
    import numpy as np

    rng = np.random.default_rng(1)
    c = CHANNELS
    shapes = {"c1": (c, 3, 3, 3), "c2": (c, c, 3, 3), "w": (CLASSES, c), "b": (CLASSES,)}
    return {
        name: (rng.standard_normal(shape) * prod(shape[1:]) ** -0.5).astype(np.float32)
        for name, shape in shapes.items()
    }


def module() -> Any:
    """The network in torch: fp32, eval, on the CPU."""
    import torch
    from torch import nn

    network = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, stride=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(CHANNELS, CLASSES),
    )
    values = zip(network.state_dict(), weights().values(), strict=True)
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in values})
    return network.eval().requires_grad_(False)


def reference(batch: Any) -> Any:
    """fp32 logits of a batch of images, by torch."""
    import torch

    with torch.inference_mode():
        return module()(torch.from_numpy(batch)).numpy()


def write_onnx(file: Path, precision: str = "fp32", batch: int | None = None) -> Path:
    """The network as ONNX, in the precision's type; ``batch`` None: any."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}.get(
        precision, TensorProto.FLOAT
    )
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Conv", ["images", "c1"], ["x1"], strides=[2, 2]),
            node("Relu", ["x1"], ["x2"]),
            node("Conv", ["x2", "c2"], ["x3"], strides=[2, 2]),
            node("Relu", ["x3"], ["x4"]),
            node("GlobalAveragePool", ["x4"], ["x5"]),
            node("Flatten", ["x5"], ["x6"]),
            node("Gemm", ["x6", "w", "b"], ["logits"], transB=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", kind, [batch or "batch", 3, CROP, CROP])],
        [helper.make_tensor_value_info("logits", kind, [batch or "batch", CLASSES])],
        [numpy_helper.from_array(v.astype(dtype), name) for name, v in weights().items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), file
    )
    return file


class Model:
    """Stands in for `gpubench.workload.models.base.Model`."""

    name, weights, is_onnx = "tiny", "random", False
    num_classes, spec = CLASSES, SPEC
    input_shape = (3, CROP, CROP)
    identity, precision = "tiny", "fp32"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def state(self) -> Path:
        """An entry with the card that `gpubench.workload.models.builder.card` reads."""
        from gpubench.workload.models.builder import Card

        card = Card(name="tiny", num_classes=CLASSES, arguments={}, spec=SPEC)
        (self._directory / "model.json").write_bytes(msgspec.json.encode(card))
        return self._directory

    def onnx(self, precision: str, batch: int | None = None) -> Path:
        """Written on demand."""
        return write_onnx(self._directory / f"{precision}-{batch}.onnx", precision, batch)


def no_cuda() -> str:
    """Why CUDA tests cannot run here, '' when they can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver (libcuda.so.1) on this machine"
    return "" if driver.cuInit(0) == 0 else "the CUDA driver finds no usable GPU"

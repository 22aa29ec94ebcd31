"""Files of other forms than our own exports, in the backends that take ONNX files on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubench.backends.base import Backend, Device
from gpubench.backends.onnxruntime import OnnxRuntime
from gpubench.backends.openvino import OpenVINO
from gpubench.cache import Cache
from gpubench.workload.models import registry
from tests.backends import contract, tiny
from tests.backends.onnx_files import BYTES, FLOAT, HALF, colour_net


@pytest.mark.parametrize("backend", [OnnxRuntime(), OpenVINO()], ids=lambda b: b.name)
@pytest.mark.parametrize(
    ("how", "precision"),
    [
        ({"kind": HALF}, "fp16"),
        ({"kind": HALF, "fed": FLOAT}, "fp16"),
        ({"fed": BYTES}, "fp32"),
        ({"shape": ("n", 8, 8, 3), "last": True}, "fp32"),
        ({"shape": (2, 3, 8, 8), "ends": (("Softmax", {}),), "outputs": {"Softmax": None}}, "fp32"),
        ({"shape": ("b", "c", "h", "w"), "outputs": {"z": None, "p": None}}, "fp32"),
        ({"reshape": (2, 3)}, "fp32"),
    ],
    ids=["half", "half with float input", "bytes", "channels last", "fixed", "open", "hidden"],
)
def test_answers_are_the_files_own(
    backend: Backend, how: dict[str, Any], precision: str, tmp_path: Path, cache: Cache
) -> None:
    """In the input's own layout and type, with and without a copy of it."""
    file = colour_net(tmp_path / "net.onnx", **how)
    cell = tiny.cell(backend.name, model=str(file), weights="file", images="photos",
                     precision=precision, batch_size=2)  # fmt: skip
    assert backend.unsupported(cell) is None
    model = registry.resolve(cell.workload, cache)
    random = np.random.default_rng(0)
    images = random.normal(size=(2, *model.input_shape)).astype(np.float32)
    if model.spec.dtype == "uint8":
        images = random.integers(0, 255, images.shape).astype(np.uint8)
    right = model.answers(images)
    artefact = backend.prepare(cell, model, cache)
    with backend.open(cell, artefact, Device("cpu", 0, (0,))) as session:
        found = contract.answer(session, images)
        assert found.dtype == np.float32
        assert contract.same(found, right, 0.02 if precision == "fp16" else 1e-4)
        assert contract.answer(session, images[::-1].copy())[1] == pytest.approx(found[0], rel=1e-3)
        taken = session.attach([images])
        assert taken == (how.get("kind") != HALF or how.get("fed") == FLOAT), "as it is, or not"
        assert contract.answer(session, images) == pytest.approx(found, rel=1e-3)
        if precision == "fp16":
            assert session.facts.get("fp16") or session.facts["precision"] in ("f16", "f32")

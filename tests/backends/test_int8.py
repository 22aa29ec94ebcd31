"""int8 through whole backends and the whole product, with gpubench's own small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpubench.backends import _trt_build, base, onnxruntime, openvino
from gpubench.backends._trt_build import BuildSettings
from gpubench.backends.base import Device
from gpubench.cache import Cache
from gpubench.errors import CellFailed, InputError, Unavailable
from gpubench.records.record import Record
from gpubench.run import driver, setup
from gpubench.run.watcher import Silent
from gpubench.suite.types import Cell
from gpubench.workload.models import quantization, registry
from tests.backends import tiny

CPU = Device("cpu", 0, (0,))
BACKENDS = ("onnxruntime", "openvino")


def _cell(backend: str, **changes: Any) -> Cell:
    base = {"model": "digits", "weights": "probe", "images": "digits", "precision": "int8"}
    return tiny.cell(backend, **(base | changes))


def _file(
    cell: Cell, cache: Cache, target: quantization.Target = "cpu", rest: str = "fp32"
) -> Path:
    return quantization.onnx(cell, registry.resolve(cell.workload, cache), cache, target, rest)


@pytest.mark.parametrize("name", BACKENDS)
def test_products_are_computed_in_integers(name: str, cache: Cache) -> None:
    cell, backend = _cell(name), base.get(name)
    assert backend.unsupported(cell) is None
    artefact = backend.prepare(cell, registry.resolve(cell.workload, cache), cache)
    with backend.open(cell, artefact, CPU) as session:
        facts = session.facts
    assert facts["quantised"]["recipe"] == "cpu"
    assert facts["quantised"]["nodes"]["Conv"] == 4
    assert facts["int8_instructions"] == quantization.instructions()
    if name == "onnxruntime":
        assert facts["integer_operators"] == {"QLinearConv": 4, "QGemm": 1}
        assert facts["floating_operators"] == {}
    else:
        assert sum(facts["products_by_type"].values()) == 5
        assert not [kind for kind in facts["products_by_type"] if "f32" in kind]
        assert facts["precision"] == "f32", "of what is not quantised"


def test_openvino_computes_the_rest_in_what_was_said(cache: Cache) -> None:
    cell, backend = _cell("openvino", options={"int8_rest": "bf16"}), base.get("openvino")
    assert backend.unsupported(cell) is None
    try:
        artefact = backend.prepare(cell, registry.resolve(cell.workload, cache), cache)
    except Unavailable as missing:
        assert "no bf16 units" in missing.reason  # noqa: PT017
        return
    with backend.open(cell, artefact, CPU) as session:
        assert session.facts["precision"] == "bf16"
        assert session.facts["quantised"]["rest"] == "bf16"
        assert sum(session.facts["products_by_type"].values()) == 5


@pytest.mark.parametrize("name", BACKENDS)
def test_a_file_that_is_not_quantised_is_a_fallback(name: str, onnx_file: Path) -> None:
    with pytest.raises(CellFailed, match="computed in integers") as caught:
        base.get(name).open(_cell(name), onnx_file, CPU)
    assert caught.value.kind == "fallback"


def test_without_fusing_onnx_runtime_computes_in_fp32(cache: Cache) -> None:
    """The reason that `unsupported` gives, seen in the graph that ONNX Runtime executes."""
    cell = _cell("onnxruntime", options={"graph_optimization": "basic"})
    assert "fuses no integer operators" in (base.get("onnxruntime").unsupported(cell) or "")
    with pytest.raises(CellFailed, match=r"'Conv': 4"):
        base.get("onnxruntime").open(cell, _file(cell, cache), CPU)


def test_an_own_file_runs_as_it_is(tmp_path: Path, cache: Cache) -> None:
    made = _file(_cell("onnxruntime"), cache)
    own = tmp_path / "own.onnx"
    own.write_bytes(made.read_bytes())
    for name in BACKENDS:
        cell, backend = _cell(name, model=str(own), weights="file"), base.get(name)
        assert backend.unsupported(cell) is None
        artefact = backend.prepare(cell, registry.resolve(cell.workload, cache), cache)
        with backend.open(cell, artefact, CPU) as session:
            assert session.facts["quantised"]["made_by"] == "the file"


@pytest.mark.parametrize(
    ("backend", "changes", "words"),
    [
        ("onnxruntime", {"device": "cuda"}, "CUDA provider has no integer convolution"),
        ("onnxruntime", {"options": {"provider": "openvino"}}, "use the backend openvino"),
        (
            "onnxruntime",
            {"precision": "fp32", "options": {"calibration": "entropy"}},
            "calibration is an option of int8",
        ),
        (
            "openvino",
            {"precision": "bf16", "options": {"calibration_images": 9}},
            "calibration_images is an option of int8",
        ),
        (
            "tensorrt",
            {"device": "cuda", "precision": "fp16", "options": {"calibration": "entropy"}},
            "calibration is an option of int8",
        ),
        ("openvino", {"options": {"device_name": "GPU"}}, "CPU device only"),
        ("tensorrt", {"device": "cuda"}, None),
        ("tensorrt", {"device": "cuda", "options": {"int8_rest": "bf16"}}, None),
        (
            "tensorrt",
            {"device": "cuda", "precision": "fp16", "options": {"int8_rest": "bf16"}},
            "int8_rest is an option of int8",
        ),
        ("onnxruntime", {"device": "cuda", "options": {"provider": "tensorrt"}}, "in tf32 or fp16"),
        (
            "onnxruntime",
            {"device": "cuda", "options": {"provider": "tensorrt", "int8_rest": "fp16"}},
            None,
        ),
        ("onnxruntime", {"options": {"int8_rest": "bf16"}}, "computed in fp32, not bf16"),
        ("openvino", {"options": {"int8_rest": "fp16"}}, "computed in fp32 or bf16, not fp16"),
    ],
)
def test_unsupported_says_why(backend: str, changes: dict[str, Any], words: str | None) -> None:
    said = base.get(backend).unsupported(_cell(backend, **changes))
    assert said is None if words is None else words in (said or "")


def test_a_dump_is_made_for_int8_only_and_leaves_nothing() -> None:
    with onnxruntime._dumped(_cell("onnxruntime", precision="fp32")) as place:
        assert place is None
    assert onnxruntime._int8_facts(Path("any.onnx"), None) == {}
    with onnxruntime._dumped(_cell("onnxruntime")) as place:
        assert place is not None
        place.touch()
    assert not place.parent.exists()


def test_openvino_counts_products_by_their_type() -> None:
    class Value:
        def __init__(self, value: str) -> None:
            self.value = value

    class Operation:
        def __init__(self, kind: str, precision: str) -> None:
            self._info = {"layerType": Value(kind), "runtimePrecision": Value(precision)}

        def get_rt_info(self) -> dict[str, Value]:
            return self._info

    class Compiled:
        def __init__(self, *operations: Operation) -> None:
            self._operations = operations

        def get_runtime_model(self) -> Any:
            return self

        def get_ops(self) -> tuple[Operation, ...]:
            return self._operations

    wide, other = Operation("Convolution", "f32"), Operation("Pooling", "u8")
    with pytest.raises(CellFailed, match=r"integers: \{'Convolution f32': 1\}"):
        openvino._integer(Compiled(wide, other))  # type: ignore[arg-type]
    found = openvino._integer(Compiled(wide, other, Operation("FullyConnected", "i8")))  # type: ignore[arg-type]
    assert found["products_by_type"] == {"Convolution f32": 1, "FullyConnected i8": 1}


# TensorRT's builder, for real


@pytest.mark.parametrize("model", ["digits", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_tensorrt_builds_what_is_quantised_for_it(model: str, cache: Cache) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="install gpubench[tensorrt-rtx]")
    weights = "probe" if model == "digits" else "random"
    options = {"calibration_images": 16}
    cell = _cell("tensorrt", device="cuda", model=model, weights=weights, options=options)
    settings = BuildSettings(batch_size=4, current_gpu=False)
    for rest in ("fp32", "fp16", "bf16"):
        file = _file(cell, cache, "tensorrt", rest)
        plan = _trt_build.build(rtx, "tensorrt_rtx", file, settings).plan
        if model == "resnet18":
            assert 11_689_512 < len(plan) < 1.3 * 11_689_512, "a byte a weight"
        assert quantization.facts(file)["quantised"]["rest"] == rest
    with pytest.raises(CellFailed, match="cannot"):
        _trt_build.build(rtx, "tensorrt_rtx", _file(cell, cache, "cpu"), settings)


# The whole product

SUITE = """
[workload]
model = "digits"
images = "digits"
calibration = "{folder}"

[axes]
backend = ["onnxruntime", "openvino"]
device = "cpu"
precision = "int8"
cores = 1
scenario = "latency"

[axes.options.onnxruntime]
calibration_images = 16

[axes.options.openvino]
calibration_images = 16

[policy]
repeats = 1
max_repeats = 1
warmup_s = 0.05
duration_s = 0.1
"""


def _run(at: Path, folder: Path, cache: Cache) -> list[Record]:
    at.mkdir()
    suite = at / "suite.toml"
    suite.write_text(SUITE.format(folder=folder))
    session = setup.session(str(suite), {}, cache.root, at / "run", False, ())
    return driver.run(session, Silent()).records


def _folder(at: Path, low: int, high: int, count: int = 16) -> Path:
    at.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(low, high, (32, 32, 3), np.uint8)).save(at / f"{i}.png")
    return at


@pytest.mark.slow
def test_a_bad_calibration_is_caught_and_its_timing_kept(tmp_path: Path, cache: Cache) -> None:
    wide = _folder(tmp_path / "wide", 0, 256)
    for record in _run(tmp_path / "good", wide, cache):
        assert record.status == "ok", record.reason
        assert record.facts["quantised"]["images"].startswith("16 in ")
    faint, black = _folder(tmp_path / "faint", 118, 121), _folder(tmp_path / "black", 0, 1)
    for folder in (faint, black):
        records = _run(tmp_path / f"of-{folder.name}", folder, cache)
        assert len(records) == 2
        for record in records:
            assert (record.status, record.kind) == ("failed", "parity"), record.reason
            assert record.parity is not None
            assert record.parity.top1_agreement < 0.8  # how far below is the CPU's, as training is
            assert record.replicas[0].durations_ns, "the timing is kept"


@pytest.mark.slow
def test_too_few_pictures_end_the_run(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(InputError, match="calibration needs 16 pictures, and there are 3 in"):
        _run(tmp_path / "few", _folder(tmp_path / "three", 0, 256, 3), cache)

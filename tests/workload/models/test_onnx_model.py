"""ONNX files as people have them: brought into one form, or refused with the true reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpubench.cache import Cache
from gpubench.errors import InputError, Unsupported
from gpubench.suite.types import Policy, Preprocess, Workload
from gpubench.workload.models import digits_net, inspection, registry
from gpubench.workload.models.base import Model
from gpubench.workload.reference import build, load
from tests.backends.onnx_files import BYTES, DOUBLE, FLOAT, HALF, WEIGHTS
from tests.backends.onnx_files import colour_net as write


def net(path: Path, root: Path, **more: Any) -> Model:
    return registry.resolve(
        Workload(model=str(path), weights="file", images="photos", **more), Cache(root / "cache")
    )


def told(file: Path) -> tuple[list[Any], list[Any]]:
    """Shapes of a file's inputs and outputs as it says them; of every node it has."""
    graph = onnx.load(file).graph
    return (
        [
            [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]
            for v in (graph.input[0], *graph.output)
        ],
        [node.op_type for node in graph.node],
    )


Z = WEIGHTS
SYMBOLS = ("batch_size", "num_channels", "height", "width")


@pytest.mark.parametrize(
    ("how", "shape", "fixed", "kind", "note"),
    [
        ({}, (3, 8, 8), None, "logits", ""),
        ({"shape": (2, 3, 8, 8)}, (3, 8, 8), 2, "logits", ""),
        ({"shape": (-1, 3, 8, 8)}, (3, 8, 8), None, "logits", ""),
        ({"shape": SYMBOLS}, (3, 224, 224), None, "logits", "open, 224x224 here"),
        ({"shape": ("n", 3, 8, 16)}, (3, 8, 16), None, "logits", ""),
        ({"shape": ("n", 1, 8, 8), "weights": Z[:1]}, (1, 8, 8), None, "logits", ""),
        ({"shape": SYMBOLS, "weights": Z[:1]}, (1, 224, 224), None, "logits", ""),
        ({"shape": ("n", 8, 8, 3), "last": True}, (8, 8, 3), None, "logits", ""),
        ({"shape": ("n", "h", "w", "c"), "last": True}, (224, 224, 3), None, "logits", ""),
        ({"fed": BYTES}, (3, 8, 8), None, "logits", ""),
        ({"kind": HALF}, (3, 8, 8), None, "logits", ""),
        ({"kind": HALF, "fed": FLOAT}, (3, 8, 8), None, "logits", ""),
        ({"kind": DOUBLE}, (3, 8, 8), None, "logits", "double precision"),
        ({"kind": DOUBLE, "external": True}, (3, 8, 8), None, "logits", "double precision"),
        ({"fed": DOUBLE}, (3, 8, 8), None, "logits", "double precision"),
        ({"fed": TensorProto.INT64}, (3, 8, 8), None, "logits", "given as bytes and cast here"),
        ({"outputs": {"z": None}}, (3, 8, 8), None, "logits", ""),
        ({"outputs": {"z": ("unk__1", "unk__2")}}, (3, 8, 8), None, "logits", ""),
        # a literal 1, or 4, in what is reshaped to
        ({"reshape": (1, 3)}, (3, 8, 8), 1, "logits", "says any batch size, and runs with 1 only"),
        ({"reshape": (1, -1)}, (3, 8, 8), 1, "logits", "runs with 1 only"),
        ({"reshape": (4, 3)}, (3, 8, 8), 4, "logits", "runs with 4 only"),
        # what the answers are
        ({"ends": (("Softmax", {"axis": 1}),), "outputs": {"Softmax": None}}, (3, 8, 8), None,
         "probabilities", ""),
        ({"ends": (("LogSoftmax", {}),), "outputs": {"LogSoftmax": None}}, (3, 8, 8), None,
         "log-probabilities", ""),
        ({"ends": (("Sigmoid", {}),), "outputs": {"Sigmoid": None}}, (3, 8, 8), None,
         "probabilities", ""),
        # several outputs, or another form of them
        ({"ends": (("ArgMax", {"axis": 1, "keepdims": 0}), ("Softmax", {})),
          "outputs": {"ArgMax": ("n",), "Softmax": ("n", 5)}}, (3, 8, 8), None, "probabilities",
         "of the outputs 'ArgMax', 'Softmax', 'Softmax' is taken"),
        ({"ends": (("ArgMax", {"axis": 1, "keepdims": 0}),), "outputs": {"ArgMax": ("n",)}},
         (3, 8, 8), None, "logits", "'ArgMax' has the best classes only: 'z' before it is taken"),
        ({"outputs": {"p": None, "z": None}}, (3, 8, 8), None, "logits", "'p', 'z'"),
        ({"weights": Z[:, :3], "outputs": {"z": None, "v": None}, "output": "z"}, (3, 8, 8), None,
         "logits", "'z' is taken"),
    ],
)  # fmt: skip
def test_forms_that_files_have(
    how: dict[str, Any], shape: tuple[int, ...], fixed: int | None, kind: str, note: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The copy has one input of a known size and one output, and answers as the file says."""
    output = how.pop("output", "") if "output" in how else ""
    weights = how.get("weights", WEIGHTS)
    model = net(write(tmp_path / "net.onnx", **how), tmp_path, output=output)
    assert (model.input_shape, model.fixed_batch, model.output_kind) == (shape, fixed, kind)
    assert note in "; ".join(model.notes)
    assert bool(note) == bool(model.notes) or "224" in model.notes[0]
    half = how.get("kind") == HALF
    assert model.precision == ("fp16" if half else "fp32")
    (taken, given), operators = told(model.onnx(model.precision))
    classes = weights.shape[1]
    assert (taken, given) == ([fixed or "batch", *shape], [fixed or "batch", classes])
    assert "ArgMax" not in operators, "what the answers do not need is left out"

    random = np.random.default_rng(1)
    images = random.normal(size=(6, *shape)).astype(np.float32)
    if how.get("fed") in (BYTES, TensorProto.INT64):
        images = random.integers(0, 255, (6, *shape)).astype(np.uint8)
        assert model.spec.dtype == "uint8"
    axes = (1, 2) if shape[2] == 3 and shape[0] != 3 else (2, 3)
    z = images.astype(float).mean(axes) @ weights
    if kind == "probabilities":
        powers = np.exp(z - z.max(axis=1, keepdims=True))
        z = (
            1 / (1 + np.exp(-z))
            if "Sigmoid" in operators
            else powers / powers.sum(1, keepdims=True)
        )
    elif kind != "logits":
        z = z - np.log(np.exp(z).sum(1, keepdims=True))
    np.testing.assert_allclose(model.answers(images), z, rtol=0.02 if half else 1e-4, atol=0.01)


def test_the_best_few_are_no_answers(tmp_path: Path) -> None:
    model = onnx.load(write(tmp_path / "net.onnx"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "two"))
    model.graph.node.append(helper.make_node("TopK", ["z", "two"], ["best", "numbers"]))
    del model.graph.output[:]
    for name, kind in (("best", TensorProto.FLOAT), ("numbers", TensorProto.INT64)):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    onnx.save(model, tmp_path / "net.onnx")
    taken = net(tmp_path / "net.onnx", tmp_path)
    assert taken.num_classes == WEIGHTS.shape[1]
    assert taken.notes == ["output 'best' has the best classes only: 'z' before it is taken"]


def test_an_output_with_ones_behind_its_classes_and_one_number(tmp_path: Path) -> None:
    """(N, C, 1, 1) is flat; one logit, or one probability, becomes those of two classes."""
    model = net(reshaped(tmp_path / "deep.onnx", [0, 5, 1, 1]), tmp_path)
    images = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    assert told(model.onnx("fp32"))[0][1] == ["batch", 5]
    assert model.notes == ["output 'Reshape', 5x1x1 for an image, is flattened"]
    np.testing.assert_allclose(model.answers(images), images.mean((2, 3)) @ WEIGHTS, atol=1e-5)

    z = images.mean((2, 3)) @ WEIGHTS[:, :1]
    one = net(write(tmp_path / "one.onnx", weights=WEIGHTS[:, :1]), tmp_path)
    assert (one.num_classes, one.output_kind) == (2, "logits")
    np.testing.assert_allclose(one.answers(images), np.hstack([0 * z, z]), atol=1e-5)
    yes = write(tmp_path / "yes.onnx", weights=WEIGHTS[:, :1], ends=(("Sigmoid", {}),),
                outputs={"Sigmoid": None})  # fmt: skip
    share = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(
        net(yes, tmp_path).answers(images), np.hstack([1 - share, share]), atol=1e-5
    )


def test_open_sizes_are_given_by_the_suite(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", SYMBOLS)
    assert net(path, tmp_path, preprocess=Preprocess(size=(16, 24))).input_shape == (3, 16, 24)
    half = write(tmp_path / "half.onnx", ("n", 3, 16, "w"))
    with pytest.raises(InputError, match=r"height and width of \(16, 0\).*, not of \(8, 8\)"):
        net(half, tmp_path, preprocess=Preprocess(size=(8,))).onnx("fp32")
    turned = net(path, tmp_path, preprocess=Preprocess(layout="NHWC"))
    assert turned.input_shape == (224, 224, 3)


def test_the_reference_says_what_was_made_of_the_network(tmp_path: Path, cache: Cache) -> None:
    file = write(tmp_path / "net.onnx", (2, 3, 8, 8), outputs={"ArgMax": (2,), "Softmax": (2, 5)},
                 ends=(("ArgMax", {"axis": 1, "keepdims": 0}), ("Softmax", {})))  # fmt: skip
    workload = Workload(model=str(file), weights="file", images="digits")
    made = load(build(workload, Policy(), cache))
    assert made.output == "probabilities"
    assert made.logits.sum(axis=1) == pytest.approx(np.ones(64))
    assert made.facts["network"] == (
        "it answers with probabilities; of the outputs 'ArgMax', 'Softmax', 'Softmax' is taken"
    )


def several(path: Path) -> Path:
    return write(path, weights=WEIGHTS[:, :3], outputs={"z": None, "v": None})


def reshaped(path: Path, to: list[int]) -> Path:
    """Its output as a reshape of "z"."""
    made = onnx.load(write(path, ends=(("Reshape", {"also": ["form"]}),),
                           outputs={"Reshape": None}))  # fmt: skip
    made.graph.initializer.append(numpy_helper.from_array(np.array(to, np.int64), "form"))
    onnx.save(made, path)
    return path


def two_inputs(path: Path) -> Path:
    made = onnx.load(write(path))
    made.graph.input.append(helper.make_tensor_value_info("mask", FLOAT, (1,)))
    onnx.save(made, path)
    return path


def written(content: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (written(b""), r"is an empty file \(0 bytes\)"),
        (written(b"\n<!DOCTYPE html><html>404"), "is a page of HTML"),
        (written(b"version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
        (written(b"PK\x03\x04archive"), r"zip archive.*torch.onnx.export"),
        (written(b"<?xml version='1.0'?><net/>"), "a page of HTML or XML"),
        (written(b"\x1f\x8b\x08\x00"), "is compressed with gzip: unpack it"),
        (written(b"\x80\x02}q"), "is a pickle"),
        (written(b"\x89HDF\r\n"), "HDF5.*tf2onnx"),
        (written(b"\x00no protobuf"), "is not an ONNX file"),
        (written(helper.make_tensor("x", FLOAT, [1], [1.0]).SerializeToString()), "not an ONNX"),
        (two_inputs, r"has 2 inputs \('pixels', 'mask'\)"),
        (lambda at: write(at, ("n", 128), TensorProto.INT64), "int64 \\(n, 128\\), not pictures"),
        (lambda at: write(at, ("n", 4, 8, 8)), r"float \(n, 4, 8, 8\), not pictures"),
        (lambda at: write(at, outputs={"c": None}),
         r"is no image classifier: its output 'c' \(2, 3, 8, 8\) .*segment"),
        (lambda at: reshaped(at, [-1, 2]), r"its output 'Reshape' \(.*, 2\) float32 is not"),
        (several, r"several outputs .*: 'z' \(2, 3\) float32, 'v' .*\[workload\] output = \"z\""),
        (lambda at: write(at, opset=99), "refused by ONNX Runtime .*: .*Opset 99"),
        (lambda at: write(at, ends=(("Frob", {}),), outputs={"Frob": None}),
         "refused by ONNX Runtime .*No Op registered for Frob"),
    ],
)  # fmt: skip
def test_the_true_reason(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        net(make(tmp_path / "net.onnx"), tmp_path).onnx("fp32")
    assert "/onnxruntime_src/" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.onnx"))


def test_an_output_by_a_name_that_there_is_not(tmp_path: Path) -> None:
    file = write(tmp_path / "net.onnx")
    with pytest.raises(InputError, match=r"has no output 'y' \(workload.output\), but 'z'"):
        net(file, tmp_path, output="y").onnx("fp32")
    more = write(tmp_path / "more.onnx", outputs={"z": None, "c": None})
    assert net(more, tmp_path).num_classes == 5
    with pytest.raises(InputError, match=r"its output 'c' \(2, 3, 8, 8\) float32 is not \(batch"):
        net(more, tmp_path, output="c").onnx("fp32")


def test_weights_beside_it_that_git_has_not_fetched(tmp_path: Path) -> None:
    file = write(tmp_path / "net.onnx", external=True)
    file.with_name("w.bin").write_text("version https://git-lfs.github.com/spec/v1\nsize 9")
    with pytest.raises(InputError, match=r"'w.bin', which is a Git LFS pointer.*git lfs pull"):
        net(file, tmp_path).onnx("fp32")


def test_what_a_file_cannot_have_is_unsupported(tmp_path: Path) -> None:
    """The graph tells of a batch size; of one hidden in a reshape, only a run."""
    fixed = net(write(tmp_path / "fixed.onnx", (2, 3, 8, 8)), tmp_path)
    assert fixed.onnx("fp32", 2) == fixed.onnx("fp32")
    with pytest.raises(Unsupported, match="fixed batch size of 2, and cannot have 3: export"):
        fixed.onnx("fp32", 3)
    hidden = net(write(tmp_path / "hidden.onnx", reshape=(1, 3)), tmp_path)
    with pytest.raises(Unsupported, match="fixed batch size of 1, and cannot have 2"):
        hidden.onnx("fp32", 2)
    half = net(write(tmp_path / "half.onnx", kind=HALF), tmp_path)
    with pytest.raises(Unsupported, match="is fp16: ask for that precision"):
        half.onnx("fp32")


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_a_network_that_answers_by_chance_is_told_as_such(batch: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "net.onnx", (batch, 3, 8, 8), outputs={"RandomNormalLike": None},
                 ends=(("RandomNormalLike", {}),))  # fmt: skip
    with pytest.raises(InputError, match=r"the same images otherwise each time .* a dropout or"):
        net(file, tmp_path).answers(np.ones((4, 3, 8, 8), np.float32))


@pytest.mark.parametrize("batch", ["n", 4])
def test_a_network_that_depends_on_its_batch_is_told_as_such(batch: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "net.onnx", (batch, 3, 8, 8), ends=(("Softmax", {"axis": 0}),),
                 outputs={"Softmax": None})  # fmt: skip
    images = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    with pytest.raises(InputError, match="answers an image otherwise alone than in a batch of"):
        net(file, tmp_path).answers(images)
    dead = write(tmp_path / "dead.onnx", (batch, 3, 8, 8), weights=0 * WEIGHTS,
                 ends=(("Softmax", {}),), outputs={"Softmax": None})  # fmt: skip
    assert (net(dead, tmp_path).answers(images) == np.float32(0.2)).all(), "it is no such network"


def test_answers_that_are_not_finite_are_the_networks_own_fault(
    tmp_path: Path, cache: Cache
) -> None:
    """Of an ONNX file and of torch's, with the first layer that is not."""
    import torch

    broken = WEIGHTS.copy()
    broken[1, 2] = np.nan
    file = write(tmp_path / "net.onnx", weights=broken)
    words = r"finite, of 64 of 64 images, .* layer that is not: MatMul 'z', whose weights 'w' are"
    with pytest.raises(InputError, match=words):
        build(Workload(model=str(file), weights="file", images="digits"), Policy(), cache)
    found = inspection.inspect(Workload(model=str(file), weights="file"), cache)
    assert "not finite, first of MatMul 'z', whose weights 'w' are" in " ".join(found.notes)
    module = digits_net.build(10)
    layer = next(name for name, part in module.named_modules() if isinstance(part, torch.nn.Linear))
    module.get_parameter(f"{layer}.weight").data[0, 0] = torch.nan
    torch.save(module.state_dict(), tmp_path / "broken.pt")
    with pytest.raises(InputError, match=rf"not finite, of 64 .*: Linear {layer}, whose weight is"):
        build(Workload(model="digits", weights=str(tmp_path / "broken.pt"), images="digits"),
              Policy(), cache)  # fmt: skip

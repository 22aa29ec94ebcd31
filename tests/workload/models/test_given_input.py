from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from gpubench.cache import Cache, recipe_of
from gpubench.errors import CellFailed, Unsupported
from gpubench.suite.types import Input, Precision, Workload
from gpubench.workload.data import preprocess
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models import builder, given_input, onnx_graph, quantization
from gpubench.workload.models.onnx_model import OnnxModel
from gpubench.workload.models.registry import resolve
from tests.backends.onnx_files import conv_net
from tests.backends.tiny import cell

SPECS = {
    "ImageNet": Spec(size=(6, 8), resize=None),
    "bgr, 0 to 255": Spec(
        size=(6, 8), resize=6, channels="bgr", range=(0, 255), mean=(104, 117, 124), std=(1, 1, 1)
    ),
    "grey, -1 to 1": Spec(size=(6, 8), resize=None, channels="grey", range=(-1, 1), mean=(0,),
                          std=(0.5,)),
    "NHWC": Spec(size=(6, 8), resize=None, layout="NHWC"),
}  # fmt: skip
"""Each with other numbers for every channel, in another order or place."""


def pictures(spec: Spec, dtype: Input, count: int = 3) -> NDArray[Any]:
    rng = np.random.default_rng(5)
    shots = rng.integers(0, 256, (count, 9, 11, 3), np.uint8)
    return np.stack([preprocess.apply(spec.given(dtype), shot) for shot in shots])


def run(model: Any, images: NDArray[Any]) -> NDArray[Any]:
    import onnxruntime

    made = model if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    [source] = session.get_inputs()
    found: NDArray[Any] = session.run(None, {source.name: images})[0]
    return found


def passing(spec: Spec, kind: int, opset: int = 20) -> Any:
    """A graph that answers with its input, by way of a graph inside a node."""
    from onnx import TensorProto, helper, numpy_helper

    shape = ["batch", *spec.shape]
    inner = [
        helper.make_graph([helper.make_node("Identity", ["x"], [name])], name, [],
                          [helper.make_tensor_value_info(name, kind, shape)])
        for name in ("x_given0", "other")
    ]  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("If", ["yes"], ["y"], then_branch=inner[0], else_branch=inner[1])],
        "passing",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [numpy_helper.from_array(np.array(True), "yes")],
    )
    assert kind in (TensorProto.FLOAT, TensorProto.FLOAT16)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(9, opset)
    )


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_graph_and_module_make_of_it_what_the_host_would(spec: Spec, dtype: Input) -> None:
    import torch
    from onnx import TensorProto
    from torch import nn

    from gpubench.workload.models import trial

    wanted, images = pictures(spec, "float32"), pictures(spec, dtype)
    near = {"rtol": 1e-6, "atol": 2e-6} if dtype == "uint8" else {"rtol": 1e-3, "atol": 1e-3}
    near["atol"] *= float(np.abs(wanted).max())
    assert (wanted.nbytes // images.nbytes) == {"uint8": 4, "float16": 2}[dtype]
    module = trial.Normalised(nn.Identity(), spec, dtype)
    np.testing.assert_allclose(module(torch.from_numpy(images)), wanted, **near)
    for kind in (TensorProto.FLOAT, TensorProto.FLOAT16):
        graph = passing(spec, kind)
        onnx_graph.give(graph, dtype, *spec.affine)
        found = run(graph, images)
        assert found.dtype == {TensorProto.FLOAT: np.float32}.get(kind, np.float16)
        rough = near if kind == TensorProto.FLOAT else {"rtol": 2e-3, "atol": 2e-3}
        np.testing.assert_allclose(found.astype(np.float32), wanted, **rough)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_module_is_cast_and_its_normalisation_is_not(precision: str) -> None:
    import torch
    from torch import nn

    from gpubench.workload.models import trial

    spec, dtype = SPECS["ImageNet"], getattr(torch, precision)
    module = trial.Normalised(nn.Identity(), spec, "uint8").to("cpu", dtype)
    found = module(torch.from_numpy(pictures(spec, "uint8")))
    assert found.dtype == dtype
    wanted = torch.from_numpy(pictures(spec, "float32")).to(dtype)
    apart = (found.float() - wanted.float()).abs().max()
    assert apart <= torch.finfo(dtype).eps * 4  # a step of the type, of values below 4


def test_a_graph_of_an_opset_without_broadcasting_is_refused() -> None:
    from onnx import TensorProto

    spec = SPECS["ImageNet"]
    with pytest.raises(ValueError, match="opset 6, in which"):
        onnx_graph.give(passing(spec, TensorProto.FLOAT, 6), "uint8", *spec.affine)


@pytest.mark.parametrize("external", ["", "net.data"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_file_answers_from_bytes_as_from_floats(
    tmp_path: Path, cache: Cache, precision: str, external: str
) -> None:
    own = OnnxModel(conv_net(tmp_path / "net.onnx", precision, external=external), cache)
    made = given_input.given(own, "uint8", cache)
    floats, images = pictures(own.spec, "float32"), pictures(own.spec, "uint8")
    assert str(images.dtype) == made.spec.dtype == "uint8"
    wanted = own.answers(floats)
    np.testing.assert_allclose(made.answers(images), wanted, rtol=1e-4, atol=1e-5)
    file = made.onnx(precision)
    assert file != own.onnx(precision)
    assert file == made.onnx(precision)
    np.testing.assert_allclose(run(file, images), wanted, rtol=1e-2, atol=1e-3)
    import onnx

    for each in (file, own.onnx(precision)):  # refuses weights that are linked to elsewhere
        onnx.checker.check_model(str(each))
    assert made.identity == own.identity  # the same network: a run may hold both


def test_a_network_is_wrapped_and_its_entry_is_whole(cache: Cache) -> None:
    import torch

    own = resolve(Workload(model="digits", weights="random"), cache)
    made = given_input.given(own, "uint8", cache)
    images = pictures(own.spec, "uint8")
    wanted = own.answers(pictures(own.spec, "float32"))
    np.testing.assert_allclose(made.answers(images), wanted, rtol=1e-4, atol=1e-5)
    found = made.module()(torch.from_numpy(images))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    about = builder.card(made.state())
    assert (about.spec, about.own) == (made.spec, own.spec)
    assert builder.card(own.state()).own is None  # its card is another file
    assert {p.name for p in made.state().iterdir()} == {p.name for p in own.state().iterdir()}


def test_int8_is_calibrated_once_whatever_is_given(tmp_path: Path, cache: Cache) -> None:
    own = OnnxModel(conv_net(tmp_path / "net.onnx"), cache)
    asked = replace(cell("onnxruntime", precision="int8"), images="digits",
                    options={"calibration_images": 8})  # fmt: skip
    files = [
        quantization.onnx(replace(asked, input=dtype), given_input.given(own, dtype, cache), cache,
                          "cpu")
        for dtype in ("float32", "uint8", "float16")
    ]  # fmt: skip
    assert len({*files}) == 3
    assert {recipe_of(file.parent)["of"] for file in files[1:]} == {str(files[0])}
    assert len({str(quantization.facts(file)) for file in files}) == 1
    floats = run(files[0], pictures(own.spec, "float32"))
    np.testing.assert_allclose(run(files[1], pictures(own.spec, "uint8")), floats, atol=0.02)


def test_of_a_file_in_fp32_only_some_make_other_precisions(tmp_path: Path) -> None:
    from gpubench.backends import base
    from gpubench.run import availability

    def refused(backend: str, precision: Precision) -> bool:
        file = conv_net(tmp_path / "net.onnx")
        asked = cell(backend, model=str(file), weights="file", precision=precision)
        return availability.unsupported(asked, base.get(backend)) is not None

    assert {(b, p) for b in ("onnxruntime", "openvino") for p in get_args(Precision)
            if not refused(b, p)} == {
        ("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32"),
        ("openvino", "fp16"), ("openvino", "bf16"), ("openvino", "int8"),
    }  # fmt: skip


def test_what_takes_bytes_itself_is_given_nothing_else(tmp_path: Path, cache: Cache) -> None:
    import onnx

    from gpubench.backends import base
    from gpubench.run import availability

    file, network = conv_net(tmp_path / "net.onnx"), base.get("onnxruntime")
    asked = cell("onnxruntime", model=str(file), weights="file", input="uint8")
    assert availability.unsupported(asked, network) is None
    model = onnx.load(file)
    onnx_graph.give(model, "uint8", *SPECS["ImageNet"].affine)
    onnx.save(model, file)
    said = r"net.onnx' takes uint8 itself: leave input = 'uint8' out"
    reason = availability.unsupported(asked, network)
    assert isinstance(reason, str)
    assert re.search(said, reason)
    assert availability.unsupported(replace(asked, input="float32"), network) is None
    with pytest.raises(Unsupported, match=said):
        given_input.given(OnnxModel(file, cache), "uint8", cache)


def test_an_old_opset_is_told_with_the_model(tmp_path: Path, cache: Cache) -> None:
    import onnx

    file = conv_net(tmp_path / "net.onnx")
    model = onnx.load(file)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", 6))
    made = given_input.Given(OnnxModel(file, cache), "uint8", cache)
    with pytest.raises(CellFailed, match=r"net.onnx' has opset 6"):
        made.in_front(_saved(model, tmp_path))


def _saved(model: Any, at: Path) -> Path:
    import onnx

    (at / "old").mkdir()
    onnx.save(model, at / "old" / "model.onnx")
    return at / "old" / "model.onnx"

"""The work in an image: a torch network's and its ONNX graph's must be the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torchvision import models as zoo
from torchvision.models import convnext, mobilenetv2, regnet, resnet, vision_transformer

from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.records.record import Work
from gpubench.suite.types import Workload
from gpubench.workload.models import flops, registry

SIDE = 32
FAMILIES: dict[str, Callable[[], torch.nn.Module]] = {
    "resnet": lambda: resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=10),
    "mobilenet": lambda: mobilenetv2.MobileNetV2(  # depthwise convolutions
        num_classes=10, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]]
    ),
    "vit": lambda: vision_transformer.VisionTransformer(  # products of activations
        SIDE, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    ),
    "regnet": lambda: regnet.RegNet(  # grouped convolutions, squeeze and excitation
        regnet.BlockParams.from_init_params(4, 24, 24.0, 2.5, 8, se_ratio=0.25), num_classes=10
    ),
    "convnext": lambda: convnext.ConvNeXt(
        [convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 1)], num_classes=10
    ),
}


class Bytes(torch.nn.Module):
    """Of uint8 only, four pictures at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        assert len(images) == 4
        found: torch.Tensor = self.conv(images.float()).mean((2, 3))
        return found


def test_a_module_is_given_the_batch_and_type_that_it_takes() -> None:
    shape, each = (4, 3, SIDE, SIDE), 2 * 8 * 3 * 9 * (SIDE - 2) ** 2
    found = flops.count_module(Bytes().eval(), shape, "uint8")
    assert (found.flops, found.weights) == (each, 8 * 3 * 9)
    assert found.activations == 3 * SIDE**2 + 2 * 8 * (SIDE - 2) ** 2 + 8
    assert flops.by_module(Bytes().eval(), shape, "uint8", 2) == {"conv": each}


def test_a_module_that_needs_numbers_is_told() -> None:
    class Choosing(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = super().forward(images)
            return found if found.sum() > 0 else -found

    for module, why in ((Choosing(4, 4), "RuntimeError"), (Bytes(), "AssertionError")):
        with pytest.raises(InputError, match=rf"cannot be run on shapes alone \({why}"):
            flops.count_module(module.eval(), (1, 3, 4, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_and_its_graph_agree(family: str, tmp_path: Path) -> None:
    module, file = FAMILIES[family]().eval(), tmp_path / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter, which is a hundred times faster
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, SIDE, SIDE),),
            file,
            dynamo=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
        )
    graph = flops.count_graph(file)
    assert graph.flops > 0
    assert graph == flops.count_module(module, (1, 3, SIDE, SIDE))


@pytest.mark.parametrize(
    "weights",
    [zoo.ResNet50_Weights, zoo.MobileNet_V3_Small_Weights, zoo.ViT_B_16_Weights,
     zoo.RegNet_Y_400MF_Weights, zoo.ConvNeXt_Tiny_Weights],
)  # fmt: skip
def test_what_torchvision_publishes(weights: type[zoo.WeightsEnum]) -> None:
    """Multiply-adds in billions, and parameters, of its full networks."""
    published = next(iter(weights)).meta
    with torch.device("cpu"):
        module = zoo.get_model(weights.__name__.removesuffix("_Weights").lower()).eval()
    found = flops.count_module(module, (1, 3, 224, 224))
    assert found.flops / 2e9 == pytest.approx(published["_ops"], rel=0.01, abs=0.002)
    assert found.weights == pytest.approx(published["num_params"], rel=0.03)


def test_digits_counted_once_and_as_its_exported_file(cache: Cache) -> None:
    model = registry.resolve(Workload(model="digits", weights="random"), cache)
    found = flops.of(model, cache)
    graph = flops.count_graph(model.onnx("fp32"))
    ends = int(np.prod(model.input_shape)) + model.num_classes
    assert found == Work(ends=ends, **msgspec.structs.asdict(graph))
    path = next(entry.path for entry in cache.log if entry.kind == "work")
    made = (path / "work.json").stat().st_mtime_ns
    assert flops.of(model, cache) == found
    assert (path / "work.json").stat().st_mtime_ns == made


def file_of(
    tmp_path: Path, nodes: list[onnx.NodeProto], batch: object, *weights: onnx.TensorProto
) -> Path:
    """Images (batch, 3, 8, 8) -> the last node's output."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        list(weights),
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def constant(name: str, *shape: int, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, dtype), name)


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_a_convolution_by_hand(tmp_path: Path, batch: object) -> None:
    conv = helper.make_node("Conv", ["images", "w"], ["out"], kernel_shape=[3, 3], strides=[2, 2])
    found = flops.count_graph(file_of(tmp_path, [conv], batch, constant("w", 6, 3, 3, 3)))
    assert found == flops.Tally(2 * 6 * 3 * 3 * 27, 6 * 27, 3 * 64 + 6 * 9)  # out: 6 x 3 x 3


def test_a_quantised_weight_counts_as_a_weight(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"]),
        helper.make_node("MatMul", ["flat", "w"], ["out"]),
    ]
    weights = (constant("w8", 192, 5, dtype=np.int8), constant("scale"))
    found = flops.count_graph(file_of(tmp_path, nodes, "n", *weights))
    assert found == flops.Tally(2 * 192 * 5, 192 * 5, 192 + 5)


def test_what_is_not_counted_is_said(tmp_path: Path) -> None:
    einsum = helper.make_node("Einsum", ["images"], ["out"], equation="bchw->bc")
    with pytest.raises(InputError, match="products in Einsum are not counted"):
        flops.count_graph(file_of(tmp_path, [einsum], "n"))
    strange = helper.make_node("Strange", ["images"], ["what"], domain="nobody")
    pool = helper.make_node("GlobalAveragePool", ["what"], ["out"])
    with pytest.raises(InputError, match=r"the shapes in its graph cannot be inferred: .* Strange"):
        flops.count_graph(file_of(tmp_path, [strange, pool], "n"))


def test_a_range_that_no_shape_needs_is_not_computed(tmp_path: Path) -> None:
    """A stranger's file must not fill the memory."""
    ends = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in
            (("start", 0), ("limit", 10**15), ("step", 1))]  # fmt: skip
    nodes = [
        helper.make_node("Range", ["start", "limit", "step"], ["range"]),
        helper.make_node("GlobalAveragePool", ["images"], ["out"]),
    ]
    assert flops.count_graph(file_of(tmp_path, nodes, "n", *ends)).activations == 3 * 64 + 3

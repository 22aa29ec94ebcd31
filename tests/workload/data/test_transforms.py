"""Transforms of torchvision and timm, as what a suite says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpubench.errors import InputError
from gpubench.workload.data.transforms import read

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
v2: Any = pytest.importorskip("torchvision.transforms.v2")
v1: Any = pytest.importorskip("torchvision.transforms")


def test_those_of_published_weights() -> None:
    from torchvision.models import ViT_B_16_Weights

    assert read(ViT_B_16_Weights.DEFAULT.transforms()) == {
        "size": [224, 224], "resize": 256, "interpolation": "bilinear", "mean": MEAN, "std": STD,
    }  # fmt: skip


OF_V2 = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


@pytest.mark.parametrize(("module", "scaled"), [(v1, v1.ToTensor()), (v2, OF_V2)])
def test_a_chain_of_them(module: Any, scaled: Any) -> None:
    kind = v1.InterpolationMode.BICUBIC
    chain = module.Compose([
        module.Resize(40, interpolation=kind),
        module.Compose([module.CenterCrop((32, 24)), scaled]),
        module.Normalize(MEAN, STD),
    ])  # fmt: skip
    assert read(chain) == {
        "resize": 40, "size": [32, 24], "interpolation": "bicubic", "mean": MEAN, "std": STD,
    }  # fmt: skip
    squeezed = module.Compose([module.Grayscale(), module.Resize((28, 28)), scaled])
    assert read(squeezed) == {
        "channels": "grey", "size": [28, 28], "crop": False, "interpolation": "bilinear",
        "mean": [0.0], "std": [1.0],
    }  # fmt: skip


def test_those_of_timm() -> None:
    data = pytest.importorskip("timm.data")
    found = read(data.create_transform((3, 96, 96), crop_pct=0.75, interpolation="bicubic"))
    assert (found["size"], found["resize"], found["interpolation"]) == ([96, 96], 128, "bicubic")
    assert found["mean"] == MEAN


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([v1.RandomHorizontalFlip(), v1.Resize((8, 8)), v1.ToTensor()], "only for training"),
        ([v1.Resize(8), v1.ToTensor()], "size of the input open"),
        ([v1.CenterCrop(8), v1.ToTensor()], "without a Resize"),
        ([v1.Resize((9, 9)), v1.CenterCrop(8), v1.ToTensor()], "squeezed"),
        ([v1.Resize((8, 8)), v1.PILToTensor()], "0 to 255"),
        ([v1.Resize(9, max_size=12), v1.CenterCrop(8), v1.ToTensor()], "max_size"),
        ([v1.Resize(9), v1.CenterCrop(8), v1.Resize(4), v1.ToTensor()], "a second one"),
        ([v1.Resize((8, 8)), v1.ToTensor(), *[v1.Normalize(MEAN, STD)] * 2], "a second one"),
        ([v1.Lambda(abs), v1.Resize((8, 8)), v1.ToTensor()], "Lambda"),
    ],
)
def test_what_cannot_be_said_is_named(steps: list[Any], words: str) -> None:
    with pytest.raises(InputError, match="preprocess: cannot be read") as caught:
        read(v1.Compose(steps))
    assert words in str(caught.value)
    assert "preprocess={" in str(caught.value)

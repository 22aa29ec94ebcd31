"""Hugging Face's preprocessor_config.json: processors as written, and wrong ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gpubench.errors import InputError
from gpubench.suite.types import Preprocess
from gpubench.workload.data.preprocess import Spec, assumed
from gpubench.workload.models.onnx_model import OnnxModel
from gpubench.workload.models.preprocessor_config import NAME, read

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
VIT = {"do_resize": True, "size": {"height": 224, "width": 224}, "resample": 2, "do_rescale": True,
       "rescale_factor": 1 / 255, "do_normalize": True, **HALF}  # fmt: skip
FREE = assumed((224, 224))


def made(tmp_path: Path, config: Any, spec: Spec = FREE, *, fixed: bool = True) -> Spec:
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / NAME).write_text(text)
    return read(tmp_path / "model.onnx", spec, fixed=fixed)


@pytest.mark.parametrize(
    ("config", "right"),
    [
        (VIT, {"resize": None, "mean": (0.5,) * 3, "std": (0.5,) * 3}),
        (VIT | {"size": 224, "resample": 3}, {"resize": None, "interpolation": "bicubic",
                                              "mean": (0.5,) * 3, "std": (0.5,) * 3}),
        ({"size": {"shortest_edge": 232}, "do_center_crop": True, "resample": 1,
          "crop_size": {"height": 224, "width": 224}, "do_normalize": None, **HALF},
         {"resize": 232, "interpolation": "lanczos", "mean": (0.5,) * 3, "std": (0.5,) * 3}),
        ({"size": 256, "do_center_crop": True, "crop_size": 224, "do_normalize": False, **HALF},
         {"resize": 256, "mean": (0.0,) * 3, "std": (1.0,) * 3}),
        (VIT | {"size": {"height": 240, "width": 256}, "do_center_crop": True, "crop_size": 224},
         {"resize": (240, 256), "mean": (0.5,) * 3, "std": (0.5,) * 3}),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3, **HALF},
         {"resize": 256, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}),
        (VIT | {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
         {"resize": None, "range": (-1, 1), "mean": (0.0,) * 3, "std": (1.0,) * 3}),
        (VIT | {"do_rescale": False, "image_mean": [1.0, 2.0, 3.0], "do_flip_channel_order": True},
         {"resize": None, "range": (0, 255), "channels": "bgr", "mean": (3, 2, 1),
          "std": (0.5,) * 3}),
    ],
)  # fmt: skip
def test_processors(tmp_path: Path, config: dict[str, Any], right: dict[str, Any]) -> None:
    plain = replace(FREE, source=f"as {NAME} says", assumed=False)
    assert made(tmp_path, config) == replace(plain, **right)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "not understood"),
        ("[" * 10**5, "not understood"),
        ({"size": "big"}, "not understood.*size"),
        pytest.param("{}" + " " * 2**20, "more than 1,048,576 bytes", id="too long"),
        ({}, "has no size"),
        (VIT | {"size": 384}, "says 384x384, and the network takes 224x224"),
        (
            {"size": {"shortest_edge": 9000}, "do_center_crop": True, "crop_size": 224},
            "more than 4,096 pixels",
        ),
        ({"size": {"shortest_edge": -5}, "do_center_crop": True, "crop_size": 224}, "above 0"),
        (VIT | {"resample": 7}, "says resample = 7"),
        (VIT | {"image_std": [0.0] * 3}, "std are above 0"),
        (VIT | {"image_mean": [0.5]}, "1 means, 3 stds"),
        ({"size": {"shortest_edge": 224}}, "no crop_size"),
        (VIT | {"do_resize": False}, "do_resize = false"),
        (VIT | {"do_center_crop": True}, "do_center_crop and no crop_size"),
        (
            VIT | {"size": {"height": 9000, "width": 8}, "do_center_crop": True, "crop_size": 224},
            "more than 4,096 pixels",
        ),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused(tmp_path: Path, config: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(tmp_path, config)


def test_a_network_of_any_size_has_that_of_the_file(tmp_path: Path) -> None:
    assert made(tmp_path, VIT | {"size": 160}, fixed=False).size == (160, 160)
    made(tmp_path, VIT)
    (tmp_path / "onnx").mkdir()
    assert read(tmp_path / "onnx" / "model.onnx", FREE, fixed=True).mean == (0.5,) * 3
    (tmp_path / "else").mkdir()
    assert read(tmp_path / "else" / "model.onnx", FREE, fixed=True) is FREE


def test_the_model_beside_it_takes_it_and_a_suite_wins(
    tmp_path: Path, tiny_onnx: Callable[..., Path]
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_onnx().read_bytes())
    side = assumed_of(model, tmp_path).size[0]
    (tmp_path / NAME).write_text(json.dumps(VIT | {"size": side}))
    spec = assumed_of(model, tmp_path)
    assert (spec.mean, spec.resize, spec.assumed) == ((0.5,) * 3, None, False)
    said = assumed_of(model, tmp_path, Preprocess(mean=(0.1,), std=(0.2,)))
    assert (said.mean, said.resize) == ((0.1,) * 3, None)
    assert said.source == f"mean, std given in the suite; the rest as {NAME} says"
    (tmp_path / NAME).write_text("{")
    message = f"model '{model}' with a {NAME}: not understood"
    with pytest.raises(InputError, match=re.escape(message)):
        assumed_of(model, tmp_path)


def assumed_of(model: Path, cache: Path, said: Preprocess | None = None) -> Spec:
    from gpubench.cache import Cache

    return OnnxModel(model, Cache(cache / "cache"), said).spec

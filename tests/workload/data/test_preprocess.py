from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
import pytest

from gpubench.errors import InputError
from gpubench.suite.types import Preprocess
from gpubench.workload.data.preprocess import (
    IMAGENET_MEAN,
    Spec,
    apply,
    assumed,
    geometry,
    override,
    shown,
    words,
)


@pytest.mark.parametrize(
    ("size", "resize", "crop", "interpolation"),
    [
        ((40, 61), 32, 28, "bilinear"),
        ((61, 40), 32, 28, "bicubic"),
        ((8, 8), 224, 224, "bilinear"),
        ((300, 200), 37, 30, "bilinear"),
        ((30, 50), 20, 29, "bilinear"),
    ],
)
def test_it_is_what_torchvision_does(
    size: tuple[int, int], resize: int, crop: int, interpolation: str
) -> None:
    from PIL import Image
    from torchvision.transforms._presets import ImageClassification
    from torchvision.transforms.functional import InterpolationMode

    spec = Spec(size=(crop, crop), resize=resize, interpolation=interpolation)  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = ImageClassification(
        crop_size=crop, resize_size=resize, interpolation=InterpolationMode(interpolation)
    )
    found = apply(spec, pixels)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, theirs(Image.fromarray(pixels)).numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
@pytest.mark.parametrize("picture", [(40, 61), (61, 40), (50, 50)])
@pytest.mark.parametrize("resize", [32, 40, 48, (40, 54), (30, 60)])
def test_an_input_that_is_not_square_is_cut_as_torchvision_does(
    size: tuple[int, int], picture: tuple[int, int], resize: int | tuple[int, int]
) -> None:
    from PIL import Image
    from torchvision.transforms.v2 import CenterCrop, Resize

    spec = Spec(size=size, resize=resize, layout="NHWC", dtype="uint8", mean=(0,) * 3, std=(1,) * 3,
                range=(0, 255))  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (*picture, 3), dtype=np.uint8)
    theirs = CenterCrop(size)(Resize(resize)(Image.fromarray(pixels)))
    np.testing.assert_array_equal(apply(spec, pixels), np.asarray(theirs))


def test_normalisation_is_per_channel() -> None:
    spec = Spec(size=(2, 2), resize=2, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    found = apply(spec, np.full((2, 2, 3), 255, np.uint8))
    assert found[:, 0, 0].tolist() == [1.0, 1.0, 0.0]


PLAIN = {"size": (1, 2), "resize": None, "mean": (0, 0, 0), "std": (1, 1, 1), "range": (0, 255)}
PIXELS = np.array([[[10, 20, 30], [255, 0, 128]]], np.uint8)


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({}, [[[10, 255]], [[20, 0]], [[30, 128]]]),
        ({"layout": "NHWC"}, [[[10, 20, 30], [255, 0, 128]]]),
        ({"channels": "bgr"}, [[[30, 128]], [[20, 0]], [[10, 255]]]),
        ({"channels": "bgr", "mean": (1, 2, 3)}, [[[29, 127]], [[18, -2]], [[7, 252]]]),
        ({"layout": "NHWC", "std": (5, 2, 1)}, [[[2, 10, 30], [51, 0, 128]]]),
        ({"dtype": "uint8", "layout": "NHWC"}, [[[10, 20, 30], [255, 0, 128]]]),
        ({"channels": "grey", "mean": (1,), "std": (2,)}, [[[8.5, 45]]]),
        ({"range": (-1, 1)}, [[[-0.921569, 1]], [[-0.843137, -1]], [[-0.764706, 0.003922]]]),
    ],
    ids=str,
)
def test_every_order_range_and_type(changes: dict[str, Any], right: list[Any]) -> None:
    spec = Spec(**PLAIN | changes)
    found = apply(spec, PIXELS)
    assert (found.shape, str(found.dtype)) == (spec.shape, spec.dtype)
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, right, atol=1e-6)
    seen = shown(spec, found)
    assert seen.tolist() == ([[18, 91]] if spec.channels == "grey" else PIXELS.tolist())


def test_without_a_crop_each_side_goes_straight_to_its_size() -> None:
    assert geometry(Spec(size=(32, 64), resize=None), 300, 500) == (64, 32, 0, 0)
    assert geometry(Spec(size=(32, 64), resize=80), 160, 80) == (160, 80, 48, 24)


def test_what_is_assumed_fits_the_input() -> None:
    plain = Spec(size=(224, 224), resize=256, source=assumed((9, 9)).source, assumed=True)
    assert assumed((224, 224)) == plain
    assert assumed((64, 128)).resize is None
    assert assumed((8, 8), "grey").shape == (1, 8, 8)
    assert assumed((8, 8), layout="NHWC", dtype="uint8").range == (0, 255)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (0, 0)}, "2 means, 3 stds"),
        ({"channels": "grey"}, "3 means, 3 stds"),
        ({"std": (1, 0, 1)}, "above 0"),
        ({"range": (1, 1)}, "upwards"),
        ({"mean": (0, 0, float("nan"))}, "above 0"),
        ({"dtype": "uint8", "range": (0, 1)}, "normalises them itself"),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_no_spec(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Spec(**PLAIN | changes)


FREE, WIDE = assumed((224, 224)), assumed((64, 128))


@pytest.mark.parametrize(
    ("said", "right", "told"),
    [
        ({}, {}, "224x224, resize 256, bilinear, ImageNet's mean and std (assumed: the file does "
                 "not say)"),
        ({"size": (112,)}, {"size": (112, 112), "resize": 128}, "112x112, resize 128, bilinear, "
         "ImageNet's mean and std (size given in the suite; the rest assumed: the file does not "
         "say)"),
        ({"size": (64, 128)}, {"size": (64, 128), "resize": None}, "64x128, no crop, "),
        ({"size": (64, 128), "resize": 130}, {"size": (64, 128), "resize": 130}, "64x128, resize "),
        ({"crop": False}, {"resize": None}, "224x224, no crop, "),
        ({"size": (64, 128), "crop": True, "resize": 64}, {"size": (64, 128), "resize": 64},
         "64x128, resize 64, black where that is smaller, bilinear"),
        ({"crop": True}, {}, "resize 256, "),
        ({"mean": (0.5,)}, {"mean": (0.5,) * 3, "std": (1.0,) * 3}, "mean 0.5, std 1 (mean given"),
        ({"range": (-1, 1)}, {"mean": (0,) * 3, "std": (1,) * 3, "range": (-1, 1)},
         "mean 0, std 1, range [-1, 1] (range given"),
        ({"mean": (1, 2, 3), "range": (0, 255), "channels": "bgr"},
         {"mean": (1, 2, 3), "std": (1,) * 3, "range": (0, 255), "channels": "bgr"},
         "mean [1, 2, 3], std 1, range [0, 255], bgr (mean, range, channels given"),
        ({"channels": "bgr"}, {"channels": "bgr", "mean": IMAGENET_MEAN[::-1],
                               "std": FREE.std[::-1]}, "mean [0.406, 0.456, 0.485], std"),
        ({"layout": "NCHW", "interpolation": "bicubic"}, {"interpolation": "bicubic"}, "bicubic, "),
        ({"crop": False, "interpolation": "bicubic", "std": (0.5,)},
         {"resize": None, "interpolation": "bicubic", "mean": (0,) * 3, "std": (0.5,) * 3},
         "224x224, no crop, bicubic, mean 0, std 0.5 (given in the suite)"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_suite_says_replaces_what_is_assumed(
    said: dict[str, Any], right: dict[str, Any], told: str
) -> None:
    found = override(FREE, Preprocess(**said), "it", fixed=False)
    assert found == msgspec.structs.replace(
        FREE, **right, source=found.source, assumed="assumed" in found.source
    )
    assert told in words(found)


def test_what_is_stretched_before_a_crop_is_so_at_another_size() -> None:
    spec = msgspec.structs.replace(FREE, size=(80, 80), resize=(100, 120))
    found = override(spec, Preprocess(size=(40, 120)), "it", fixed=False)
    assert (found.size, found.resize) == ((40, 120), (50, 180))
    assert words(found).startswith("40x120, resize 50x180, stretched, bilinear")
    assert override(spec, Preprocess(crop=False), "it", fixed=True).resize is None


GREY, BYTES = assumed((8, 8), "grey"), assumed((8, 8), layout="NHWC", dtype="uint8")


@pytest.mark.parametrize(
    ("spec", "said", "message"),
    [
        (FREE, {"size": (64,)}, "size = 64: it takes 224x224 only"),
        (FREE, {"resize": 200}, "resize = 200: it takes 224x224, and the crop would have black"),
        (WIDE, {"crop": True}, "crop = true: it takes 64x128, which is not square: say resize"),
        (FREE, {"layout": "NHWC"}, 'layout = "NHWC": it takes NCHW'),
        (FREE, {"channels": "grey"}, 'channels = "grey": it takes 3 channels'),
        (FREE, {"mean": (1, 2)}, "mean = [1, 2]: it takes 3 channels"),
        (GREY, {"channels": "rgb"}, 'channels = "rgb": it takes 1 channel$'),
        (GREY, {"std": (1, 2, 3)}, "std = [1, 2, 3]: it takes 1 channel$"),
        (BYTES, {"range": (0, 1)}, "range = [0, 1]: it takes bytes, and normalises them itself"),
        (BYTES, {"layout": "NCHW"}, 'layout = "NCHW": it takes NHWC'),
    ],
    ids=str,
)
def test_what_the_network_cannot_take_is_refused(
    spec: Spec, said: dict[str, Any], message: str
) -> None:
    pattern = re.escape(f"workload.preprocess.{message}").replace(r"\$", "$")
    with pytest.raises(InputError, match=pattern):
        override(spec, Preprocess(**said), "it", fixed=True)


def test_words_of_other_layouts_and_types() -> None:
    assert words(GREY).startswith("8x8, resize 9, bilinear, mean 0.449, std 0.226, grey (assumed")
    assert words(BYTES).startswith("8x8, resize 9, bilinear, NHWC, bytes (assumed")
    whole = override(BYTES, Preprocess(crop=False, interpolation="nearest"), "it", fixed=True)
    assert words(whole) == "8x8, no crop, nearest, NHWC, bytes (given in the suite)"

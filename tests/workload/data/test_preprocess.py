from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpubench.workload.data.preprocess import Spec, apply, assumed, geometry, shown


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
    assert assumed((224, 224)) == Spec(size=(224, 224), resize=256)
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

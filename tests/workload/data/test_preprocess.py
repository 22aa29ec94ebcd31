from __future__ import annotations

import numpy as np
import pytest

from gpubench.workload.data.preprocess import Spec, apply


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

    spec = Spec(crop=crop, resize=resize, interpolation=interpolation)  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = ImageClassification(
        crop_size=crop, resize_size=resize, interpolation=InterpolationMode(interpolation)
    )
    found = apply(spec, pixels)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, theirs(Image.fromarray(pixels)).numpy(), atol=1e-6)


def test_normalisation_is_per_channel() -> None:
    spec = Spec(crop=2, resize=2, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    found = apply(spec, np.full((2, 2, 3), 255, np.uint8))
    assert found[:, 0, 0].tolist() == [1.0, 1.0, 0.0]

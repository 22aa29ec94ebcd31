"""The built-in pictures: deterministic, encoded once, and apart from those of training."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from gpubench.errors import InputError
from gpubench.workload import images, pictures
from gpubench.workload.cache import Cache
from gpubench.workload.listing import Pictures


def everything(dataset: Pictures) -> list[bytes]:
    return [dataset.read(i) for i in range(len(dataset))]


def pixels(data: bytes) -> np.ndarray:
    return pictures.decode_file(BytesIO(data))


@pytest.mark.parametrize(
    ("source", "shape"), [("photos", (375, 500, 3)), ("synthetic", (256, 256, 3))]
)
def test_photographs_and_noise(source: images.Kind, shape: tuple[int, ...], cache: Cache) -> None:
    dataset, training = images.dataset(source, cache, 5), images.training(source, cache, 5)
    assert len(dataset) == len(training) == images.FEWEST
    assert dataset.classes == ()
    assert {dataset.label(i) for i in range(len(dataset))} == {-1}
    assert len({dataset.name(i) for i in range(len(dataset))}) == len(dataset)
    bodies = everything(dataset)
    assert len({*bodies, *everything(training)}) == 2 * images.FEWEST
    assert pixels(bodies[7]).shape == shape
    assert all(body.startswith(b"\xff\xd8") for body in bodies)
    assert len(images.dataset(source, cache, images.FEWEST + 1)) == images.FEWEST + 1


def test_two_caches_hold_the_same_bytes(cache: Cache, tmp_path: Path) -> None:
    one, other = (images.dataset("digits", c, 5) for c in (cache, Cache(tmp_path)))
    assert everything(one) == everything(other)
    assert one.fingerprint == other.fingerprint


def test_digits_are_labelled_and_never_those_of_the_fit(cache: Cache) -> None:
    raw, labels = images.digits()
    dataset, training = images.dataset("digits", cache, 5), images.training("digits", cache, 5)
    assert (len(dataset), len(training)) == (len(raw) - images.FITTED, images.FITTED)
    assert dataset.classes == tuple("0123456789")
    for part, first in ((dataset, images.FITTED), (training, 0)):
        for i in range(len(part)):
            assert part.name(i) == f"digit {first + i}.jpg"
            assert part.label(i) == labels[first + i]
            # A step of 255 in which the scans have 17 values.
            error = pixels(part.read(i)).astype(int) - raw[first + i]
            assert np.abs(error).max() <= 1
    with pytest.raises(InputError, match="1297 images, 1298"):
        images.dataset("digits", cache, 1298)

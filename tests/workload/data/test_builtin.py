"""The built-in pictures: deterministic, encoded once, and apart from those of training."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.workload.data import builtin, image_file
from gpubench.workload.data.dataset_index import Pictures


def everything(dataset: Pictures) -> list[bytes]:
    return [dataset.read(i) for i in range(len(dataset))]


def pixels(data: bytes) -> np.ndarray:
    return image_file.decode_file(BytesIO(data))


@pytest.mark.parametrize(
    ("source", "shape"), [("photos", (375, 500, 3)), ("synthetic", (256, 256, 3))]
)
def test_photographs_and_noise(source: builtin.Kind, shape: tuple[int, ...], cache: Cache) -> None:
    dataset, training = builtin.dataset(source, cache, 5), builtin.training(source, cache, 5)
    assert len(dataset) == len(training) == builtin.FEWEST
    assert dataset.classes == ()
    assert {dataset.label(i) for i in range(len(dataset))} == {-1}
    assert len({dataset.name(i) for i in range(len(dataset))}) == len(dataset)
    bodies = everything(dataset)
    assert len({*bodies, *everything(training)}) == 2 * builtin.FEWEST
    assert pixels(bodies[7]).shape == shape
    assert all(body.startswith(b"\xff\xd8") for body in bodies)
    assert len(builtin.dataset(source, cache, builtin.FEWEST + 1)) == builtin.FEWEST + 1


def test_two_caches_hold_the_same_bytes(cache: Cache, tmp_path: Path) -> None:
    one, other = (builtin.dataset("digits", c, 5) for c in (cache, Cache(tmp_path)))
    assert everything(one) == everything(other)
    assert one.fingerprint == other.fingerprint


def test_digits_are_labelled_and_never_those_of_the_fit(cache: Cache) -> None:
    raw, labels = builtin.digits()
    dataset, training = builtin.dataset("digits", cache, 5), builtin.training("digits", cache, 5)
    assert (len(dataset), len(training)) == (len(raw) - builtin.FITTED, builtin.FITTED)
    assert dataset.classes == tuple("0123456789")
    for part, first in ((dataset, builtin.FITTED), (training, 0)):
        for i in range(len(part)):
            assert part.name(i) == f"digit {first + i}.jpg"
            assert part.label(i) == labels[first + i]
            # A step of 255 in which the scans have 17 values.
            error = pixels(part.read(i)).astype(int) - raw[first + i]
            assert np.abs(error).max() <= 1
    with pytest.raises(InputError, match="1297 images, 1298"):
        builtin.dataset("digits", cache, 1298)

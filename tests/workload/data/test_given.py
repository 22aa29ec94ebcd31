"""Pictures that a caller holds, as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.suite.types import Workload
from gpubench.workload.data import datasets, given

ARRAY = np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), np.uint8)


class Data:
    """As torchvision's: a transform makes of a picture what a network takes."""

    def __init__(self, transform: Any = None) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return len(ARRAY)

    def __getitem__(self, n: int) -> tuple[Any, int]:
        picture = Image.fromarray(ARRAY[n])
        return (self.transform(picture) if self.transform else picture), n % 3


def made_floats(picture: Image.Image) -> Any:
    return np.asarray(picture, np.float32) / 255


class Part:
    """As torch's Subset."""

    def __init__(self, dataset: Data) -> None:
        self.dataset, self.indices = dataset, [1, 3]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, n: int) -> Any:
        return self.dataset[self.indices[n]]


def read(place: Path, labels: Path | None, cache: Cache) -> list[tuple[Any, int | None]]:
    work = Workload(images=str(place), labels=str(labels or ""))
    found = datasets.find(work, cache, 0)
    return [
        (np.asarray(Image.open(place / found.name(n)).convert("RGB")), found.label(n))
        for n in range(len(found))
    ]


class Broken(Data):
    def __getitem__(self, n: int) -> tuple[Any, int]:
        raise KeyError("gone")


def test_an_array_comes_back(tmp_path: Path, cache: Cache) -> None:
    classes = [2, 0, 1, 1, 0, 2]
    place, rows = given.store(ARRAY, classes, tmp_path)
    found = read(place, rows, cache)
    assert [label for _, label in found] == classes
    assert np.array_equal(np.stack([pixels for pixels, _ in found]), ARRAY)
    assert given.store(ARRAY, classes, tmp_path) == (place, rows)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    other, none = given.store(ARRAY.transpose(0, 3, 1, 2), None, tmp_path)
    assert none is None
    assert np.array_equal(read(other, none, cache)[0][0], ARRAY[0])


def test_a_data_set_gives_pictures_whatever_its_transform(tmp_path: Path, cache: Cache) -> None:
    data = Data(made_floats)
    for images, kept in ((data, range(6)), (Part(data), (1, 3))):
        place, rows = given.store(images, None, tmp_path / type(images).__name__)
        found = read(place, rows, cache)
        assert [label for _, label in found] == [n % 3 for n in kept]
        assert np.array_equal(found[0][0], ARRAY[kept[0]])
        assert given.transform_of(images) is made_floats
    assert data.transform is made_floats


def test_pictures_are_taken_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "MOST", 2)
    place, _ = given.store(ARRAY, None, tmp_path)
    assert sorted(path.name for path in place.iterdir()) == ["000000.png", "000003.png"]
    place, _ = given.store(ARRAY, None, tmp_path, count=4)
    assert len(list(place.iterdir())) == 4


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (ARRAY.astype(np.float32), None, r"images\[0\] is float32 \(9, 7, 3\)"),
        ([object()] * 3, None, "is of type object"),
        (["a.png", "b.png"], None, "is of type str"),
        ([(ARRAY[0], 1, "a")] * 2, None, "is of type tuple"),
        (Data(lambda: 1), ["cat"] * 6, r"images\[0\] is 'cat': expected its class"),
        (ARRAY, [0.5] * 6, r"images\[0\] is 0.5"),
        (ARRAY, [0, -1] * 3, r"images\[1\] is -1"),
        (ARRAY, np.eye(6), r"images\[0\] is array"),
        (Broken(), None, r"images\[0\]: KeyError: 'gone'"),
        (ARRAY[0], None, r"\(9, 7, 3\) is one picture"),
        (ARRAY, [1], "1 of them, and images has 6"),
        (ARRAY[:1], None, "at least 2"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, images: Any, labels: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        given.store(images, labels, tmp_path)


@pytest.mark.parametrize("images", [3, {"a": 1}, iter(ARRAY), object()])
def test_what_can_be_no_data_set_is_told_at_once(images: Any) -> None:
    with pytest.raises(InputError, match=r"images: of type .*list\(\.\.\.\)"):
        given.is_held(images)
    assert given.is_held(ARRAY)
    assert given.is_held(Data())
    assert not given.is_held("digits")

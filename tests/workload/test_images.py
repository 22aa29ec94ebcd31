from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpubench.errors import InputError
from gpubench.workload import images


def picture(path: Path, value: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((5, 4, 3), value, np.uint8)).save(path)


@pytest.mark.parametrize("source", images.SOURCES)
def test_sources_are_seeded(source: str) -> None:
    first, again, other = (images.load(source, 6, seed) for seed in (1, 1, 2))
    assert images.fingerprint(first) == images.fingerprint(again) != images.fingerprint(other)
    assert len(first.pixels) == len(first.names) == len(first.labels) == 6
    assert len({p.tobytes() for p in first.pixels}) == 6
    assert all(p.ndim == 3 and p.shape[2] == 3 and p.dtype == np.uint8 for p in first.pixels)


def test_digits_are_labelled_and_never_those_of_the_fit() -> None:
    pixels, labels = images.digits()
    fitted = {p.tobytes() for p in pixels[: images.FITTED]}
    pool = images.load("digits", len(pixels) - images.FITTED, 0)
    # A few of the 1,797 scans are equal pixel for pixel; identity is by index.
    assert len({int(name.split()[1]) for name in pool.names}) == len(pool.names)
    assert min(int(name.split()[1]) for name in pool.names) == images.FITTED
    assert sum(p.tobytes() in fitted for p in pool.pixels) < 5
    assert sorted(set(pool.labels)) == list(range(10))
    index = int(pool.names[3].split()[1])
    assert pool.labels[3] == labels[index]
    assert (pool.pixels[3] == pixels[index]).all()
    with pytest.raises(InputError, match="1297 images, 1298"):
        images.load("digits", 1298, 0)


def test_only_digits_have_labels_among_the_built_in() -> None:
    for source in ("photos", "synthetic"):
        pool = images.load(source, 3, 0)
        assert pool.labels == [-1, -1, -1]
        assert pool.classes == 0


def test_class_folders_give_labels(tmp_path: Path) -> None:
    for i, folder in enumerate(("cat", "ant", "bee")):
        picture(tmp_path / folder / "deep" / f"{folder}.PNG", i)
    pool = images.load(str(tmp_path), 10, 0)
    assert pool.classes == 3
    found = dict(zip(pool.names, pool.labels, strict=True))
    assert found == {"ant/deep/ant.PNG": 0, "bee/deep/bee.PNG": 1, "cat/deep/cat.PNG": 2}
    assert pool.pixels[pool.labels.index(2)][0, 0, 0] == 0


def test_a_flat_folder_has_no_labels_and_a_seeded_choice(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / f"{i}.png", i)
    (tmp_path / "notes.txt").write_text("no picture")
    first, again, other = (images.load(str(tmp_path), 5, seed) for seed in (1, 1, 2))
    assert first.names == again.names != other.names
    assert first.labels == [-1] * 5
    assert [p[0, 0, 0] for p in first.pixels] == [int(n.split(".")[0]) for n in first.names]
    assert len(images.load(str(tmp_path), 64, 0).pixels) == 20


def test_grey_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    pool = images.load(str(tmp_path), 2, 0)
    found = {name: tuple(p[0, 0]) for name, p in zip(pool.names, pool.pixels, strict=True)}
    assert found == {"grey.png": (7, 7, 7), "clear.png": (1, 2, 3)}


def test_broken_pictures_are_left_out_and_counted(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(2):
        picture(tmp_path / f"good{i}.png", i)
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    for broken, why in (
        (data[: len(data) // 2], "truncated"),
        (data[:20], "truncated"),
        (b"no picture", "not an image"),
    ):
        (tmp_path / "cut.png").write_bytes(broken)
        pool = images.load(str(tmp_path), 3, 0)
        assert sorted(pool.names) == ["good0.png", "good1.png"]
        assert pool.skipped == f"1 of 3: 1 {why}"
    (tmp_path / "good0.png").unlink()
    with pytest.raises(InputError, match=r"found 1 usable.*Skipped 1 of 2: 1 not an image"):
        images.load(str(tmp_path), 3, 0)


def test_folders_that_do_not_serve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder, and none of digits"):
        images.load(str(tmp_path / "nowhere"), 2, 0)
    picture(tmp_path / "one.png", 1)
    with pytest.raises(InputError, match=r"found 1 usable picture"):
        images.load(str(tmp_path), 2, 0)

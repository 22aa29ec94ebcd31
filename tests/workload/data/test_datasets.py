"""Folders as data sets, the pool drawn from one, and what is kept of it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpubench.cache import Cache
from gpubench.errors import CalibrationError, InputError
from gpubench.suite.types import Policy, Workload
from gpubench.workload import reference
from gpubench.workload.data import (
    builtin,
    dataset_index,
    datasets,
    image_file,
    image_folder,
    preprocess,
)
from gpubench.workload.data.dataset_index import About, Pictures
from tests.backends.onnx_files import conv_net


def encoded(value: int) -> bytes:
    out = BytesIO()
    Image.fromarray(np.full((5, 4, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(value))
    return path


def names(dataset: Pictures) -> list[str]:
    return [dataset.name(i) for i in range(len(dataset))]


def labels(dataset: Pictures) -> dict[str, int]:
    return {dataset.name(i): dataset.label(i) for i in range(len(dataset))}


def test_class_folders_give_labels(tmp_path: Path) -> None:
    for i, folder in enumerate(("cat", "ant", "bee")):
        picture(tmp_path / folder / "deep" / f"{folder}.PNG", i)
    (tmp_path / "empty").mkdir()
    dataset = image_folder.find(tmp_path)
    assert dataset.classes == ("ant", "bee", "cat", "empty")
    assert labels(dataset) == {"ant/deep/ant.PNG": 0, "bee/deep/bee.PNG": 1, "cat/deep/cat.PNG": 2}
    assert dataset.read(2) == encoded(0)


@pytest.mark.parametrize(
    ("paths", "notes"),
    [
        (("1.png", "2.png"), "lie in no sub-folder that is a class, and no file of labels"),
        (("a/1.png", "2.png"), "1 of 2 pictures lie beside the sub-folders, as '2.png' does; put"),
        (
            ("train/a/1.png", "Val/a/2.png"),
            "'Val', 'train': parts of a data set, not classes; give",
        ),
        (("test/1.png", "test/2.png"), "'test': parts of a data set"),
    ],
)
def test_folders_that_are_no_classes(tmp_path: Path, paths: tuple[str, ...], notes: str) -> None:
    for i, path in enumerate(paths):
        picture(tmp_path / path, i)
    dataset = image_folder.find(tmp_path)
    assert dataset.classes == ()
    assert set(labels(dataset).values()) == {-1}
    assert notes in dataset.about.notes


KEEPERS = (
    ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a/._1.png", "@eaDir/a/1.png/THUMB.jpg",
    ".git/x.png", "a/.thumbs/1.png", "a/._1.png", ".hidden.png", "a/Thumbs.db", "a/.DS_Store",
    "$RECYCLE.BIN/1.png", "lost+found/1.png", "System Volume Information/1.png",
)  # fmt: skip


def test_what_no_person_put_there_is_passed_over(tmp_path: Path) -> None:
    for i, name in enumerate(("a/1.png", "b/2.png", *KEEPERS)):
        picture(tmp_path / ".cache" / name, i)  # the root itself may be hidden
    dataset = image_folder.find(tmp_path / ".cache")
    assert (names(dataset), dataset.classes) == (["a/1.png", "b/2.png"], ("a", "b"))
    assert dataset.about.skipped == {}


def test_pictures_are_told_by_their_content(tmp_path: Path) -> None:
    """By any name; and files that are none, whatever they begin with, are no pictures."""
    image = Image.new("RGB", (20, 20), (200, 0, 0))
    kinds = {"noext": "JPEG", "c.dat": "PNG", "d.bin": "GIF", "e": "BMP", "f.raw": "TIFF",
             "g.img": "WEBP", "h.x": "PPM", "i.jfif": "JPEG"}  # fmt: skip
    for name, kind in kinds.items():
        image.save(tmp_path / name, kind)
    others = {"BMW.txt": b"BMW and others", "II.csv": b"II,2", "P1": b"P1 notes", "n": b"",
              "x.json": b"{}", "y.avif": b"\0\0\0\x1cftypavif",
              "z.HEIC": b"\0\0\0\x18ftypheic\0"}  # fmt: skip
    for name, body in others.items():
        (tmp_path / name).write_bytes(body)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to("nowhere")
    pool = datasets.draw(image_folder.find(tmp_path), 20, 0)
    assert sorted(pool.dataset.name(i) for i in pool.indices) == sorted(kinds)
    assert pool.skipped == "2 of 10: 2 of another format"


def test_the_pool_is_a_seeded_choice(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / f"{i}.png", i)
    (tmp_path / "notes.txt").write_text("no picture")
    dataset = image_folder.find(tmp_path)
    first, again, other = (datasets.draw(dataset, 5, seed) for seed in (1, 1, 2))
    assert first.indices == again.indices != other.indices
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.skipped == ""
    assert first.digests[3] == hashlib.sha256(first.read(3)).digest()
    assert len(datasets.draw(dataset, 64, 0).indices) == 20


def test_broken_pictures_are_left_out_and_counted(tmp_path: Path) -> None:
    for i in range(2):
        picture(tmp_path / f"good{i}.png", i)
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    for broken, why in (
        (data[: len(data) // 2], "truncated"),
        (data[:20], "truncated"),
        (b"no picture", "not an image"),
        (b"", "empty"),
    ):
        (tmp_path / "cut.png").write_bytes(broken)
        pool = datasets.draw(image_folder.find(tmp_path), 3, 0)
        assert sorted(pool.dataset.name(i) for i in pool.indices) == ["good0.png", "good1.png"]
        assert pool.skipped == f"1 of 3: 1 {why}"
    (tmp_path / "good0.png").unlink()
    with pytest.raises(InputError, match=r"found 1 usable.*Skipped 1 of 2: 1 empty"):
        datasets.draw(image_folder.find(tmp_path), 3, 0)


def test_a_picture_that_changes_meanwhile(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(2)]
    pool = datasets.draw(image_folder.find(tmp_path), 2, 0)
    picture(paths[pool.indices[0]], 7)
    paths[pool.indices[1]].unlink()
    for place in range(2):
        with pytest.raises(InputError, match=r"png' changed while it was used; start again"):
            pool.read(place)


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        (Workload(images="nowhere"), "not a folder, and none of digits, photos, synthetic"),
        (Workload(images="digits", labels="x.csv"), "labels 'x.csv': only for a folder"),
        (Workload(images="one.tar", labels="x.csv"), "labels 'x.csv': only for a folder"),
        (Workload(images="/dev/null"), "'/dev/null': not a file; give a folder"),
    ],
)
def test_what_is_no_data_set(workload: Workload, message: str, cache: Cache) -> None:
    with pytest.raises(InputError, match=message):
        datasets.find(workload, cache, 2)


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o000)
    dataset = image_folder.find(tmp_path / "shut")
    with pytest.raises(InputError, match=r"found 0 usable.*1 unreadable folder"):
        datasets.draw(dataset, 2, 0)


# ------------------------------------------------------------------------------ what is kept


def test_names_of_classes_that_are_no_text(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    picture(folder / "a" / "1.png", 1)
    picture(folder / os.fsdecode(b"b\xff") / "2.png", 2)
    (tmp_path / "labels.csv").write_bytes(b"a/1,a\n" + b"b\xff/2,b\xff\n")
    for n, file in enumerate((None, tmp_path / "labels.csv")):
        dataset = image_folder.find(folder, file)
        dataset.save(tmp_path / str(n))
        again = dataset_index.load(tmp_path / str(n))
        assert again.classes == dataset.classes == ("a", "b\\udcff")
        assert again.fingerprint == dataset.fingerprint
        assert [again.label(i) for i in range(2)] == [0, 1]
        assert again.read(1) == encoded(2)


def test_archives_are_told_by_the_end_of_their_names(tmp_path: Path) -> None:
    for name in ("a.tar.png", "b.png", "c.TAR", "d.tar.gz", "e.gz"):
        picture(tmp_path / name, 1)
    dataset = image_folder.find(tmp_path)
    assert names(dataset) == ["a.tar.png", "b.png", "e.gz"]  # a picture by its content
    assert dataset.about.skipped == {"archive beside pictures": 2}


def test_names_that_are_no_text_are_read_again(tmp_path: Path) -> None:
    raw = os.fsdecode(b"caf\xe9\x1b.png")
    picture(tmp_path / "in" / raw, 3)
    dataset = image_folder.find(tmp_path / "in")
    dataset.save(tmp_path / "kept")
    again = dataset_index.load(tmp_path / "kept")
    assert names(again) == names(dataset) == ["caf\\udce9\\x1b.png"]
    assert again.read(0) == encoded(3)


def test_a_hundred_thousand_names_take_a_few_megabytes(tmp_path: Path) -> None:
    count = 100_000
    texts = [f"n{i % 1000:08d}/ILSVRC2012_val_{i:08d}.JPEG" for i in range(count)]
    classes = [i % 1000 for i in range(count)]
    about = About(kind="folder", root="/data", classes=tuple(map(str, range(1000))))
    dataset = Pictures.of(about, texts, classes, [110_000] * count)
    assert sum(array.nbytes for array in dataset.arrays.values()) < 7 * 2**20
    dataset.save(tmp_path / "kept")
    again = dataset_index.load(tmp_path / "kept")
    mapped = {name for name, array in again.arrays.items() if isinstance(array, np.memmap)}
    assert mapped == {"blob", "ends", "labels", "sizes", "places"}
    assert again.fingerprint == dataset.fingerprint
    for index in (0, 1, 54_321, count - 1):
        assert again.name(index) == texts[index]
        assert again.label(index) == index % 1000


def test_an_empty_listing(tmp_path: Path) -> None:
    image_folder.find(tmp_path).save(tmp_path / "kept")
    assert len(dataset_index.load(tmp_path / "kept")) == 0


# ------------------------------------------------------------------------------ references


def built(workload: Workload, cache: Cache, **policy: int) -> reference.Reference:
    return reference.load(reference.build(workload, Policy(**policy), cache))


def matches(made: reference.Reference) -> bool:
    """Whether every input is what the reference decoder makes of its encoded picture."""
    return all(
        np.array_equal(
            preprocess.apply(made.spec, image_file.decode_file(BytesIO(made.encoded(i)))), image
        )
        for i, image in enumerate(made.images)
    )


def test_a_reference_reopens_its_data_set(
    tmp_path: Path, cache: Cache, tiny_onnx: Callable[..., Path]
) -> None:
    paths = [picture(tmp_path / "in" / f"c{i % 5}" / f"{i}.png", i) for i in range(80)]
    work = Workload(model=str(tiny_onnx(classes=5)), weights="file", images=str(tmp_path / "in"))
    made = built(work, cache)
    assert made.images.shape == (64, 3, 8, 8)
    assert (made.spec.size, made.classes) == ((8, 8), ("c0", "c1", "c2", "c3", "c4"))
    assert matches(made)
    dataset = made.dataset()
    assert len(dataset) == 80
    of = {dataset.name(i): i for i in range(80)}
    for i, name in enumerate(made.names):
        assert dataset.read(of[name]) == made.encoded(i)
        assert dataset.label(of[name]) == made.labels[i]
    assert len(built(work, cache, accuracy_images=70).images) == 70
    paths[3].unlink()
    with pytest.raises(image_file.Unusable, match="no such file"):
        dataset.read(of["c3/3.png"])


@pytest.mark.parametrize("source", builtin.SOURCES)
def test_references_of_built_in_pictures_move_with_their_cache(
    source: str, tmp_path: Path, tiny_onnx: Callable[..., Path]
) -> None:
    work = Workload(model=str(tiny_onnx(classes=5)), weights="file", images=source)
    path = reference.build(work, Policy(), Cache(tmp_path / "cache"))
    assert matches(reference.load(path))
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    moved = reference.load(tmp_path / "moved" / path.relative_to(tmp_path / "cache"))
    dataset = moved.dataset()
    assert moved.encoded(0) in {dataset.read(i) for i in range(len(dataset))}


def test_another_picture_outside_the_pool_is_another_reference(
    tmp_path: Path, cache: Cache, tiny_onnx: Callable[..., Path]
) -> None:
    for i in range(70):
        picture(tmp_path / "in" / f"{i}.png", i)
    work = Workload(model=str(tiny_onnx(classes=5)), weights="file", images=str(tmp_path / "in"))
    first = reference.build(work, Policy(), cache)
    outside = set(names(reference.load(first).dataset())) - set(reference.load(first).names)
    (tmp_path / "in" / outside.pop()).unlink()
    assert reference.build(work, Policy(), cache) != first


# ------------------------------------------------------------------------------ calibration


def test_calibrating_on_a_folder_leaves_the_pool_alone(tmp_path: Path, cache: Cache) -> None:
    for i in range(200):
        picture(tmp_path / f"{i}.png", i)
    work = Workload(images=str(tmp_path))
    dataset = datasets.find(work, cache, 0)
    found = datasets.calibration(work, cache, 99, 3)
    assert len(set(found.encoded)) == 99
    for seed in range(3):
        pool = datasets.draw(dataset, 100, seed)
        assert not set(found.encoded) & {pool.read(i) for i in range(100)}
    assert len(set(datasets.draw(dataset, 200, 0).indices)) == 200  # all of them, if need be
    assert found.source == f"99 of the 100 in {tmp_path} that answers are checked on last"
    assert found == datasets.calibration(work, cache, 99, 3)
    assert found.digest != datasets.calibration(work, cache, 99, 4).digest
    with pytest.raises(InputError, match=r"needs 101 pictures, and there are 100 of .*; set work"):
        datasets.calibration(work, cache, 101, 3)


def test_calibrating_leaves_out_what_is_no_picture(tmp_path: Path, cache: Cache) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.png", i)
    work = Workload(images=str(tmp_path))
    first = datasets.calibration(work, cache, 2, 0).encoded[0]
    next(p for p in tmp_path.iterdir() if p.read_bytes() == first).write_bytes(b"no picture")
    with pytest.raises(InputError, match="there are 1 of the 2 in"):
        datasets.calibration(work, cache, 2, 0)


def test_calibrating_on_another_folder(tmp_path: Path, cache: Cache) -> None:
    picture(tmp_path / "a" / "1.png", 1)
    picture(tmp_path / "b" / "2.png", 2)
    picture(tmp_path / "b" / "3.png", 3)
    work = Workload(images="digits", calibration=str(tmp_path / "b"))
    found = datasets.calibration(work, cache, 2, 0)
    assert sorted(found.encoded) == sorted([encoded(2), encoded(3)])
    assert found.source == f"2 in {tmp_path / 'b'}"
    same = Workload(images=str(tmp_path / "b"), calibration=str(tmp_path / "b"))
    assert datasets.calibration(same, cache, 1, 0).source.startswith("1 of the 1 in")
    (tmp_path / "words").write_text("no picture")
    none = Workload(images="digits", calibration=str(tmp_path / "words"))
    with pytest.raises(CalibrationError, match=r"workload\.calibration: images .*no tar file"):
        datasets.calibration(none, cache, 1, 0)


@pytest.mark.parametrize("source", builtin.SOURCES)
def test_calibrating_on_built_in_pictures(source: str, cache: Cache) -> None:
    work = Workload(images=source)
    found = datasets.calibration(work, cache, 50, 0)
    dataset = datasets.find(work, cache, 2)
    # A few of scikit-learn's scans are equal pixel for pixel; identity is by number.
    same = set(found.encoded) & {dataset.read(i) for i in range(len(dataset))}
    assert len(same) < (5 if source == "digits" else 1)
    assert found.source.startswith("50 ")


def test_a_picture_of_the_pool_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of them are usable shows when the pool is drawn; what that gave is not made again."""
    seen: list[bytes] = []
    decode = image_file.decode_file

    def counted(file: BytesIO) -> np.ndarray:
        seen.append(file.getvalue())
        return decode(file)

    monkeypatch.setattr(image_file, "decode_file", counted)
    net = conv_net(tmp_path / "net.onnx")
    cache, work = Cache(tmp_path), Workload(model=str(net), weights="file", images="digits")
    reference.build(work, Policy(), cache)
    assert len(seen) == len(set(seen)) == datasets.POOL
    monkeypatch.setattr(datasets, "MOST_HELD", 8 * 8 * 3 * 10)  # room for ten digits
    seen.clear()
    reference.build(work, Policy(seed=1), cache)
    assert len(seen) == 2 * datasets.POOL - 10

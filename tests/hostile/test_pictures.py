"""Folders of pictures from anywhere: each is used, or left out with a count and a reason."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image

from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.records.reader import read
from gpubench.suite.types import Policy, Workload
from gpubench.workload import reference
from gpubench.workload.data import datasets, image_file, image_folder
from tests.hostile.commands import acting, fuzz, gpubench, told

WriteSuite = Callable[..., Path]
NOISE = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
RGB = Image.fromarray(NOISE)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def png(width: int, height: int, body: bytes = b"\0") -> bytes:
    """A PNG that claims to have this size, whatever is in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + data


FRAMES = [Image.new("RGB", (8, 8), c) for c in ("red", "green", "blue")]
ANIMATED = {"save_all": True, "append_images": FRAMES[1:]}
JPEG, PNG = encoded(RGB, "JPEG"), encoded(RGB, "PNG")
SKIPPED = {
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut.png": (PNG[: len(PNG) // 2], "truncated"),
    "cut.webp": (encoded(RGB, "WEBP")[:200], "damaged"),
    "nothing.jpg": (b"", "empty"),
    "words.jpg": (b"these are words", "not an image"),
    "large.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "not fetched (git lfs pull)"),
    "page.jpg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "bomb.png": (png(60_000, 60_000), "too large"),
    "bigger-than-pillow-minds.png": (png(9_500, 9_500), "too large"),
    "beyond-counting.png": (png(2**31 - 1, 2**31 - 1), "too large"),
    "no-size.png": (png(0, 5), "not an image"),
    "thread.png": (encoded(Image.new("RGB", (1, 200)), "PNG"), "too narrow"),
    "moving.gif": (encoded(FRAMES[0], "GIF", **ANIMATED), "several frames"),
    "moving.webp": (encoded(FRAMES[0], "WEBP", **ANIMATED), "several frames"),
    "moving.png": (encoded(FRAMES[0], "PNG", **ANIMATED), "several frames"),
    "pages.tif": (encoded(FRAMES[0], "TIFF", **ANIMATED), "several frames"),
    "float.tif": (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "of an unknown range"),
}
GREY16 = Image.fromarray(np.full((8, 8), 0x80FF, np.uint16))
CLEAR = RGB.quantize(8)
EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned by 90 degrees
USED = {
    "cmyk.jpg": encoded(RGB.convert("CMYK"), "JPEG"),
    "grey.jpg": encoded(RGB.convert("L"), "JPEG"),
    "grey16.png": encoded(GREY16, "PNG"),
    "grey16.tif": encoded(GREY16, "TIFF"),
    "one-bit.png": encoded(RGB.convert("1"), "PNG"),
    "palette.png": encoded(CLEAR, "PNG", transparency=b"\x00\x80\xff"),
    "palette.gif": encoded(CLEAR, "GIF", transparency=3),
    "clear.png": encoded(RGB.convert("RGBA"), "PNG"),
    "grey-clear.png": encoded(RGB.convert("LA"), "PNG"),
    "dot.png": encoded(Image.new("RGB", (1, 1), (7, 8, 9)), "PNG"),
    "turned.jpg": encoded(RGB, "JPEG", exif=EXIF),
    # of three pictures Pillow before 11.3 writes a broken file
    "phone.jpg": encoded(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:2]),
    "a-png-called.jpg": PNG,
    "a-jpeg-called.png": JPEG,
    "upper.JPEG": JPEG,
    "lab.tif": encoded(Image.new("LAB", (8, 8)), "TIFF"),
    "ycbcr.jpg": encoded(RGB.convert("YCbCr"), "JPEG"),
}


def decode(path: Path) -> np.ndarray:
    return image_file.decode_file(BytesIO(image_file.read(path)))


def draw(folder: Path, count: int) -> datasets.Pool:
    return datasets.draw(image_folder.find(folder), count, 0)


def names(pool: datasets.Pool) -> list[str]:
    return [pool.dataset.name(i) for i in pool.indices]


@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_no_use_is_left_out_with_its_reason(name: str, tmp_path: Path) -> None:
    body, reason = SKIPPED[name]
    (tmp_path / name).write_bytes(body)
    with pytest.raises(image_file.Unusable) as caught:
        decode(tmp_path / name)
    assert str(caught.value) == reason
    for good in range(2):
        (tmp_path / f"good{good}.png").write_bytes(PNG)
    pool = draw(tmp_path, 5)
    assert pool.skipped == f"1 of 3: 1 {reason}"


@pytest.mark.parametrize("name", USED)
def test_every_kind_of_picture_becomes_rgb(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(USED[name])
    pixels = decode(tmp_path / name)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def test_pixels_are_what_was_meant(tmp_path: Path) -> None:
    def used(name: str) -> np.ndarray:
        (tmp_path / name).write_bytes(USED[name])
        return decode(tmp_path / name)

    for name in ("grey16.png", "grey16.tif"):
        assert (used(name) == 0x80).all()  # the upper 8 of 16 bits, not white
    assert used("dot.png").tolist() == [[[7, 8, 9]]]
    assert used("turned.jpg").shape == (60, 40, 3)  # as torchvision's loader leaves it
    assert (used("phone.jpg")[4, 4] > (200, -1, -1)).all()  # the first picture: red
    assert np.array_equal(used("a-png-called.jpg"), NOISE)
    (tmp_path / "x.jpg").write_bytes(encoded(Image.new("CMYK", (9, 9), (0, 200, 200, 0)), "JPEG"))
    red, green, blue = decode(tmp_path / "x.jpg")[4, 4]
    assert red > 240  # inverted, as some decoders have it, it would be dark
    assert max(green, blue) < 70


def test_large_photographs_are_averaged_to_a_bounded_size(tmp_path: Path) -> None:
    big = np.kron(
        np.arange(200, dtype=np.uint8).reshape(10, 20, 1), np.ones((300, 300, 3), np.uint8)
    )
    Image.fromarray(big).save(tmp_path / "big.png")
    small = decode(tmp_path / "big.png")
    assert small.shape == (750, 1500, 3)  # 3000 x 6000, by 4
    assert small[0, 0, 0] == 0
    assert small[-1, -1, 0] == 199


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "vast.bmp").open("wb") as file:
        file.write(b"BM")
        file.truncate(2**40)  # sparse: takes no room
    begin = time.monotonic()
    with pytest.raises(image_file.Unusable, match="too large"):
        decode(tmp_path / "vast.bmp")
    assert time.monotonic() - begin < 1


def test_what_is_no_file_neither_hangs_nor_hides(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    out.mkdir()
    for n in range(3):
        (root / f"good{n}.png").write_bytes(PNG)
    (out / "elsewhere.png").write_bytes(JPEG)
    os.mkfifo(root / "pipe.jpg")
    (root / "folder.jpg").mkdir()
    (root / "folder.jpg" / "inside.png").write_bytes(PNG)
    (root / "linked.png").symlink_to(out / "elsewhere.png")
    (root / "nowhere.jpg").symlink_to(root / "gone")
    (root / "itself.jpg").symlink_to(root / "itself.jpg")
    (root / "round").symlink_to(root)
    (out / "class").mkdir()
    (out / "class" / "outside.png").write_bytes(PNG)
    (root / "class").symlink_to(out / "class")
    (root / "device.png").symlink_to("/dev/zero")
    begin = time.monotonic()
    pool = draw(root, 50)
    assert time.monotonic() - begin < 5
    assert sorted(names(pool)) == [
        "class/outside.png",
        "folder.jpg/inside.png",
        "good0.png",
        "good1.png",
        "good2.png",
        "linked.png",
    ]
    assert pool.skipped == (
        "5 of 11: 2 not a file, 1 broken link, 1 link to a folder read already, 1 unreadable"
    )


def test_a_file_that_becomes_a_pipe_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    info = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda self, **_: info)
    with pytest.raises(image_file.Unusable, match="not a file"):
        decode(path)


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_what_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    (tmp_path / "x.png").chmod(0)
    with pytest.raises(image_file.Unusable, match="unreadable"):
        decode(tmp_path / "x.png")


def test_names_that_act_or_are_no_text(tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"new\nline.png", b"\x1b[2J.png", "\u202egnp.png".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(PNG)
    pool = draw(tmp_path, 9)
    assert len(names(pool)) == 4
    assert not acting("".join(names(pool)))
    assert "".join(names(pool)).encode()


def test_thousands_of_files_are_tried_only_as_far_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3000):
        (tmp_path / f"{n}.png").write_bytes(PNG if n % 2 else b"x")
    tried = []
    own = image_file.read
    monkeypatch.setattr(image_file, "read", lambda path: tried.append(path) or own(path))
    pool = draw(tmp_path, 20)
    assert len(pool.indices) == 20
    assert len(tried) < 100
    assert pool.skipped == f"{len(tried) - 20} of {len(tried)}: {len(tried) - 20} not an image"


@fuzz(150)
@given(data=st.data())
def test_damaged_files(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pixels, or a reason in few words: no exception of a decoder's, no hang."""
    bodies = [*USED.values(), *(body for body, _ in SKIPPED.values())]
    body = bytearray(data.draw(st.sampled_from(bodies)))
    for _ in range(data.draw(st.integers(1, 8))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(body)))
    path = tmp_path_factory.getbasetemp() / "fuzz.jpg"
    path.write_bytes(bytes(body) if data.draw(st.booleans()) else bytes(body[:end]))
    try:
        pixels = decode(path)
    except image_file.Unusable as error:
        reason = str(error)
        assert len(reason) < 25, reason
    else:
        assert pixels.size <= 3 * 5 * image_file.KEPT_PIXELS


# ------------------------------------------------------------------------------ the whole run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pics"
    made.mkdir()
    for n in range(12):
        Image.fromarray(np.roll(NOISE, n, axis=0)).save(made / f"{n}.png")
    return made


def test_a_run_says_what_it_left_out_and_why(
    folder: Path, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    for name in ("cut.jpg", "words.jpg", "bomb.png"):
        (folder / name).write_bytes(SKIPPED[name][0])
    said = "images skipped: 3 of 15: 1 not an image, 1 too large, 1 truncated"
    suite, run = write_suite(batch_size="[1]"), tmp_path / "run"
    code, out, err = gpubench("run", suite, "--images", folder, "-o", run, "--cache-dir", cache_dir)
    assert code == 0, err
    assert said in " ".join(out.split())
    file = read(run)
    why = "the pictures lie in no sub-folder that is a class, and no file of labels was given"
    assert file.notes == [said, f"no accuracy: {why}"]
    assert {r.facts["images_skipped"] for r in file.records} == {said.partition(": ")[2]}
    for form in ("text", "md", "html", "json"):
        _, out, _ = gpubench("report", run, "-f", form)
        assert {said in " ".join(out.split()), why in " ".join(out.split())} == {True}, form


def test_a_mended_folder_says_so(
    folder: Path, tmp_path: Path, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same usable pictures, and nothing is left out any more: no stale words of the cache."""
    work = Workload(model=str(tiny_onnx), weights="file", images=str(folder))
    pool = draw(folder, 5)
    told = []
    for skipped in ("1 of 6: 1 empty", ""):
        now = replace(pool, skipped=skipped)
        monkeypatch.setattr(datasets, "draw", lambda *_, now=now: now)
        path = reference.build(work, Policy(), Cache(tmp_path / "cache"))
        told.append(reference.load(path).facts.get("images_skipped", ""))
    assert told == ["1 of 6: 1 empty", ""]


def test_a_folder_of_nothing_usable_is_bad_input(
    folder: Path, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    (folder / "0.png").write_bytes(b"")
    suite = write_suite(batch_size="[1]")
    code, _, err = gpubench(
        "run", suite, "--images", folder, "-o", tmp_path / "run", "--cache-dir", cache_dir
    )
    told(code, err, folder, "found 0 usable", "Skipped 12 of 12: 11 not an image, 1 empty")


def test_the_reasons_are_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 0 usable"):
        draw(tmp_path, 5)


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "notes.txt"])
def test_a_file_that_is_no_shard_is_bad_input(
    name: str, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(b"\x1f\x8b" if name.endswith("gz") else b"words\n" * 300)
    code, _, err = gpubench(
        "run", write_suite(), "--images", file, "-o", tmp_path / "run", "--cache-dir", cache_dir
    )
    told(code, err, file, "compressed (gzip)" if name.endswith("gz") else "no tar file")


def test_labels_that_do_not_fit_are_bad_input(
    folder: Path, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    labels = tmp_path / "labels.csv"
    for text, why in (("\x1b[2J.png,1\n", "no row names a picture"), ("0.png,99\n", "are 0 to 9")):
        labels.write_text(text)
        suite = write_suite()
        given = f'images = "{folder}"\nlabels = "{labels}"'
        suite.write_text(suite.read_text().replace('images = "synthetic"', given))
        code, _, err = gpubench("run", suite, "-o", tmp_path / why, "--cache-dir", cache_dir)
        told(code, err, labels, why)

"""Tar files of pictures, from friends and from strangers: indexed where they lie, or refused."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.suite.types import Policy, Workload
from gpubench.workload import reference
from gpubench.workload.data import datasets, image_file, image_folder, webdataset
from tests.hostile.commands import fuzz

Members = dict[str, bytes | tarfile.TarInfo]


def encoded(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 8), (value, 0, 0)).save(out, "JPEG")
    return out.getvalue()


def pack(path: Path, members: Members, form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, body in members.items():
            if isinstance(body, tarfile.TarInfo):
                body.name = name
                tar.addfile(body)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return path


def of_type(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def find(path: Path) -> datasets.Pictures:
    return webdataset.find(path.parent, [path.name])


def classes(dataset: datasets.Pictures) -> dict[str, int]:
    labels = {dataset.name(i): dataset.label(i) for i in range(len(dataset))}
    return {name: int(dataset.classes[n]) if n >= 0 else -1 for name, n in labels.items()}


SHARD: Members = {
    "000.jpg": encoded(0),
    "000.cls": b"3\n",
    "001.json": b'{"label": 1, "caption": "a thing"}',
    "001.jpg": encoded(1),
    "deep/002.seg.png": b"not read",
    "deep/002.jpg": encoded(2),
    "deep/002.cls": b"2",
    "deep/002.json": b'{"cls": 9}',
    "003.jpg": encoded(3),
    "003.pyd": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
}


def test_a_shard_of_web_dataset(tmp_path: Path) -> None:
    dataset = find(pack(tmp_path / "s-0.tar", SHARD))
    assert classes(dataset) == {
        "s-0.tar/000.jpg": 3,
        "s-0.tar/001.jpg": 1,
        "s-0.tar/deep/002.jpg": 2,
        "s-0.tar/003.jpg": -1,
    }
    assert dataset.classes == ("1", "2", "3")
    assert dataset.about.skipped == {"other pictures of an example": 1}
    assert dataset.about.notes == "1 pictures have no .cls"
    assert [dataset.read(i) for i in (3, 0)] == [encoded(3), encoded(0)]


@pytest.mark.parametrize(
    ("members", "found", "skipped"),
    [
        # what belongs to a picture is no other picture
        (("x.jpg", "x.mask.png", "x.cls:1", "x.coarse.cls:0", "x.fine.cls:2"), {"x.jpg": 1}, 1),
        (("x.seg.png", "x.jpg", "x.png", "x.json:4"), {"x.jpg": 4}, 2),
        (("x.jpg", "x.meta.json:3"), {"x.jpg": -1}, 0),
        (("x.image.png", "x.mask.png", "x.cls:3"), {"x.image.png": 3}, 1),
        # names with dots, as long as nothing else has their key
        (("v1.2_a.jpg", "v1.2_a.cls:1", "v2.2_b.jpg", "v2.2_b.cls:0"),
         {"v1.2_a.jpg": 1, "v2.2_b.jpg": 0}, 0),
        (("v1.a.jpg", "v1.b.jpg", "v1.a.cls:1", "v1.b.cls:1", "y.jpg", "y.cls:0"), {"y.jpg": 0}, 2),
        (("d.1/x.jpg", "d.1/x.cls:1", "d.1/y.jpg", "d.1/y.cls:2"),
         {"d.1/x.jpg": 1, "d.1/y.jpg": 2}, 0),
        # what a Mac packs
        (("./._x.jpg", "x.jpg", "./._x.cls:9", "x.cls:1", "__MACOSX/x.jpg"), {"x.jpg": 1}, 0),
        # numbers as others write them
        (("x.jpg", "x.cls:3.0", "y.jpg", "y.json:07.0", "z.jpg", "z.cls:007"),
         {"x.jpg": 3, "y.jpg": 7, "z.jpg": 7}, 0),
        # a text that is a class, or a caption
        (("x.jpg", "x.txt:10\n", "y.jpg", "y.txt:2 dogs", "z.jpg", "z.txt:1", "z.cls:4"),
         {"x.jpg": 10, "y.jpg": -1, "z.jpg": 4}, 0),
    ],
)  # fmt: skip
def test_a_key_is_one_example(
    members: tuple[str, ...], found: dict[str, int], skipped: int, tmp_path: Path
) -> None:
    packed: Members = {}
    for i, (name, _, said) in enumerate(member.partition(":") for member in members):
        body = b'{"cls": "%s"}' % said.encode() if name.endswith(".json") else said.encode()
        packed[name] = body if said else encoded(i)
    dataset = find(pack(tmp_path / "s.tar", packed))
    assert classes(dataset) == {f"s.tar/{name}": label for name, label in found.items()}
    assert sum(dataset.about.skipped.values()) == skipped


def test_two_classes_of_one_key_are_refused(tmp_path: Path) -> None:
    shard: Members = {}
    for i in range(3):
        shard |= {f"v1.2_{i}.jpg": encoded(i), f"v1.2_{i}.cls": b"%d" % i}
    why = r"'v1.2_0.cls' and 'v1.2_1.cls' have one key, 's.tar/v1' \(all before the first dot"
    with pytest.raises(InputError, match=why):
        find(pack(tmp_path / "s.tar", shard))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_format(tmp_path: Path, form: int) -> None:
    name = f"{'d' * 90}/{'k' * 60}"
    members: Members = {f"{name}.jpg": encoded(1), f"{name}.cls": b"0"}
    dataset = find(pack(tmp_path / "s.tar", members, form))
    assert dataset.name(0) == f"s.tar/{name}.jpg"
    assert (dataset.label(0), dataset.read(0)) == (0, encoded(1))


def test_a_folder_of_shards_is_kept_as_places(
    tmp_path: Path, cache: Cache, tiny_onnx: Callable[..., Path]
) -> None:
    for n in range(3):
        members: Members = {}
        for i in range(2):
            members |= {f"{i}.jpg": encoded(n * 2 + i), f"{i}.cls": str(n).encode()}
        pack(tmp_path / "in" / f"s-{n}.tar", members)
    work = Workload(model=str(tiny_onnx(classes=5)), weights="file", images=str(tmp_path / "in"))
    made = reference.load(reference.build(work, Policy(), cache))
    dataset = made.dataset()
    assert [dataset.label(i) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert sorted(made.labels) == [0, 0, 1, 1, 2, 2]
    assert made.classes == ()  # of five, which have numbers only
    for i in range(6):
        assert dataset.read(i) == encoded(i)
        assert dataset.read(i) == made.encoded(made.names.index(dataset.name(i)))
    (tmp_path / "in" / "s-1.tar").write_bytes(b"short")
    (tmp_path / "in" / "s-2.tar").unlink()
    for index, why in ((2, "truncated"), (5, "no such file")):
        with pytest.raises(image_file.Unusable, match=why):
            dataset.read(index)


def test_shards_bring_their_own_labels(tmp_path: Path) -> None:
    pack(tmp_path / "in" / "s.tar", SHARD)
    with pytest.raises(InputError, match="bring theirs"):
        image_folder.find(tmp_path / "in", tmp_path / "x.csv")


# ------------------------------------------------------------------------------ strangers'


def test_what_is_no_file_in_it_is_left_out(tmp_path: Path) -> None:
    members: Members = {
        "/etc/absolute.jpg": encoded(1),
        "../../up.jpg": encoded(2),
        "soft.jpg": of_type(tarfile.SYMTYPE),
        "hard.jpg": of_type(tarfile.LNKTYPE),
        "pipe.jpg": of_type(tarfile.FIFOTYPE),
        "device.png": of_type(tarfile.CHRTYPE),
        "folder.jpg": of_type(tarfile.DIRTYPE),
        "\x1b[2J.jpg": encoded(3),
        "empty.jpg": b"",
    }
    dataset = find(pack(tmp_path / "in" / "s.tar", members))
    assert dataset.about.skipped == {"link in an archive": 2, "not a file": 3}
    assert [dataset.name(i) for i in range(4)] == [
        "s.tar//etc/absolute.jpg",
        "s.tar/../../up.jpg",
        "s.tar/\\x1b[2J.jpg",
        "s.tar/empty.jpg",
    ]
    assert dataset.read(1) == encoded(2)
    pool = datasets.draw(dataset, 9, 0)
    assert pool.skipped == "6 of 9: 3 not a file, 2 link in an archive, 1 empty"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "s.tar"]  # nothing was extracted


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header that says what it likes."""
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size.ljust(12, b"\0"), kind
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


GOOD = header("a.jpg", f"{len(encoded(1)):011o}".encode()) + encoded(1).ljust(1024, b"\0")
END = bytes(1024)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "empty"),
        (b"words\n" * 500, "no tar file, or damaged"),
        (encoded(1), "no tar file, or damaged"),
        (END[:100], "no tar file, or damaged"),
        (GOOD, "neither a member nor the end"),
        (GOOD[:-200], "cut off"),
        (GOOD[:600], "cut off"),
        (GOOD + GOOD[:300], "neither a member nor the end"),
        (GOOD + b"\1" * 512 + END, "neither a member nor the end"),
        (GOOD + header("b.jpg", b"77777777777") + END, "'b.jpg' is cut off"),
        (GOOD + header("b.jpg", b"\xff" + b"\xff" * 9 + b"\xf0\0") + END, "damaged"),
        (GOOD + header("x", b"77777777777", b"x") + END, "a header of a vast size"),
        (GOOD + header("x", b"77777777777", b"L") + END, "a header of a vast size"),
        (GOOD + header("x", b"\xff" * 12, b"x") + END, "damaged"),
        (GOOD + header("x", b"00000000002", b"x") * 2000 + END, "damaged"),
        (GOOD + GOOD + END, "two members are called 'a.jpg'"),
        (gzip.compress(GOOD + END), r"compressed \(gzip\).*decompress it"),
        (b"BZh91AY", r"compressed \(bzip2\)"),
        (b"\xfd7zXZ\0", r"compressed \(xz\)"),
        (b"\x28\xb5\x2f\xfd", r"compressed \(zstd\)"),
    ],
)
def test_what_is_no_good_archive_is_refused(tmp_path: Path, body: bytes, why: str) -> None:
    (tmp_path / "s.tar").write_bytes(body)
    with pytest.raises(InputError, match=why) as caught:
        find(tmp_path / "s.tar")
    assert str(caught.value).startswith(f"images '{tmp_path / 's.tar'}': ")
    assert (
        "give a folder" in str(caught.value)
        or "again" in str(caught.value)
        or ("decompress it" in str(caught.value))
    )


@pytest.mark.parametrize(
    ("name", "body", "why"),
    [
        ("a.cls", b"cat", "'a.cls' says 'cat': expected a class number"),
        ("a.cls", b"\x1b[2J", r"says '\\x1b\[2J'"),
        ("a.cls", b"", "says ''"),
        ("a.cls", b"-1", "says '-1'"),
        ("a.cls", b"9" * 5000, "says '9{40}…'"),
        ("a.json", b'{"cls": 1234567}', "says '1234567'"),
        ("a.json", bytes(2**20 + 1), "has 1,048,577 bytes"),
    ],
)
def test_what_is_no_class(tmp_path: Path, name: str, body: bytes, why: str) -> None:
    with pytest.raises(InputError, match=why):
        find(pack(tmp_path / "s.tar", {"a.jpg": encoded(1), name: body}))


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"cls": "cat"}', b"[" * 5000, b"\xff\xfe"])
def test_a_json_of_something_else_says_nothing(tmp_path: Path, body: bytes) -> None:
    dataset = find(pack(tmp_path / "s.tar", {"a.jpg": encoded(1), "a.json": body}))
    assert dataset.label(0) == -1
    assert dataset.classes == ()


@pytest.mark.parametrize(
    "body", [b"5", b'{"label": "cat", "class_id": 5}', b'{"label": 5.0, "x": 1, "y": 2}']
)
def test_where_a_json_says_the_class(tmp_path: Path, body: bytes) -> None:
    dataset = find(pack(tmp_path / "s.tar", {"a.jpg": encoded(1), "a.json": body}))
    assert dataset.classes == ("5",)


def test_sparse_members_are_no_pictures(tmp_path: Path) -> None:
    block = bytearray(header("s.jpg", b"00000001000", b"S"))
    block[386:398], block[398:410], block[483:495] = (
        b"00000000000\0", b"00000001000\0", b"77777777777\0"
    )  # fmt: skip
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    (tmp_path / "s.tar").write_bytes(GOOD + bytes(block) + bytes(512) + END)
    dataset = find(tmp_path / "s.tar")
    assert len(dataset) == 1
    assert dataset.about.skipped == {"not a file": 1}


def test_an_index_keeps_no_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100,000 members tarfile would keep 100,000 objects."""
    most = 0
    own = tarfile.TarFile.next

    def watched(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        nonlocal most
        most = max(most, len(tar.members))
        return own(tar)

    monkeypatch.setattr(tarfile.TarFile, "next", watched)
    dataset = find(pack(tmp_path / "s.tar", {f"{i}.jpg": b"x" for i in range(500)}))
    assert len(dataset) == 500
    assert most <= 1


@fuzz(100)
@given(data=st.data())
def test_damaged_archives(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An index, or one line that says what is wrong: no other exception, no hang."""
    path = tmp_path_factory.getbasetemp() / "fuzz.tar"
    form = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    body = bytearray(pack(path, SHARD | {"ü" * 150 + ".jpg": b"x"}, form).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        at = 512 * data.draw(st.integers(0, len(body) // 512 - 1))
        body[at + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):  # so that the damage passes for a header
            body[at + 148 : at + 156] = b" " * 8
            body[at + 148 : at + 156] = f"{sum(body[at : at + 512]):06o}\0 ".encode()
    path.write_bytes(bytes(body[: data.draw(st.integers(0, len(body)))]))
    with suppress(InputError):
        dataset = find(path)
        for index in range(len(dataset)):
            with suppress(image_file.Unusable):
                assert dataset.read(index)

"""Files of labels in all their forms, and what is wrong with some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec.structs import asdict
from PIL import Image

from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.suite.types import Policy, Workload
from gpubench.workload import reference
from gpubench.workload.data import label_files
from gpubench.workload.data.dataset_index import About

NAMES = ["a.jpg", "b c.jpg", "d.png"]
VAL = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (1, 2, 3)]
ABOUT = About(kind="folder", root="/there/in")
WNIDS = [f"n{i * 7919 % 10**8:08d}" for i in range(1, 1001)]


def read(tmp_path: Path, text: str | bytes, names: list[str] | None = None) -> SimpleNamespace:
    file = tmp_path / "labels.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    about, numbers = label_files.read(file, NAMES if names is None else names, ABOUT)
    return SimpleNamespace(numbers=numbers, **asdict(about))


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,2\nb c.jpg,0\nd.png,1\n",
        "file,class\na.jpg,2\nb c.jpg,0\nd.png,1\n",
        "filename;label\r\na.jpg;2\r\nb c.jpg;0\r\nd.png;1",
        "a.jpg\t2\nb c.jpg\t0\nd.png\t1\n",
        "a.jpg 2\nb c.jpg 0\n\nd.png 1\n",
        '\ufeff"d.png","1"\n./a.jpg , 2\n"b c.jpg",0\n',
        "a,2\nb c,0\nd,1\n",
        # numbers as others write them
        "file,label\na.jpg,2.0\nb c.jpg,0.0\nd.png,1.0\n",
        "a.jpg,002\nb c.jpg,000\nd.png,1\n",
        "a.jpg;2,0\nb c.jpg;0,0\nd.png;1,0\n",
        "a.jpg,2.000000000000000000e+00\nb c.jpg,0.000E+00\nd.png,1.0e+000\n",
        # line ends and marks of others
        "a.jpg 2\r\nb c.jpg 0\r\nd.png 1\r\n",
        "a.jpg,2\rb c.jpg,0\rd.png,1\r",
        "a.jpg,2,\nb c.jpg,0,\nd.png,1,\n",
        "a.jpg, 2\nb c.jpg, 0\nd.png, 1\n",
        '"a.jpg" 2\n"b c.jpg" 0\n"d.png" 1\n',
        "a.jpg|2\nb c.jpg|0\nd.png|1\n",
        # names as they are elsewhere
        "val/a.jpg 2\nval/b c.jpg 0\nval/d.png 1\n",
        "/data/x/val/a.jpg,2\n/data/x/val/b c.jpg,0\n/data/x/val/d.png,1\n",
        "/there/in/a.jpg,2\n/there/in/b c.jpg,0\n/there/in/d.png,1\n/there/out/a.jpg,9\n",
        "in/a.jpg,2\nout/a.jpg,9\nin/b c.jpg,0\nin/d.png,1\n",
        "val\\a.jpg,2\nval\\b c.jpg,0\nval\\d.png,1\n",
        # further columns
        ",file,label\n0,a.jpg,2\n1,b c.jpg,0\n2,d.png,1\n",
        "7,a.jpg,2\n3,b c.jpg,0\n9,d.png,1\n",
        "a.jpg,2,val\nb c.jpg,0,val\nd.png,1,train\n",
        "split,file,class\nval,a.jpg,2\nval,b c.jpg,0\nval,d.png,1\n",
        "2,a.jpg\n0,b c.jpg\n1,d.png\n",
        "File Name,Age,Class ID,Class Name\na.jpg,9,2,z\nb c.jpg,8,0,x\nd.png,7,1,y\n",
        "id,img1\n2,a.jpg\n0,b c.jpg\n1,d.png\n",
    ],
)
def test_rows_of_names_and_numbers(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, text)
    assert [found.classes[n] for n in found.numbers] == ["2", "0", "1"]
    assert found.notes in ("", "1 rows of labels.csv name no picture")
    assert ("out/" in text) == bool(found.notes)


def test_words_between_spaces(tmp_path: Path) -> None:
    names = ["a.jpg", "d,e.png", "1.png", "2.png"]
    assert read(tmp_path, "a.jpg 2 val\nd,e.png 0 val\n", names).classes == ("0", "2")
    assert read(tmp_path, "d,e.png 0\na.jpg 2\n", names).numbers == [1, 0, -1, -1]
    assert read(tmp_path, "1.png,2\n2.png,1\n", names).numbers == [-1, -1, 1, 0]  # stems too


def test_names_of_classes_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    found = read(tmp_path, "picture,kind\na.jpg,dog\nb c.jpg,ant\nd.png,dog\n")
    assert found.classes == ("ant", "dog")
    assert found.numbers == [1, 0, 1]


def test_what_does_not_match_is_counted(tmp_path: Path) -> None:
    found = read(tmp_path, "a.jpg,2\nelsewhere.jpg,5\ngone.jpg,0\n")
    assert found.numbers == [1, -1, -1]
    assert found.classes == ("0", "2", "5")
    assert found.notes == (
        "2 pictures have no label in labels.csv, 2 rows of labels.csv name no picture"
    )


def test_a_name_without_suffix_must_mean_one_picture(tmp_path: Path) -> None:
    found = read(tmp_path, "a,1\nd,0\n", ["a.jpg", "a.png", "d.png"])
    assert found.numbers == [-1, -1, 0]


def test_names_of_files_that_are_no_text(tmp_path: Path) -> None:
    found = read(tmp_path, b"caf\xe9.jpg,3\n", ["caf\udce9.jpg"])
    assert (found.numbers, found.classes) == ([0], ("3",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: empty"),
        ("file,class\n", "line 1: no rows below the header"),
        ("a.jpg,1\nd.png,2\na.jpg,1\n", "line 3: 'a.jpg' is named in line 1 already"),
        ("a.jpg,1\na,2\n", "line 2: 'a' is named in line 1 already, as class '1'"),
        ("val/a.jpg,1\ntrain/a.jpg,2\n", "line 2: 'train/a.jpg' is named in line 1 already, as cl"),
        ("a.jpg,31,2\nd.png,7,1\n", "3 fields, 'a.jpg, 31, 2', and no first line that calls one"),
        ("a.jpg,cat\nd.png\n", "line 2: 1 fields, 'd.png'"),
        ("img1,label\na.jpg,x\nd.png,0\n", "line 2: class 'x' is no number, but those of other"),
        ("a.jpg,nan\nd.png,1.0\n", "line 1: class 'nan' is no number"),
        ("x.jpg,1\n\x1b.jpg,2\n", "line 1: no row names a picture: 'x.jpg', the folder has 'a.j"),
        ("a.jpg,1\nd.png,\n", "line 2: 2 fields, 'd.png, '"),
        ("a.jpg,1,x\n", "line 1: 3 fields, 'a.jpg, 1, x'"),
        ("a.jpg\nd.png\n", "line 1: 1 fields, 'a.jpg'"),
        ("a.jpg,1\nd.png,1O\n", "line 2: class '1O' is no number, but those of other lines are"),
        ("a.jpg,-1\n", "line 1: 'a.jpg' says '-1': expected a class number, 0 to 99999"),
        ("a.jpg,100000\n", "line 1: 'a.jpg' says '100000': expected a class number"),
        (f"a.jpg,{'9' * 5000}\n", "line 1: 'a.jpg' says '9999"),
        ("x.jpg,1\n", "line 1: no row names a picture: 'x.jpg', the folder has 'a.jpg'"),
        ("file,class\nx.jpg,1\n", "line 2: no row names a picture: 'x.jpg'"),
        ("\x1b[2J.jpg,1\n", r"no row names a picture: '\x1b[2J.jpg'"),
        (b"\xff\xfea\0,\0", "line 1: not UTF-8 text"),
        ('"a.jpg,1\nd.png,2\n', "line 2: unexpected end of data"),
        (f"{'x' * 200_000},1\n", "line 1: field larger than field limit"),
        ("ImageId,PredictionString\na,dog 1 2 3 4\n", "line 2: 'dog' is no WordNet id"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert "expected rows of file name" in str(caught.value)
    assert len(str(caught.value)) < 5000


def test_names_are_escaped_once(tmp_path: Path) -> None:
    (tmp_path / "\x1b[2J\u202e").mkdir()
    with pytest.raises(InputError, match=r"/\\x1b\[2J\\u202e/labels.csv', line 1: empty"):
        read(tmp_path / "\x1b[2J\u202e", " \n")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "not a file"), (tmp_path / "gone", "no such file")):
        with pytest.raises(InputError, match=why):
            label_files.read(path, NAMES, ABOUT)


# ------------------------------------------------------------------------------ ImageNet


def meta(at: Path, leaves: int = 1000) -> None:
    """A meta.mat as of ILSVRC2012: numbers in another order than WordNet ids; groups of classes."""
    from scipy.io import savemat

    fields = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    order = np.random.default_rng(0).permutation(WNIDS)[:leaves]
    rows = [(i + 1, wnid, "a word", 0) for i, wnid in enumerate(order)]
    rows += [(1000 + i, f"n9{i:07d}", "a group", 3) for i in range(2)]
    savemat(at, {"synsets": np.array(rows, fields).reshape(-1, 1)})


def test_caffes_val_txt(tmp_path: Path) -> None:
    found = read(tmp_path, "".join(f"{n} {65 + i}\n" for i, n in enumerate(VAL)), VAL)
    assert [found.classes[n] for n in found.numbers] == ["65", "66", "67"]


def test_kaggles_solution(tmp_path: Path) -> None:
    rows = [f"ILSVRC2012_val_{i:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for i, wnid in
            enumerate(reversed(WNIDS), 1)]  # fmt: skip
    found = read(tmp_path, "\n".join(["ImageId,PredictionString", *rows]), VAL)
    assert found.classes == tuple(sorted(WNIDS))
    assert [found.classes[n] for n in found.numbers] == WNIDS[:-4:-1]
    assert found.notes == "997 rows of labels.csv name no picture"


def test_the_ground_truth_needs_its_own_order(tmp_path: Path) -> None:
    text = "490\n361\n171\n822\n"
    with pytest.raises(InputError, match=r"order of their own: put the kit's meta.mat beside it"):
        read(tmp_path, text, VAL)
    meta(tmp_path / "meta.mat")
    found = read(tmp_path, text, VAL)
    order = np.random.default_rng(0).permutation(WNIDS)
    assert found.classes == tuple(sorted(WNIDS))
    assert [found.classes[n] for n in found.numbers] == [order[i - 1] for i in (490, 361, 171)]
    for names, message in (
        ([*VAL, "holiday.jpg"], "4 classes, but none for 'holiday.jpg'"),
        (["ILSVRC2012_val_00000005.JPEG"], "4 classes, but none for 'ILSVRC2012_val_00000005"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path, text, names)
    with pytest.raises(InputError, match=r"line 2: 1001 is not in meta.mat"):
        read(tmp_path, "1\n1001\n", VAL[:2])


def test_a_meta_mat_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "meta.mat").write_bytes(b"MATLAB, it says")
    with pytest.raises(InputError, match=r"is not ImageNet's meta.mat \("):
        read(tmp_path, "1\n", VAL[:1])
    meta(tmp_path / "meta.mat", 999)
    with pytest.raises(InputError, match="has 999 classes, expected 1000"):
        read(tmp_path, "1\n", VAL[:1])


# ------------------------------------------------------------------------------ with a network


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for i in range(4):
        Image.new("RGB", (9, 9), (i * 40, 0, 0)).save(tmp_path / "in" / f"{i}.png")
    return tmp_path / "in"


def test_labels_of_a_file_reach_the_reference(
    flat: Path, tmp_path: Path, cache: Cache, tiny_onnx: Callable[..., Path]
) -> None:
    file = tmp_path / "labels.csv"
    work = Workload(
        model=str(tiny_onnx(classes=5)), weights="file", images=str(flat), labels=str(file)
    )
    file.write_text("0.png,3\n2.png,1\n1.png,0\n")  # numbers need not be all there are
    made = reference.load(reference.build(work, Policy(), cache))
    found = dict(zip(made.names, made.labels.tolist(), strict=True))
    assert found == {"0.png": 3, "1.png": 0, "2.png": 1, "3.png": -1}
    assert made.facts == {"labelling": "labels: 1 pictures have no label in labels.csv"}
    for text, message in (
        ("0.png,5\n1.png,0\n", "numbers from 0 to 5, and the network's 5 classes are 0 to 4"),
        ("0.png,cat\n1.png,dog\n", r"2 classes \('cat', 'dog'\), and the network has 5"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=rf"labels '.*' are not those of .*{message}"):
            reference.build(work, Policy(), cache)

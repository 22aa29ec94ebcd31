"""Files that say which class a picture of a folder has, in the forms that they come in.

- rows of file name and class, by number or by name, separated by commas, tabs, semicolons or
  spaces, with or without a header: also Caffe's and MLPerf's ``val.txt`` of ImageNet
- Kaggle's ``LOC_val_solution.csv`` of ImageNet: ImageId, PredictionString
- ImageNet's own ``ILSVRC2012_validation_ground_truth.txt``, with ``meta.mat`` beside it, because
  its numbers are in an order of their own

Names of classes are numbered in sorted order, as ImageFolder does; WordNet ids so give the numbers
that networks of ImageNet use.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from gpubench import escape
from gpubench.errors import InputError
from gpubench.workload.data import image_file
from gpubench.workload.data.dataset_index import About

MOST_CLASSES = 100_000
_MOST_BYTES = 2**27
_NUMBER = re.compile(r"[+-]?[0-9]+")
_WNID = re.compile(r"n[0-9]{8}")
_VALIDATION = re.compile(r"(?:.*/)?ILSVRC2012_val_([0-9]{8})\.\w+")
_SYNSETS = 1000
"""Classes of ImageNet's challenge; the rest of ``meta.mat`` are groups of them."""


class NoClass(Exception):
    """What was given is no number of a class."""


class _Row(Struct, frozen=True):
    line: int
    name: str
    label: str


def number(text: str, where: str) -> int:
    """A class number. Raises NoClass; ``where``: for its message."""
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) >= MOST_CLASSES:
        shown = text if len(text) < 40 else text[:40] + "…"
        raise NoClass(f"{where!r} says {shown!r}: expected a class number, 0 to {MOST_CLASSES - 1}")
    return int(text)


def read(path: Path, names: list[str], about: About) -> tuple[About, list[int]]:
    """``about`` with the file's classes; of the pictures called ``names`` the class, -1: none.

    A row may leave out the suffix of a name. Raises InputError, with the line, for what cannot be
    read, is ambiguous, or names no picture at all.
    """
    lines = _lines(path)
    places = _places(names)
    if all(len(fields) == 1 and _NUMBER.fullmatch(fields[0]) for _, fields in lines):
        rows, classes = _ground_truth(path, [fields[0] for _, fields in lines], names)
        numbered = False
    else:
        rows = _rows(path, lines, places)
        numbered = _numbered(path, rows)
        classes = tuple(sorted({row.label for row in rows}))
    if numbered:
        of_row = [_checked(path, row) for row in rows]
        classes = tuple(map(str, range(max(of_row) + 1)))
    else:
        known = {name: i for i, name in enumerate(classes)}
        of_row = [known[row.label] for row in rows]
    numbers = [-1] * len(names)
    taken: dict[int, int] = {}
    for row, label in zip(rows, of_row, strict=True):
        place = places.get(row.name.removeprefix("./"), -1)
        if place in taken:
            raise _wrong(path, row.line, f"{row.name!r} is named in line {taken[place]} already")
        if place >= 0:
            taken[place], numbers[place] = row.line, label
    if not taken:
        example = f"the folder has {names[0]!r}" if names else "the folder has none"
        what = f"no row names a picture: {rows[0].name!r}, {example}"
        raise _wrong(path, rows[0].line, what)
    shown, notes = (
        tuple(map(escape.visible, classes)),
        _notes(path, len(names), len(rows), len(taken)),
    )
    return replace(about, classes=shown, numbered=numbered, notes=notes), numbers


def _notes(path: Path, pictures: int, rows: int, matched: int) -> str:
    file = escape.visible(path.name)
    said = [f"{pictures - matched} pictures have no label in {file}"] if pictures > matched else []
    said += [f"{rows - matched} rows of {file} name no picture"] if rows > matched else []
    return ", ".join(said)


def _places(names: list[str]) -> dict[str, int]:
    """Name -> picture; also without its suffix, where that means one picture only."""
    stems: dict[str, int] = {}
    for i, name in enumerate(names):
        stem = name.rpartition(".")[0]
        stems[stem] = -1 if stem in stems else i
    return stems | {name: i for i, name in enumerate(names)}


def _wrong(path: Path, line: int, what: str) -> InputError:
    return InputError(
        f"labels {escape.visible(str(path))!r}, line {line}: {escape.line(what)}; expected rows "
        "of file name (below the images' folder) and class"
    )


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """(line, fields) of all lines that are not blank. Raises InputError."""
    try:
        with image_file.opened(path, _MOST_BYTES) as file:
            raw = file.read()
    except image_file.Unusable as error:
        raise _wrong(path, 1, f"{error}") from error
    if b"\0" in raw:
        raise _wrong(path, 1, "not UTF-8 text")
    text = raw.decode("utf-8-sig", "surrogateescape")  # names of files may be no UTF-8
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = next((mark for mark in "\t,;" if mark in first), None)
    if separator is None:
        split = ((n, line.rsplit(None, 1)) for n, line in enumerate(text.split("\n"), 1))
        found = [(n, fields) for n, fields in split if fields]
    else:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            found = [
                (reader.line_num, [field.strip() for field in fields])
                for fields in reader
                if any(field.strip() for field in fields)
            ]
        except csv.Error as error:
            raise _wrong(path, reader.line_num, str(error)) from error
    if not found:
        raise _wrong(path, 1, "empty")
    return found


def _rows(path: Path, lines: list[tuple[int, list[str]]], places: dict[str, int]) -> list[_Row]:
    kaggle = [field.lower() for field in lines[0][1]] == ["imageid", "predictionstring"]
    if kaggle or _is_header(lines[0][1][0], places):
        lines = lines[1:]
    rows = []
    for line, fields in lines:
        if len(fields) != 2 or not all(fields):
            raise _wrong(path, line, f"{len(fields)} fields, {', '.join(fields)[:80]!r}")
        label = fields[1].split()[0] if kaggle else fields[1]
        if kaggle and not _WNID.fullmatch(label):
            raise _wrong(path, line, f"{label!r} is no WordNet id, such as 'n01440764'")
        rows.append(_Row(line, fields[0], label))
    if not rows:
        raise _wrong(path, 1, "no rows below the header")
    return rows


def _is_header(first: str, places: dict[str, int]) -> bool:
    """A first field without digits that is no picture's name, nor looks like one."""
    named = Path(first).suffix.lower() in image_file.SUFFIXES or first in places
    return not named and not any(c.isdigit() for c in first)


def _numbered(path: Path, rows: list[_Row]) -> bool:
    """Whether all classes are numbers. A mixture, which a slip of the pen makes, is an error."""
    words = [row for row in rows if not _NUMBER.fullmatch(row.label)]
    if words and len(words) < len(rows):
        what = f"class {words[0].label!r} is no number, but those of other lines are"
        raise _wrong(path, words[0].line, what)
    return not words


def _checked(path: Path, row: _Row) -> int:
    try:
        return number(row.label, row.name)
    except NoClass as error:
        raise _wrong(path, row.line, str(error)) from error


# ------------------------------------------------------------------------ ImageNet's ground truth


def _ground_truth(
    path: Path, ids: list[str], names: list[str]
) -> tuple[list[_Row], tuple[str, ...]]:
    """(rows of names and WordNet ids, all ids): line n is of the picture ILSVRC2012_val_n."""
    meta = path.with_name("meta.mat")
    if not meta.exists():
        raise InputError(
            f"labels {escape.visible(str(path))!r}: numbers without names. If it is the ground "
            "truth of ImageNet's development kit, its numbers are in an order of their own: put "
            "the kit's meta.mat beside it, or give rows of file name and class (val.txt, "
            "LOC_val_solution.csv)"
        )
    wnids = _synsets(meta)
    rows = []
    for name in names:
        found = _VALIDATION.fullmatch(name)
        line = int(found[1]) if found else 0
        if not 1 <= line <= len(ids):
            what = f"{len(ids)} classes, but none for {name!r}: expected ILSVRC2012_val_00000001 …"
            raise _wrong(path, max(1, min(line, len(ids))), what)
        rows.append(_Row(line, name, wnids.get(ids[line - 1], "")))
        if not rows[-1].label:
            raise _wrong(path, line, f"{ids[line - 1]} is not in meta.mat")
    return rows, tuple(sorted(wnids.values()))


def _synsets(meta: Path) -> dict[str, str]:
    """Number in the development kit -> WordNet id, of the classes without sub-classes.

    The layout is that which torchvision's ``parse_meta_mat`` reads.
    """
    from scipy.io import loadmat

    try:
        with image_file.opened(meta, _MOST_BYTES) as file:
            table = loadmat(io.BytesIO(file.read()), squeeze_me=True)["synsets"]
        leaves = [row for row in table if int(row["num_children"]) == 0]
        found = {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in leaves}
    except Exception as error:  # whatever a reader trips over in bytes from a stranger
        what = escape.line(str(error) or repr(error))
        raise InputError(
            f"labels: {escape.visible(str(meta))!r} is not ImageNet's meta.mat ({what}); take it "
            "from the development kit (ILSVRC2012_devkit_t12/data)"
        ) from error
    if len(found) != _SYNSETS or not all(map(_WNID.fullmatch, found.values())):
        raise InputError(
            f"labels: {escape.visible(str(meta))!r} has {len(found)} classes, expected {_SYNSETS} "
            "WordNet ids; take it from the development kit (ILSVRC2012_devkit_t12/data)"
        )
    return found

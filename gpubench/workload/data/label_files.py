"""Files that say which class a picture of a folder has, in the forms that they come in.

- rows of file name and class, by number or by name, separated by commas, tabs, semicolons or
  spaces, with or without a header: also Caffe's and MLPerf's ``val.txt`` of ImageNet. Names may be
  those of another folder (``val/``, or absolute); an index and a column that says train or val are
  passed over, and where more are left the header says which is the class
- Kaggle's ``LOC_val_solution.csv`` of ImageNet: ImageId, PredictionString
- ImageNet's own ``ILSVRC2012_validation_ground_truth.txt``, with ``meta.mat`` beside it, because
  its numbers are in an order of their own

What classes are called stays as it is: `gpubench.workload.reference` knows which of a network's
they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from gpubench import escape
from gpubench.errors import InputError
from gpubench.workload.data import image_file
from gpubench.workload.data.dataset_index import About

MOST_CLASSES = 100_000
_MOST_BYTES = 2**27
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.0*|,0)?")  # pandas writes 3.0 where a column has gaps
_PRINTED = re.compile(r"[+-]?[0-9]\.[0-9]{1,20}[eE][+-][0-9]{2,3}")  # as numpy.savetxt does
WNID = re.compile(r"n[0-9]{8}")
_VALIDATION = re.compile(r"(?:.*/)?ILSVRC2012_val_([0-9]{8})\.\w+")
SYNSETS = 1000
"""Classes of ImageNet's challenge; the rest of ``meta.mat`` are groups of them."""
PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "eval"})
"""What the parts of a data set are called."""
_DEEPEST = 32
"""Folders that may be taken off a name."""
HEADERS = ("labelid", "classid", "classidx", "classindex", "targetid", "categoryid", "labelidx",
           "target", "label", "labels", "class", "cls", "category", "y")  # fmt: skip
"""Of the column of classes, the surest first; `plain`."""


class NoClass(Exception):
    """What was given is no number of a class."""


class _Row(Struct, frozen=True):
    line: int
    name: str
    label: str


def is_number(text: str) -> bool:
    """Whether it says a number, perhaps one that no class can have."""
    printed = _PRINTED.fullmatch(text) is not None and float(text).is_integer()
    return printed or _NUMBER.fullmatch(text) is not None


def plain(header: str) -> str:
    """Without case, spaces and underscores."""
    return re.sub(r"[\s_-]", "", header).lower()


def value(text: str) -> int:
    """Of what `is_number`."""
    return int(Decimal(text.replace(",", ".")))


def number(text: str, where: str) -> int:
    """A class number. Raises NoClass; ``where``: for its message."""
    if not is_number(text) or not 0 <= value(text) < MOST_CLASSES:
        shown = text if len(text) < 40 else text[:40] + "…"
        raise NoClass(f"{where!r} says {shown!r}: expected a class number, 0 to {MOST_CLASSES - 1}")
    return value(text)


def read(path: Path, names: list[str], about: About) -> tuple[About, list[int]]:
    """``about`` with the file's classes; which of them each picture called ``names`` has, -1: none.

    A row may leave out the suffix of a name. Raises InputError, with the line, for what cannot be
    read, is ambiguous, or names no picture at all.
    """
    text = _text(path)
    lines = [line.strip() for _, line in _lines(text) if line.strip()]
    if not lines:
        raise _wrong(path, 1, "empty")
    if all(map(is_number, lines)):
        rows, classes = _ground_truth(path, lines, names)
        places = list(range(len(names)))
    else:
        rows, places = _rows(path, text, lines[0], _Places(names, about.root))
        rows = _numbered(path, rows)
        classes = tuple(sorted({row.label for row in rows}))
    known = {name: i for i, name in enumerate(classes)}
    numbers = [-1] * len(names)
    taken: dict[int, _Row] = {}
    for row, place in zip(rows, places, strict=True):
        if place in taken:
            before = taken[place]
            other = "" if before.label == row.label else f", as class {before.label!r}"
            raise _wrong(
                path, row.line, f"{row.name!r} is named in line {before.line} already{other}"
            )
        if place >= 0:
            taken[place], numbers[place] = row, known[row.label]
    if not taken:
        example = f"the folder has {names[0]!r}" if names else "the folder has none"
        what = f"no row names a picture: {rows[0].name!r}, {example}"
        raise _wrong(path, rows[0].line, what)
    notes = _notes(path, len(names), len(rows), len(taken))
    return replace(about, classes=tuple(map(escape.visible, classes)), notes=notes), numbers


def _notes(path: Path, pictures: int, rows: int, matched: int) -> str:
    file = escape.visible(path.name)
    said = [f"{pictures - matched} pictures have no label in {file}"] if pictures > matched else []
    said += [f"{rows - matched} rows of {file} name no picture"] if rows > matched else []
    return ", ".join(said)


class _Places:
    """Which picture the name in a row means."""

    def __init__(self, names: list[str], root: str) -> None:
        """``names``: of the pictures, below the folder ``root``."""
        self.full = {name: i for i, name in enumerate(names)}
        self._stems: dict[str, int] = {}
        for i, name in enumerate(names):
            stem = name.rpartition(".")[0]
            self._stems[stem] = -1 if stem in self._stems else i
        parts = Path(root).absolute().as_posix().split("/")
        self._tops = ["/".join(parts[n:]) + "/" for n in range(len(parts))]

    def of(self, name: str) -> int:
        """-1: none; without its suffix only where that means one picture."""
        return self.full.get(name, self._stems.get(name, -1))

    def readings(self, column: tuple[str, ...]) -> Iterator[list[str]]:
        """The names of a column in all ways that they may be meant, the likeliest first.

        As they are; below the images' folder, or below its parents; with ever fewer folders.
        """
        names = [name.removeprefix("./") for name in column]
        yield names
        names = [name.replace("\\", "/") for name in names]
        yield [
            next((name[len(top) :] for top in self._tops if name.startswith(top)), name)
            for name in names
        ]
        for _ in range(min(max(name.count("/") for name in names), _DEEPEST)):
            names = [name.partition("/")[2] or name for name in names]
            yield names

    def found(self, column: tuple[str, ...]) -> list[int]:
        """The picture that each name of a column means; -1: none."""
        for names in self.readings(column):
            places = [self.of(name) for name in names]
            if max(places) >= 0:
                break
        return places


def _wrong(path: Path, line: int, what: str) -> InputError:
    return InputError(
        f"labels {str(path)!r}, line {line}: {escape.line(what)}; expected rows "
        "of file name (below the images' folder) and class"
    )


def _text(path: Path) -> str:
    try:
        with image_file.opened(path, _MOST_BYTES) as file:
            raw = file.read()
    except image_file.Unusable as error:
        raise _wrong(path, 1, f"{error}") from error
    if b"\0" in raw:
        raise _wrong(path, 1, "not UTF-8 text")
    return raw.decode("utf-8-sig", "surrogateescape")  # names of files may be no UTF-8


def _rows(path: Path, text: str, first: str, known: _Places) -> tuple[list[_Row], list[int]]:
    """The rows, and the picture of each: separated by the likeliest mark with which one is named.

    ``first``: the first line. Raises InputError as the likeliest of all does.
    """
    likeliest: tuple[list[_Row], list[int]] | InputError | None = None
    for mark in [mark for mark in "\t,;|" if mark in first] + ["", " "]:
        try:
            found = _columns(path, _fields(path, text, mark), known)
        except InputError as error:
            likeliest = likeliest or error
        else:
            if max(found[1]) >= 0:
                return found
            likeliest = likeliest or found
    if isinstance(likeliest, tuple):
        return likeliest
    raise likeliest or _wrong(path, 1, "empty")


def _fields(path: Path, text: str, mark: str) -> list[tuple[int, list[str]]]:
    """(line, fields) of all lines that are not blank. Raises InputError.

    ``mark`` " ": every word is a field; "": the last, and all before it.
    """
    if not mark.strip(" "):
        split = ((n, s.rsplit(None, -1 if mark else 1)) for n, s in _lines(text))
        return [(n, [field.strip('"') for field in fields]) for n, fields in split if fields]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    try:
        return [
            (reader.line_num, [field.strip() for field in fields])
            for fields in reader
            if any(field.strip() for field in fields)
        ]
    except csv.Error as error:
        raise _wrong(path, reader.line_num, str(error)) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return enumerate(re.split(r"\r\n|\r|\n", text), 1)


def _columns(
    path: Path, lines: list[tuple[int, list[str]]], known: _Places
) -> tuple[list[_Row], list[int]]:
    """(rows, the picture of each). Raises InputError where it is not clear which field is what."""
    width = len(lines[0][1])
    for line, fields in lines:
        if len(fields) != width or width < 2:
            raise _unclear(path, line, fields)
    kaggle = [field.lower() for field in lines[0][1]] == ["imageid", "predictionstring"]
    columns = list(zip(*(fields for _, fields in lines), strict=True))
    at, places = _names(columns, known)
    header: list[str] = []
    if kaggle or _has_header(columns, at, places):
        header, lines, places = lines[0][1], lines[1:], places[1:]
    if not lines:
        raise _wrong(path, 1, "no rows below the header")
    of = _classes(path, lines, header, at)
    rows = []
    for line, fields in lines:
        if not (fields[at] and fields[of]):
            raise _unclear(path, line, fields)
        label = fields[of].split()[0] if kaggle else fields[of]
        if kaggle and not WNID.fullmatch(label):
            raise _wrong(path, line, f"{label!r} is no WordNet id, such as 'n01440764'")
        rows.append(_Row(line, fields[at], label))
    return rows, places


def _unclear(path: Path, line: int, fields: list[str], why: str = "") -> InputError:
    return _wrong(path, line, f"{len(fields)} fields, {', '.join(fields)[:80]!r}{why}")


def _names(columns: list[tuple[str, ...]], known: _Places) -> tuple[int, list[int]]:
    """(the column that names most pictures, the picture of each line)."""
    found = [known.found(column) for column in columns]
    # Numbers may be names without a suffix, so that what looks like a name goes first.
    scores = [
        (sum(map(_is_picture, column)), sum(place >= 0 for place in places))
        for column, places in zip(columns, found, strict=True)
    ]
    at = scores.index(max(scores))
    return at, found[at]


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in image_file.SUFFIXES


def _has_header(columns: list[tuple[str, ...]], at: int, places: list[int]) -> bool:
    """Whether the first line names no picture, nor looks like it, and differs from the others."""
    first, *others = columns[at]
    if places[0] >= 0 or _is_picture(first):
        return False
    if not any(c.isdigit() for c in first):
        return True
    named = [place >= 0 or _is_picture(n) for n, place in zip(others, places[1:], strict=True)]
    numbers = (not is_number(c[0]) and all(map(is_number, c[1:])) for c in columns)
    return bool(others) and (all(named) or any(numbers))


def _classes(path: Path, lines: list[tuple[int, list[str]]], header: list[str], at: int) -> int:
    """The column that says the class, beside the names in column ``at``. Raises InputError."""
    columns = list(zip(*(fields for _, fields in lines), strict=True))
    left = [i for i, column in enumerate(columns) if i != at and any(column)]
    if len(left) > 1:
        called = list(map(plain, header))
        said = [called.index(word) for word in HEADERS if word in called]
        left = [i for i in said if i in left][:1] or [
            i
            for i in left
            if not {word.lower() for word in columns[i]} <= PARTS
            and not (
                i < at and all(map(is_number, columns[i])) and len({*columns[i]}) == len(lines)
            )
        ]
    if len(left) != 1:
        why = ", and no first line that calls one of them 'label'" if len(columns) > 2 else ""
        raise _unclear(path, *lines[0], why)
    return left[0]


def _numbered(path: Path, rows: list[_Row]) -> list[_Row]:
    """Where all classes are numbers, as they are written shortest. A mixture, which a slip of the
    pen makes, is an error."""
    words = [row for row in rows if not is_number(row.label)]
    if words and len(words) < len(rows):
        what = f"class {words[0].label!r} is no number, but those of other lines are"
        raise _wrong(path, words[0].line, what)
    return rows if words else [replace(row, label=str(_checked(path, row))) for row in rows]


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
            f"labels {str(path)!r}: numbers without names. If it is the ground "
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
            f"labels: {str(meta)!r} is not ImageNet's meta.mat ({what}); take it "
            "from the development kit (ILSVRC2012_devkit_t12/data)"
        ) from error
    if len(found) != SYNSETS or not all(map(WNID.fullmatch, found.values())):
        raise InputError(
            f"labels: {str(meta)!r} has {len(found)} classes, expected {SYNSETS} "
            "WordNet ids; take it from the development kit (ILSVRC2012_devkit_t12/data)"
        )
    return found

"""Folders of pictures: a sub-folder per class, a file of labels, neither; or of tar shards."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from gpubench import escape
from gpubench.errors import InputError
from gpubench.workload.data import image_file, label_files, webdataset
from gpubench.workload.data.dataset_index import About, Pictures


def find(root: Path, label_file: Path | None = None) -> Pictures:
    """The pictures below ``root``; where there are none, those in its tar files.

    Without ``label_file`` every sub-folder is a class, in sorted order, as in ImageFolder; not
    where pictures lie at the top, or the sub-folders are the parts of a data set, and the notes
    say so. Raises InputError as `label_files.read` and `webdataset.find` do.
    """
    names, archives, skipped = image_file.find(root)
    if archives and not names:
        if label_file is not None:
            raise InputError(
                f"labels {str(label_file)!r}: only for a folder of pictures; the tar files in "
                f"{str(root)!r} bring theirs (.cls)"
            )
        return webdataset.find(root, archives)
    if archives:
        skipped["archive beside pictures"] += len(archives)
    about = About(kind="folder", root=str(root), skipped=dict(skipped))
    if label_file is None:
        about, numbers = _by_folder(about, root, names)
    else:
        about, numbers = label_files.read(label_file, names, about)
    return Pictures.of(about, names, numbers, [_size(root / name) for name in names])


def _by_folder(about: About, root: Path, names: list[str]) -> tuple[About, list[int]]:
    tops = [name.partition("/")[0] for name in names]
    beside = [name for name in names if "/" not in name]
    notes = ""
    if len(beside) == len(names):
        notes = "the pictures lie in no sub-folder that is a class, and no file of labels was given"
    elif beside:
        few = f"{len(beside)} of {len(names)} pictures lie beside the sub-folders"
        notes = f"{few}, as {beside[0]!r} does; put it into that of its class, or elsewhere"
    elif {top.lower() for top in tops} <= label_files.PARTS:
        parts = ", ".join(map(repr, dict.fromkeys(tops)))
        notes = f"{parts}: parts of a data set, not classes; give one of them as images"
    if notes:
        return replace(about, notes=notes), [-1] * len(names)
    classes = tuple(
        sorted(p.name for p in root.iterdir() if p.is_dir() if image_file.meant(p.name))
    )
    number = {name: i for i, name in enumerate(classes)}
    return replace(about, classes=tuple(map(escape.visible, classes))), [number[t] for t in tops]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a broken link; whoever reads it will say so
        return -1

"""Folders of pictures: a sub-folder per class, a file of labels, neither; or of tar shards."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from gpubench import escape
from gpubench.errors import InputError
from gpubench.workload.data import image_file, label_files, webdataset
from gpubench.workload.data.dataset_index import About, Pictures

_ARCHIVES = frozenset({".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst"})


def find(root: Path, label_file: Path | None = None) -> Pictures:
    """The pictures below ``root``; where there are none, those in its tar files.

    Without ``label_file`` every sub-folder is a class, in sorted order, as in ImageFolder; a
    picture at the top means that none is. Raises InputError as
    `label_files.read` and `webdataset.find` do.
    """
    found, skipped = image_file.find(root, image_file.SUFFIXES | _ARCHIVES)
    packed = [name for name in found if Path(name).suffix.lower() in _ARCHIVES]
    names = [name for name in found if Path(name).suffix.lower() in image_file.SUFFIXES]
    archives = [
        n for n in packed if n.lower().endswith(".tgz") or ".tar" in Path(n.lower()).suffixes
    ]
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
    if not names or any("/" not in name for name in names):
        return about, [-1] * len(names)
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir()))
    number = {name: i for i, name in enumerate(classes)}
    found = [number[name.partition("/")[0]] for name in names]
    return replace(about, classes=tuple(map(escape.visible, classes))), found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a broken link; whoever reads it will say so
        return -1

"""Folders of pictures: one per class, as torchvision's ImageFolder has it, or all in one."""

from __future__ import annotations

from pathlib import Path

from gpubench.workload import pictures
from gpubench.workload.listing import About, Pictures, Texts


def find(root: Path) -> Pictures:
    """The pictures below ``root``, labelled by its sub-folders in sorted order.

    As in ImageFolder every sub-folder is a class; a picture at the top means that none is.
    """
    import numpy as np

    names, skipped = pictures.find(root)
    flat = any("/" not in name for name in names)
    classes = () if flat else tuple(sorted(p.name for p in root.iterdir() if p.is_dir()))
    number = {name: i for i, name in enumerate(classes)}
    labels = [-1 if flat else number[name.partition("/")[0]] for name in names]
    return Pictures(
        About(kind="folder", root=str(root), classes=classes, skipped=dict(skipped)),
        Texts.of(names),
        np.array(labels, np.int32),
        np.array([_size(root / name) for name in names], np.int64),
        np.empty((0, 2), np.int64),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a broken link; whoever reads it will say so
        return -1

"""Whether the classes of a data set are those of a network, and what they are called."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gpubench.errors import InputError

if TYPE_CHECKING:
    from gpubench.workload.listing import About
    from gpubench.workload.models import Model

_WNID = re.compile(r"n[0-9]{8}")
_IMAGENET = 1000
"""Classes of the only data set whose names of classes torchvision has."""


def meaningful(about: About, model: Model, label_file: str) -> bool:
    """Whether the labels of a data set number the classes of this network.

    Digits do for a network of digits only; those of a folder do for any other when there are as
    many classes as the network has, as the folders of ImageNet's validation set. Classes that are
    numbers already are the network's own, and all of them need not occur. Raises InputError where
    ``label_file`` was given to no use.
    """
    classes, wanted = len(about.classes), model.num_classes
    fits = classes <= wanted if about.numbered and classes else classes == wanted
    if label_file and not (fits and model.label_source == about.kind):
        known = "none that files can label" if model.label_source != about.kind else f"{wanted}"
        raise InputError(
            f"labels {label_file!r}: {classes} classes, but the network has {known} "
            f"({model.name}, weights {model.weights!r}); numbers count from 0, names must be of "
            "all its classes. Give labels and weights that belong together, or leave labels out"
        )
    return fits and model.label_source == about.kind


def names(own: tuple[str, ...], model: Model) -> tuple[str, ...]:
    """Names of the network's classes: those of its data set, or of ImageNet where they say more.

    (): they have none that is known.
    """
    said = any(not (name.isdigit() or _WNID.fullmatch(name)) for name in own)
    if said or model.is_onnx or model.label_source != "folder" or model.num_classes != _IMAGENET:
        return own if len(own) == model.num_classes else ()  # numbers may be fewer
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)

"""The network a workload names: torchvision's or our own, with weights, or an ONNX file."""

from __future__ import annotations

import difflib
import importlib.util
import re
from abc import ABC, abstractmethod
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.errors import InputError
from gpubench.workload import digits, networks
from gpubench.workload.cache import Cache, content, digest
from gpubench.workload.networks import load_module

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from gpubench.suite import Workload
    from gpubench.workload.preprocess import Spec

__all__ = ["Model", "load_module", "names", "resolve"]

_REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_ENUM = re.compile(r"[A-Z][A-Z0-9_]*")
KEYWORDS = ("probe", "random")
"""Weights that are made here."""
BATCH = 16
"""Images at a time for `Model.answers`."""


@cache
def names() -> tuple[str, ...]:
    """`digits`, and all of torchvision's classification models, sorted.

    Torchvision's are read from its source, not imported.
    """
    spec = importlib.util.find_spec("torchvision")
    found = {digits.NAME}
    for root in (spec and spec.submodule_search_locations) or ():
        for file in Path(root, "models").glob("*.py"):
            found.update(_REGISTERED.findall(file.read_text(encoding="utf-8")))
    return tuple(sorted(found))


class Model(ABC):
    """A network, cheap until asked; whatever is slow is made once, in the cache."""

    name: str
    weights: str
    is_onnx: bool

    @property
    @abstractmethod
    def identity(self) -> str:
        """SHA-256 of what it computes: architecture and weights."""

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """How an image becomes its input."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Logits per image."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image: (3, H, W)."""
        return (3, self.spec.crop, self.spec.crop)

    @property
    def label_source(self) -> str | None:
        """The image source whose labels its classes are: a name of SOURCES, 'folder', or None."""
        return "folder"

    @property
    def precision(self) -> str:
        """The coarsest that it brings itself: what int8 is made of."""
        return "fp32"

    @property
    def fixed_batch(self) -> int | None:
        """The one batch size that its file has; None: any."""
        return None

    @abstractmethod
    def state(self) -> Path:
        """The cache entry that `load_module` reads. InputError for an ONNX file."""

    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The network: fp32, eval, on the CPU. InputError for an ONNX file."""

    @abstractmethod
    def onnx(self, precision: str, batch: int | None = None) -> Path:
        """Its ONNX file in the cache; ``batch`` None: any batch size.

        Input and output have the precision's type; fp32, tf32 and amp share one file, in fp32.
        Raises InputError for a precision or a batch size that it cannot have.
        """

    @property
    @abstractmethod
    def engine(self) -> str:
        """What computes `answers`."""

    @abstractmethod
    def answers(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reference logits (N, classes) float32 of preprocessed images (N, 3, H, W), on the CPU."""


class TorchModel(Model):
    """A torchvision network, or `digits`, with weights."""

    is_onnx = False
    engine = "torch-eager fp32"

    def __init__(self, name: str, weights: str, cache: Cache) -> None:
        self.name, self.weights, self._cache = name, weights, cache

    @property
    def identity(self) -> str:
        return content(self._entry)

    @cached_property
    def _card(self) -> networks.Card:
        return networks.card(self._entry)

    @property
    def spec(self) -> Spec:
        return self._card.spec

    @property
    def num_classes(self) -> int:
        return self._card.num_classes

    @property
    def label_source(self) -> str | None:
        trained = "digits" if self.name == digits.NAME else "folder"
        return {"probe": "digits", "random": None}.get(self.weights, trained)

    def state(self) -> Path:
        return self._entry

    @cached_property
    def _entry(self) -> Path:
        file = None if self.weights in KEYWORDS else Path(self.weights).expanduser()
        recipe = {
            "format": networks.FORMAT,
            "model": self.name,
            "weights": digest(file) if file and file.is_file() else self.weights,
            "torch": version("torch"),
            "torchvision": version("torchvision"),
        }
        return self._cache.get_or_make(
            "weights", recipe, lambda at: networks.make(self.name, self.weights, at)
        )

    def module(self) -> torch.nn.Module:
        return load_module(self.state())

    def onnx(self, precision: str, batch: int | None = None) -> Path:
        from gpubench.workload import export

        return export.onnx(self._cache, self.state(), precision, batch)

    def answers(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np
        import torch

        module = self.module()
        parts = (images[at : at + BATCH] for at in range(0, len(images), BATCH))
        with torch.inference_mode():
            return np.concatenate([module(torch.from_numpy(part)).numpy() for part in parts])


def resolve(workload: Workload, cache: Cache) -> Model:
    """The workload's network. Raises InputError, naming the nearest name, when there is none."""
    name, weights = workload.model, workload.weights
    if name.endswith(".onnx"):
        from gpubench.workload.onnxfile import OnnxModel

        return OnnxModel(Path(name).expanduser(), cache)
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"unknown model {name!r}: {hint}`gpubench list models` shows those there are; "
            "a path ending in .onnx is taken as a file"
        )
    known = weights in KEYWORDS or Path(weights).expanduser().is_file()
    if not known and not _ENUM.fullmatch(weights):
        raise InputError(
            f"weights {weights!r}: no such file; give 'probe', 'random', the path of a state "
            "dict, or one of torchvision's names, for example 'DEFAULT'"
        )
    if name == digits.NAME and not known:
        raise InputError(
            f"weights {weights!r}: {name} is not torchvision's; give 'probe' (its own, trained "
            "here), 'random' or the path of a state dict"
        )
    return TorchModel(name, weights, cache)

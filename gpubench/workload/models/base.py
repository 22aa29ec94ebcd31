"""What every network can be asked, wherever it is from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from gpubench.workload.data.preprocess import Inputs, Spec
    from gpubench.workload.models.outputs import Kind

BATCH = 16
"""Images at a time for `Model.answers`."""
MOST_CLASSES = 1_000_000


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
        """Of one image, in the network's own layout: (3, H, W), (H, W, 3), (1, H, W) ..."""
        return self.spec.shape

    @property
    def label_source(self) -> str | None:
        """The image source whose labels its classes are: a name of SOURCES, 'folder', or None."""
        return "folder"

    @property
    def taken(self) -> str:
        """Of weights from a file that holds more: what was taken, in words; '': all, or most."""
        return ""

    @property
    def precision(self) -> str:
        """The coarsest that it brings itself: what int8 is made of."""
        return "fp32"

    @property
    def fixed_batch(self) -> int | None:
        """The one batch size that its file has; None: any."""
        return None

    @property
    def output_kind(self) -> Kind:
        """What its answers are, as far as it says."""
        return "logits"

    @property
    def notes(self) -> list[str]:
        """What was made of it, or assumed, in words: clauses."""
        return []

    @abstractmethod
    def state(self) -> Path:
        """The cache entry that `builder.load_module` reads. InputError for an ONNX file."""

    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The network: fp32, eval, on the CPU. InputError for an ONNX file."""

    @abstractmethod
    def onnx(self, precision: str, batch: int | None = None) -> Path:
        """Its ONNX file in the cache; ``batch`` None: any batch size.

        Input and output have the precision's type; fp32, tf32 and amp share one file, in fp32.
        Raises Unsupported for a precision or a batch size that it cannot have.
        """

    @property
    @abstractmethod
    def engine(self) -> str:
        """What computes `answers`."""

    @abstractmethod
    def answers(self, images: Inputs) -> NDArray[np.float32]:
        """Reference logits (N, classes) float32 of images (N, *input_shape), on the CPU."""

    @abstractmethod
    def first_not_finite(self, image: Inputs) -> str:
        """The first layer whose output is not finite, for one image (1, *input_shape).

        '': all are, or it cannot be told.
        """


def head(module: nn.Module) -> nn.Linear | nn.Conv2d:
    """The layer that makes the logits: the last linear one, or SqueezeNet's 1x1 convolution."""
    from torch import nn

    layers = list(module.modules())
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return linear[-1] if linear else [la for la in layers if isinstance(la, nn.Conv2d)][-1]

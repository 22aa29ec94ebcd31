"""What every network can be asked, wherever it is from."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from gpubench.errors import InputError
from gpubench.workload.models import outputs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from gpubench.workload.data.preprocess import Inputs, Spec

BATCH = 16
"""Images at a time for `Model.answers`."""
_ALONE = 2
"""Images that are asked about alone, too."""
_APART = {"fp32": 0.01, "int8": 0.5}
"""Relative difference of an image's answers, alone and among others, that is no rounding; 0.1 in
other precisions. Sums in another order tip values to the next step of a quantiser: 0.15 seen."""
_AGAIN = 0.01
"""That of the same images once more."""
MOST_CLASSES = 1_000_000
ON_CPU = "build it on the CPU: gpubench moves it to the device of each cell"


def told_by(path: str) -> Any:
    """A property of `Model` that something else has: 'network.identity'."""
    return property(attrgetter(path))


class Model(ABC):
    """A network, cheap until asked; whatever is slow is made once, in the cache."""

    name: str
    weights: str
    is_onnx: bool
    class_names: tuple[str, ...] = ()
    """By number, as far as it says."""
    knows_imagenet: bool = False
    """Whether a thousand classes are ImageNet's."""
    label_source: str | None = "folder"
    """The image source whose labels its classes are: a name of SOURCES, 'folder', or None."""
    taken: str = ""
    """Of weights from a file that holds more: what was taken, in words; '': all, or most."""
    output_kind: outputs.Kind = "logits"
    """What its answers are, as far as it says."""

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
    def precision(self) -> str:
        """The coarsest that it brings itself: what int8 is made of."""
        return "fp32"

    @property
    def fixed_batch(self) -> int | None:
        """The one batch size that its file has; None: any."""
        return None

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
    def runner(self) -> Callable[[Inputs], NDArray[Any]]:
        """On the CPU: images (n, *input_shape), n being ``fixed_batch`` if any -> (n, classes)."""

    def answers(self, images: Inputs) -> NDArray[np.float32]:
        """Reference logits (N, classes) float32 of images (N, *input_shape), on the CPU.

        Raises InputError where the answer to an image is another one each time, or depends on what
        comes with it.
        """
        import numpy as np

        run, fixed = self.runner(), self.fixed_batch
        size = fixed or min(BATCH, len(images))
        parts = [np.arange(at, at + size) for at in range(0, len(images), size)]
        if not fixed:
            parts[-1] = parts[-1][parts[-1] < len(images)]
        answers = [run(images[part % len(images)]) for part in parts]  # a full last batch, if fixed
        found = np.concatenate(answers)[: len(images)].astype(np.float32)
        again, few = run(images[parts[0] % len(images)]), min(_ALONE, len(images), size)
        apart = max(self._apart(found[at], again[at]) for at in range(few))
        if apart > _AGAIN:
            raise InputError(
                f"model {self.name!r} answers the same images otherwise each time (relative "
                f"difference {apart:.2g}), so no answer of it is right: look for a dropout or "
                "a batch normalisation in training mode, or random numbers; give it in eval mode"
            )
        if size == 1:
            return found
        alone = [run(images[[at] * (fixed or 1)])[0] for at in range(few)]
        apart = max(self._apart(found[at], alone[at]) for at in range(few))
        if apart > _APART.get(self.precision, 0.1):
            raise InputError(
                f"model {self.name!r} answers an image otherwise alone than in a batch of {size} "
                f"(relative difference {apart:.2g}), so no answer of it is right: look for a batch "
                "normalisation in training mode, or a Softmax or mean over the batch; give it in "
                "eval mode"
            )
        return found

    def _apart(self, one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
        """Relative difference of two answers (classes,) to an image; 0: one is not finite."""
        import numpy as np

        with np.errstate(invalid="ignore"):
            whole = outputs.comparable(np.stack([one, other]), self.output_kind)
            rows = whole - whole.mean(axis=1, keepdims=True)
            least = 1e-3 * np.linalg.norm(whole[0])  # all alike: what is left is rounding
            size_of = np.maximum(np.linalg.norm(rows[0]), least)
            apart = np.linalg.norm(rows[1] - rows[0]) / np.maximum(size_of, 1e-30)
        return float(np.nan_to_num(apart, nan=0.0))  # whoever asks whether all is finite says so

    @abstractmethod
    def first_not_finite(self, image: Inputs) -> str:
        """The first layer whose output is not finite, for one image (1, *input_shape).

        '': all are, or it cannot be told.
        """


def of_gpu(error: BaseException) -> bool:
    """Whether it says that there is no GPU."""
    return any(word in str(error) for word in ("CUDA", "NVIDIA", "cuda"))


def worded(error: BaseException) -> str:
    """'ValueError: why', on one line, of what own code raises."""
    words = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}{words and ': '}{words}"


def unwrapped(live: Any) -> Any:
    """Without what `torch.compile` or data parallelism have put around it: backends do that."""
    torch = sys.modules.get("torch")
    while torch and isinstance(live, torch.nn.Module):
        parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
        inner = live.module if isinstance(live, parallel) else vars(live).get("_modules", {}).get(
            "_orig_mod")  # fmt: skip
        if inner is None:
            break
        live = inner
    return live


def head(module: nn.Module, classes: int = 0) -> nn.Linear | nn.Conv2d | None:
    """The layer that makes the logits: the last linear one, or SqueezeNet's 1x1 convolution.

    Of those with so many outputs, where there are any. None: there is no such layer.
    """
    from torch import nn

    layers = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    good = [part for part in layers if part.weight.shape[0] == classes] or layers
    linear = [part for part in good if isinstance(part, nn.Linear)]
    return (linear or good or [None])[-1]

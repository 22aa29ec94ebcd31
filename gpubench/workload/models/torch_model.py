"""Networks of PyTorch as the workload's model, wherever they come from."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from gpubench import plugins
from gpubench.cache import Cache, content, digest
from gpubench.errors import InputError, Unsupported
from gpubench.suite.types import weights_file
from gpubench.workload.models import builder, onnx_export
from gpubench.workload.models.base import Model, told_by
from gpubench.workload.models.onnx_model import refusal
from gpubench.workload.models.registry import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from gpubench.suite.types import Workload
    from gpubench.workload.data.preprocess import Inputs, Spec

KEYWORDS = ("probe", "random")
"""Weights that are made here."""


class Published(Struct, frozen=True):
    """Weights that a network comes with."""

    given: Any
    """An OrderedDict of tensors by name; or the network that has them."""
    spec: Spec
    arguments: dict[str, Any] = {}
    """Of the builder, besides those that it is given anyway."""


class TorchSource(Source):
    """A source whose networks are an ``nn.Module``: what `builder` asks of it.

    What follows from that is done here, for all alike.
    """

    onnx_with = onnx_export.MADE_WITH
    label_source = "folder"
    """As `Model.label_source`, of weights that are not made here."""
    random_classes = 1000
    dropped: tuple[str, ...] = ()
    """What keys of weights begin with that only training uses."""
    meta = False
    """Whether `build` needs no values, and so no time, where torch's device is ``meta``."""
    sizes: Literal["tried", "fixed", "any"] = "tried"
    """Of its networks' input, whether another than `spec` has is tried, refused, or up to them."""
    knows_imagenet = False
    """Whether a thousand classes are ImageNet's."""

    def probe(self) -> dict[str, str]:
        return plugins.installed("torch")

    def arguments(self, model: str) -> dict[str, Any]:  # noqa: ARG002
        """Of `build`, before the suite's own."""
        return {}

    def at_size(self, model: str, size: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG002
        """More of them, for a network that has to be built for the size of its input."""
        return {}

    @abstractmethod
    def build(self, model: str, classes: int, arguments: dict[str, Any]) -> torch.nn.Module:
        """The network, with weights of no meaning; ``classes`` is a wish. Raises InputError."""

    @abstractmethod
    def spec(self, workload: Workload, module: torch.nn.Module) -> Spec:
        """How pictures become its input, before what the suite says; ``module`` may be on meta."""

    def published(self, workload: Workload, arguments: dict[str, Any]) -> Published:  # noqa: ARG002
        """The weights of that name; ``arguments`` of `build`. Raises InputError for none."""
        raise InputError(
            f"weights {workload.weights!r}: {workload.model} has none of its own; give 'probe', "
            "'random' or the path of a state dict"
        )

    def fit(self, module: torch.nn.Module, spec: Spec, classes: int) -> float:
        """Make weights ``probe`` of random ones, in place; returns their accuracy on digits."""
        from gpubench.workload.models import probe_weights

        return probe_weights.fit(module, spec, classes)

    def classes(self, workload: Workload) -> tuple[str, ...]:  # noqa: ARG002
        """Names of its classes by number, as far as it says."""
        return ()

    def batch(self, module: torch.nn.Module) -> int:  # noqa: ARG002
        """The only batch size that it takes; 0: any."""
        return 0

    def files(self, model: str) -> dict[str, str]:  # noqa: ARG002
        """SHA-256, by path, of the user's files that it is made of."""
        return {}

    def recipe(self, workload: Workload) -> dict[str, Any]:
        """Whatever else than the words of the suite decides about it."""
        return {"files": self.files(workload.model)}

    def model(self, workload: Workload, cache: Cache) -> TorchModel:
        return TorchModel(self, workload, cache)


class TorchModel(Model):
    """A network of a `TorchSource`, with weights."""

    is_onnx = False
    engine = "torch-eager fp32"
    spec = told_by("_card.spec")
    num_classes = told_by("_card.num_classes")
    class_names = told_by("_card.classes")
    taken = told_by("_card.taken")
    notes = told_by("_card.notes")
    knows_imagenet = told_by("_source.knows_imagenet")

    def __init__(self, source: TorchSource, workload: Workload, cache: Cache) -> None:
        self.name, self.weights = workload.model, workload.weights
        self._source, self._workload, self._cache = source, workload, cache
        known = {"probe": "digits", "random": None}
        self.label_source = known.get(self.weights, source.label_source)
        file = Path(weights_file(self.weights)[0]).expanduser()
        shouted = self.weights.upper() == self.weights or self.weights == "file"
        if self.weights not in KEYWORDS and not file.is_file() and not shouted:
            raise InputError(
                f"weights {self.weights!r}: no such file; give 'probe', 'random', the path of a "
                "state dict, or the name of published ones, for example 'DEFAULT'"
            )

    @property
    def identity(self) -> str:
        return content(self._entry)

    @cached_property
    def _card(self) -> builder.Card:
        return builder.card(self._entry)

    @property
    def fixed_batch(self) -> int | None:
        return self._card.fixed_batch or None

    def state(self) -> Path:
        return self._entry

    @cached_property
    def _entry(self) -> Path:
        work = self._workload
        path, key = weights_file(self.weights)
        file = None if self.weights in KEYWORDS else Path(path).expanduser()
        recipe = {
            "format": builder.FORMAT,
            "workload": {k: getattr(work, k) for k in ("model", "arguments", "output")},
            "weights": [digest(file), key] if file and file.is_file() else self.weights,
            "preprocess": msgspec.to_builtins(work.preprocess),
            "versions": self._source.probe(),
        } | self._source.recipe(work)
        return self._cache.get_or_make("weights", recipe, lambda at: builder.make(work, at))

    def module(self) -> torch.nn.Module:
        return builder.load_module(self.state())

    def onnx(self, precision: str, batch: int | None = None) -> Path:
        fixed = self._card.fixed_batch
        if reason := refusal(self.name, precision, fixed, precision, batch):
            raise Unsupported(reason)
        return onnx_export.onnx(self._cache, self.state(), precision, batch or fixed or None)

    def runner(self) -> Callable[[Inputs], NDArray[np.float32]]:
        import torch

        module = self.module()

        def run(images: Inputs) -> NDArray[np.float32]:
            with torch.inference_mode():
                answers: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
            return answers

        return run

    def first_not_finite(self, image: Inputs) -> str:
        import torch

        module, found = self.module(), []

        def watch(name: str, part: torch.nn.Module) -> None:
            def look(_: object, __: object, out: object) -> None:
                if isinstance(out, torch.Tensor) and not out.isfinite().all():
                    broken = [n for n, p in part.state_dict().items() if not p.isfinite().all()]
                    more = f", whose {broken[0]} is not finite" if broken else ""
                    found.append(f"{type(part).__name__} {name}{more}")

            part.register_forward_hook(look)

        for name, part in module.named_modules():
            if not any(True for _ in part.children()):
                watch(name, part)
        with torch.inference_mode():
            module(torch.from_numpy(image[[0] * (self.fixed_batch or 1)]))
        return found[0] if found else ""


def default_only(workload: Workload, whose: str) -> None:
    """Raises InputError for weights of another name, of a source that has one set of them."""
    if workload.weights != "DEFAULT":
        raise InputError(
            f"weights {workload.weights!r}: expected 'DEFAULT' ({whose}), 'probe', 'random' or "
            "the path of a state dict"
        )

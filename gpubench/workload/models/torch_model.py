"""A network of torchvision's, or our own, as the workload's model."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gpubench.cache import Cache, content, digest
from gpubench.suite.types import weights_file
from gpubench.workload.models import builder, digits_net, onnx_export
from gpubench.workload.models.base import BATCH, Model

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from gpubench.suite.types import Preprocess
    from gpubench.workload.data.preprocess import Inputs, Spec

KEYWORDS = ("probe", "random")
"""Weights that are made here."""


class TorchModel(Model):
    """A torchvision network, or `digits`, with weights."""

    is_onnx = False
    engine = "torch-eager fp32"

    def __init__(
        self, name: str, weights: str, cache: Cache, said: Preprocess | None = None
    ) -> None:
        self.name, self.weights, self._cache, self._said = name, weights, cache, said

    @property
    def identity(self) -> str:
        return content(self._entry)

    @cached_property
    def _card(self) -> builder.Card:
        return builder.card(self._entry)

    @property
    def spec(self) -> Spec:
        return self._card.spec

    @property
    def num_classes(self) -> int:
        return self._card.num_classes

    @property
    def label_source(self) -> str | None:
        trained = "digits" if self.name == digits_net.NAME else "folder"
        return {"probe": "digits", "random": None}.get(self.weights, trained)

    @property
    def taken(self) -> str:
        return self._card.taken

    def state(self) -> Path:
        return self._entry

    @cached_property
    def _entry(self) -> Path:
        path, key = weights_file(self.weights)
        file = None if self.weights in KEYWORDS else Path(path).expanduser()
        recipe = {
            "format": builder.FORMAT,
            "model": self.name,
            "weights": [digest(file), key] if file and file.is_file() else self.weights,
            "torch": version("torch"),
            "torchvision": version("torchvision"),
        } | ({"preprocess": msgspec.to_builtins(self._said)} if self._said else {})
        return self._cache.get_or_make(
            "weights", recipe, lambda at: builder.make(self.name, self.weights, at, self._said)
        )

    def module(self) -> torch.nn.Module:
        return builder.load_module(self.state())

    def onnx(self, precision: str, batch: int | None = None) -> Path:
        return onnx_export.onnx(self._cache, self.state(), precision, batch)

    def answers(self, images: Inputs) -> NDArray[np.float32]:
        import numpy as np
        import torch

        module = self.module()
        parts = (images[at : at + BATCH] for at in range(0, len(images), BATCH))
        with torch.inference_mode():
            return np.concatenate([module(torch.from_numpy(part)).numpy() for part in parts])

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
            module(torch.from_numpy(image))
        return found[0] if found else ""

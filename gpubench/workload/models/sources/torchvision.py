"""Torchvision's classification networks."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench import plugins
from gpubench.errors import InputError
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models.torch_model import Published, TorchSource

if TYPE_CHECKING:
    from torch import nn

    from gpubench.suite.types import Workload
_REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_AUXILIARY = ("googlenet", "inception_v3")
"""With classifiers that only training uses."""


class Torchvision(TorchSource):
    name = "torchvision"
    summary = "NAME: a classification network of torchvision"
    preload = ("torchvision",)
    dropped = ("AuxLogits.", "aux1.", "aux2.")
    meta = True
    knows_imagenet = True

    def probe(self) -> dict[str, str]:
        return plugins.installed("torch", "torchvision")

    def names(self) -> tuple[str, ...]:
        return _names()

    def arguments(self, model: str) -> dict[str, Any]:
        return {"aux_logits": False, "init_weights": False} if model in _AUXILIARY else {}

    def at_size(self, model: str, size: tuple[int, int]) -> dict[str, Any]:
        square = size[0] == size[1]
        return {"image_size": size[0]} if model.startswith("vit_") and square else {}

    def build(self, model: str, classes: int, arguments: dict[str, Any]) -> nn.Module:
        from torchvision.models import get_model

        module: nn.Module = get_model(model, num_classes=classes, **arguments)
        return module

    def spec(self, workload: Workload, module: nn.Module) -> Spec:  # noqa: ARG002
        """That of the smallest input, which the plain builder expects."""
        from torchvision.models import get_model_weights

        every = (_trained_with(member.transforms()) for member in get_model_weights(workload.model))
        return min(every, key=lambda spec: spec.size)

    def published(self, workload: Workload, arguments: dict[str, Any]) -> Published:  # noqa: ARG002
        """Downloaded, or found where torch keeps such files."""
        import torch
        from torchvision.models import get_model_weights

        model, weights = workload.model, workload.weights
        members = get_model_weights(model).__members__
        if weights not in members:
            raise InputError(
                f"weights {weights!r}: {model} has {', '.join(members)} (or 'probe', 'random', a "
                "path)"
            )
        member = members[weights]
        try:
            state = member.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: the file's digest is wrong
            raise InputError(
                f"weights {weights!r} of {model}: {member.url} cannot be had ({error}); put that "
                f"file into {Path(torch.hub.get_dir(), 'checkpoints')}, or use weights = 'probe', "
                "which need no download"
            ) from error
        # They expect inputs in [-1, 1].
        extra: dict[str, Any] = {"transform_input": True} if model in _AUXILIARY else {}
        if model.startswith("vit_"):
            extra["image_size"] = member.meta["min_size"][0]
        return Published(state, _trained_with(member.transforms()), extra)


def _trained_with(preset: Any) -> Spec:
    """The preprocessing of torchvision's weights, from their ``transforms()``."""
    return Spec(
        size=(preset.crop_size[0], preset.crop_size[-1]),
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        source="as torchvision's weights say",
    )


@cache
def _names() -> tuple[str, ...]:
    """Read from torchvision's source, not imported."""
    spec = importlib.util.find_spec("torchvision")
    found: set[str] = set()
    for root in (spec and spec.submodule_search_locations) or ():
        for file in Path(root, "models").glob("*.py"):
            found.update(_REGISTERED.findall(file.read_text(encoding="utf-8")))
    return tuple(sorted(found))

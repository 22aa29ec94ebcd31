"""Networks of timm."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from gpubench import plugins
from gpubench.errors import InputError
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models.torch_model import KEYWORDS, Published, TorchSource, default_only

if TYPE_CHECKING:
    from torch import nn

    from gpubench.suite.types import Workload


class Timm(TorchSource):
    name = "timm"
    summary = "timm/NAME, or timm/NAME.TAG: a network of timm"
    preload = ("timm",)
    meta = True
    knows_imagenet = True

    def probe(self) -> dict[str, str]:
        return plugins.installed("torch", "timm", extra="timm")

    def at_size(self, model: str, size: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG002
        return {"img_size": list(size)}

    def build(self, model: str, classes: int, arguments: dict[str, Any]) -> nn.Module:
        return _create(model, num_classes=classes, **arguments)

    def spec(self, workload: Workload, module: nn.Module) -> Spec:
        """As timm's own validation does it, at the size that the network is built for."""
        from timm.data import resolve_model_data_config

        said = resolve_model_data_config(module)
        depth, height, width = said["input_size"]
        if depth != 3:
            raise InputError(f"model {workload.model!r} takes {depth} channels; 3 are given")
        mode, given = said["crop_mode"], workload.preprocess
        own = workload.weights not in KEYWORDS and not (
            given and (given.resize or given.crop is False)
        )
        if own and (mode == "border" or (mode == "center" and height != width)):
            raise InputError(
                f"model {workload.model!r}: timm fits pictures into {height}x{width} in crop_mode "
                f"{mode!r}, which gpubench does not do; give [workload.preprocess] crop = false, "
                "which stretches them, or crop = true and resize"
            )
        before = int(height / said["crop_pct"]), int(width / said["crop_pct"])
        stretched = before if before != (height, width) else None
        return Spec(
            size=(height, width),
            resize=before[0] if mode == "center" and height == width else stretched,
            interpolation=said["interpolation"],
            mean=tuple(said["mean"]),
            std=tuple(said["std"]),
            source="as timm says",
        )

    def published(self, workload: Workload, arguments: dict[str, Any]) -> Published:
        """From where timm keeps them, or its cache."""
        default_only(workload, "timm's; others by the model's tag, 'timm/NAME.TAG'")
        try:
            module = _create(workload.model, pretrained=True, **arguments)
        except InputError:
            raise
        except Exception as error:  # its hub's client has many kinds
            raise InputError(
                f"weights 'DEFAULT' of {workload.model} cannot be had ({str(error)[:300]}); give "
                "their file as weights, or use weights = 'probe', which need no download"
            ) from error
        return Published(module, self.spec(workload, module))


def _create(model: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
    import timm

    name = model.partition("/")[2]
    if not timm.is_model(name):
        base = name.partition(".")[0]
        near = [each for each in timm.list_models() if each.startswith(base)][:3]
        near = near or difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = (
            f"did you mean {' or '.join(repr(f'timm/{each}') for each in near)}? " if near else ""
        )
        raise InputError(f"unknown model {model!r}: {hint}timm {timm.__version__} has no {name!r}")
    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise InputError(f"model {model!r}, [workload.arguments]: {error}") from error
    return module

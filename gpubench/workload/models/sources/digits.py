"""gpubench's own small network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpubench.workload.models import digits_net
from gpubench.workload.models.torch_model import TorchSource

if TYPE_CHECKING:
    from torch import nn

    from gpubench.suite.types import Workload
    from gpubench.workload.data.preprocess import Spec


class Digits(TorchSource):
    name = digits_net.NAME
    summary = "digits: a small network of gpubench's own, trained on first use"
    label_source = "digits"
    random_classes = digits_net.CLASSES

    def names(self) -> tuple[str, ...]:
        return (digits_net.NAME,)

    def build(self, model: str, classes: int, arguments: dict[str, Any]) -> nn.Module:  # noqa: ARG002
        return digits_net.build(classes, **arguments)

    def spec(self, workload: Workload, module: nn.Module) -> Spec:  # noqa: ARG002
        return digits_net.SPEC

    def fit(self, module: nn.Module, spec: Spec, classes: int) -> float:  # noqa: ARG002
        return digits_net.fit(module, spec)

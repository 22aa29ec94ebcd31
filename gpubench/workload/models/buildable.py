"""What a source says of networks of PyTorch, for `builder` to build them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from gpubench import plugins
from gpubench.errors import InputError
from gpubench.workload.models.registry import Source

if TYPE_CHECKING:
    import torch

    from gpubench.suite.types import Workload
    from gpubench.workload.data.preprocess import Spec


class Published(Struct, frozen=True):
    """Weights that a network comes with."""

    given: Any
    """An OrderedDict of tensors by name; or the network that has them."""
    spec: Spec
    arguments: dict[str, Any] = {}
    """Of the builder, besides those that it is given anyway."""


class Buildable(Source):
    """A source whose networks are an ``nn.Module``: what `builder` asks of it."""

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


def default_only(workload: Workload, whose: str) -> None:
    """Raises InputError for weights of another name, of a source that has one set of them."""
    if workload.weights != "DEFAULT":
        raise InputError(
            f"weights {workload.weights!r}: expected 'DEFAULT' ({whose}), 'probe', 'random' or "
            "the path of a state dict"
        )

"""A network that is given something else than float32, and makes what it takes of it itself.

Cast, scale and normalisation become the first operations of what every backend compiles: of the
ONNX file (`onnx_graph.give`) as of the module (`trial.Normalised`). The reference is the network as
it was: fp32, on the same bytes, normalised by NumPy.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gpubench.cache import MANIFEST, Cache
from gpubench.errors import CellFailed, Unsupported
from gpubench.workload.models import builder, onnx_graph
from gpubench.workload.models.base import Model, told_by

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from gpubench.suite.types import Input
    from gpubench.workload.data.preprocess import Inputs, Spec

_FORMAT = 1
"""Raised whenever the rewritten file, or module, of the same recipe would be another."""


def refusal(name: str, own: str, dtype: Input) -> str | None:
    """Why a network whose own input is ``own`` cannot be given ``dtype``, or None."""
    if dtype == "float32" or own == "float32":
        return None
    return f"model {name!r} takes {own} itself: leave input = {dtype!r} out"


def given(model: Model, dtype: Input, cache: Cache) -> Model:
    """``model``, for a host that gives ``dtype``. Raises Unsupported."""
    if reason := refusal(model.name, model.spec.dtype, dtype):
        raise Unsupported(reason)
    return model if dtype == "float32" else Given(model, dtype, cache)


class Given(Model):
    """``network`` with what makes its input of ``dtype`` in front."""

    def __init__(self, network: Model, dtype: Input, cache: Cache) -> None:
        self.network, self._dtype, self._cache = network, dtype, cache
        self.name, self.weights, self.is_onnx = network.name, network.weights, network.is_onnx

    @property
    def spec(self) -> Spec:
        return self.network.spec.given(self._dtype)

    def state(self) -> Path:
        own = self.network.state()

        def make(at: Path) -> None:
            _copied(own, at)
            about = builder.card(own)
            about = msgspec.structs.replace(about, spec=self.spec, own=about.spec)
            (at / builder.CARD).write_bytes(msgspec.json.encode(about))

        return self._cache.get_or_make("weights", self._recipe(own), make)

    def module(self) -> torch.nn.Module:
        return builder.load_module(self.state())

    def onnx(self, precision: str, batch: int | None = None) -> Path:
        return self.in_front(self.network.onnx(precision, batch))

    def in_front(self, file: Path) -> Path:
        """An ONNX file of the network in the cache -> the same for what the host gives.

        With all that lies beside it. Raises CellFailed for an opset that is too old.
        """

        def make(at: Path) -> None:
            import onnx

            _copied(file.parent, at)
            network = onnx.load(file, load_external_data=False)
            try:
                onnx_graph.give(network, self._dtype, *self.network.spec.affine)
            except ValueError as error:
                raise CellFailed("error", f"model {self.name!r} {error}") from error
            (at / file.name).write_bytes(network.SerializeToString())

        return self._cache.get_or_make("onnx", self._recipe(file), make) / file.name

    def _recipe(self, own: Path) -> dict[str, Any]:
        spec = msgspec.to_builtins(self.network.spec)
        # an entry of the cache: its name says what is in it
        return {"format": _FORMAT, "of": str(own), "input": self._dtype, "spec": spec}

    def runner(self) -> Callable[[Inputs], NDArray[Any]]:
        run = self.network.runner()
        return lambda images: run(self._normalised(images))

    def first_not_finite(self, image: Inputs) -> str:
        return self.network.first_not_finite(self._normalised(image))

    def _normalised(self, images: Inputs) -> NDArray[np.float32]:
        import numpy as np

        if self._dtype != "uint8":
            return images.astype(np.float32)
        factor, offset = self.network.spec.affine
        return images * factor + offset

    # what stays as it is
    identity = told_by("network.identity")
    num_classes = told_by("network.num_classes")
    class_names = told_by("network.class_names")
    knows_imagenet = told_by("network.knows_imagenet")
    label_source = told_by("network.label_source")
    taken = told_by("network.taken")
    precision = told_by("network.precision")
    fixed_batch = told_by("network.fixed_batch")
    output_kind = told_by("network.output_kind")
    notes = told_by("network.notes")
    engine = told_by("network.engine")


def _copied(entry: Path, at: Path) -> None:
    """The files of ``entry`` in ``at``; no hard links, which ONNX's checker takes for an attack."""
    ignored = shutil.ignore_patterns(MANIFEST)
    shutil.copytree(entry, at, ignore=ignored, dirs_exist_ok=True)

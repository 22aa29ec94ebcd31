"""The work in one image, counted from shapes alone: nothing is computed.

A torch network runs on the meta device while every operator's shapes are looked at; an ONNX file's
graph is walked, see `gpubench.workload.graphwork`. Both count alike:

- FLOPs of matrix products and convolutions, a multiplication and an addition being two;
- as weights the constants that these multiply with, not their biases;
- as activations what these and pooling read and write: all else is fused into them. Second inputs
  of additions (residuals) are left out.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from gpubench.record import Work

if TYPE_CHECKING:
    import torch

    from gpubench.workload.cache import Cache
    from gpubench.workload.models import Model

FORMAT = 1
"""Raised whenever the same network would be counted differently."""
_FILE = "work.json"
_POOLS = ("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
          "mean")  # fmt: skip
"""Operators of aten. Pooling to one number a channel is ``mean`` there."""


class Tally(Struct):
    """What the layers of a network add up to, for one image."""

    flops: int = 0
    weights: int = 0
    activations: int = 0

    def work(self, ends: int) -> Work:
        return Work(flops=self.flops, weights=self.weights, activations=self.activations, ends=ends)


def of(model: Model, cache: Cache) -> Work:
    """The work in one image of ``model``; counted once.

    Raises InputError where an ONNX file's shapes do not follow from it, or for a product in it that
    is not counted here.
    """
    recipe = {"format": FORMAT, "network": model.identity, "versions": _versions(model)}

    def make(at: Path) -> None:
        ends = math.prod(model.input_shape) + model.num_classes
        if model.is_onnx:
            from gpubench.workload import graphwork

            tally = graphwork.count(model.onnx(model.precision, model.fixed_batch))
        else:
            tally = count(model.module(), model.input_shape)
        (at / _FILE).write_bytes(msgspec.json.encode(tally.work(ends)))

    entry = cache.get_or_make("work", recipe, make)
    return msgspec.json.decode((entry / _FILE).read_bytes(), type=Work)


def count(module: torch.nn.Module, shape: tuple[int, int, int]) -> Tally:
    """Of a network in eval mode; it is on the meta device afterwards."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    module = module.to("meta")
    constants = {p.untyped_storage()._cdata for p in module.parameters()}
    tally = Tally()

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            operator = func.overloadpacket
            if operator in flop_registry or operator.__name__ in _POOLS:
                tensors = [each for each in args if isinstance(each, torch.Tensor)]
                own = [t for t in tensors if t.untyped_storage()._cdata in constants]
                tally.weights += sum(t.numel() for t in own if t.dim() > 1)
                moved = [t for t in tensors if not any(t is each for each in own)]
                results = out if isinstance(out, tuple) else (out,)
                tally.activations += sum(t.numel() for t in (*moved, results[0]))
            return out

    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for all of it, counted by nobody
    try:
        # The last one entered sees an operator first; it takes apart what it cannot count.
        with torch.inference_mode(), Watch(), counter:
            module(torch.empty(1, *shape, device="meta"))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    tally.flops = counter.get_total_flops()
    return tally


def _versions(model: Model) -> dict[str, str]:
    return {name: version(name) for name in (("onnx",) if model.is_onnx else ("torch",))}

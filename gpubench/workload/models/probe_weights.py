"""Weights without a download that still tell right from wrong.

A plain random network answers nearly the same for every image, so an agreement test passes
whatever is broken; a deep one also amplifies rounding. A probe is a seeded random network whose
residual branches are damped and whose normalisations are calibrated, so that it passes information
on without amplifying noise; its last layer is then fitted, by ridge regression, to scikit-learn's
digits. It classifies real, labelled images.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gpubench.errors import InputError
from gpubench.workload.data import builtin, preprocess
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models.base import head

_CALIBRATE, _FIT, _BATCH = 64, 400, 16
_DAMPING = 0.1
_RIDGE = 0.3
"""Penalty, relative to the mean squared length of a standardised feature vector."""


def fit(module: nn.Module, spec: Spec, classes: int = 10) -> float:
    """Turn a freshly initialised network into a probe, in place: its first ten classes are digits.

    Returns its accuracy on digits that were neither fitted nor will ever be in a pool.
    """
    pixels, labels = builtin.digits()
    count = builtin.FITTED  # the rest judges
    inputs = [torch.from_numpy(preprocess.apply(spec, p)) for p in pixels[:count]]
    module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    _damp(module)
    _calibrate(module, inputs[:_CALIBRATE])
    layer = head(module, classes)
    if classes < 10 or layer is None or len(layer.weight) != classes:
        raise InputError(
            "weights 'probe' tell ten digits apart, in a last layer that is linear: this network "
            f"has {classes} classes, and ends in {layer}; give its own weights, or 'random'"
        )
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(_pooled(given[0])))
    _forward(module, inputs)
    hook.remove()
    features = torch.cat(seen).double().numpy()
    target = np.eye(classes)[labels[:count]]
    weight, bias = _ridge(features[:_FIT], target[:_FIT], layer.bias is not None)
    if isinstance(layer, torch.nn.Conv2d):
        # SqueezeNet rectifies its local logits before pooling: a common offset, which changes no
        # answer, keeps them positive.
        bias = bias + 3 * np.abs(features @ weight + bias).max()
    layer.weight.copy_(torch.from_numpy(weight.T).reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(torch.from_numpy(bias))
    module.to(memory_format=torch.contiguous_format)
    answers = (features[_FIT:] @ weight + bias).argmax(1)
    return float((answers == np.asarray(labels[_FIT:count])).mean())


def _damp(module: nn.Module) -> None:
    """Scale every residual branch of the convolutional families by its last normalisation.

    Transformers need none (their branches are normalised first), and concatenating families
    (DenseNet, ShuffleNet, GoogLeNet, Inception) have no residual branches.
    """
    for block in module.modules():
        kind = type(block).__name__
        if kind == "CNBlock":  # ConvNeXt: 1e-6 at birth, which would hide the block
            torch.nn.init.constant_(block.layer_scale, _DAMPING)
        elif (
            kind in ("BasicBlock", "Bottleneck", "ResBottleneckBlock")
            or getattr(block, "use_res_connect", False)
            or getattr(block, "apply_residual", False)
        ):
            norms = [
                part
                for name, part in block.named_modules()
                if isinstance(part, torch.nn.BatchNorm2d) and not name.startswith("downsample")
            ]
            torch.nn.init.constant_(norms[-1].weight, _DAMPING)


def _calibrate(module: nn.Module, inputs: list[torch.Tensor]) -> None:
    """Set batch-norm statistics to their averages over these images."""
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over batches
        norm.train()
    if norms:
        _forward(module, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _forward(module: nn.Module, inputs: list[torch.Tensor]) -> None:
    with torch.inference_mode():
        for start in range(0, len(inputs), _BATCH):
            batch = torch.stack(inputs[start : start + _BATCH])
            module(batch.contiguous(memory_format=torch.channels_last))


def _pooled(given: torch.Tensor) -> torch.Tensor:
    return given.mean((2, 3)) if given.ndim == 4 else given.clone()


def _ridge(
    features: NDArray[np.float64], target: NDArray[np.float64], intercept: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight (features, classes) and bias of a ridge regression on standardised features.

    In its dual form, whose cost does not grow with the number of features.
    """
    mean = features.mean(0) * intercept
    spread = features.std(0)
    spread = np.maximum(spread, 1e-3 * spread.max())  # a dead feature stays dead
    x = (features - mean) / spread
    middle = target.mean(0) * intercept
    gram = x @ x.T
    penalty = _RIDGE * np.trace(gram) / len(x)
    dual = np.linalg.solve(gram + penalty * np.eye(len(x)), target - middle)
    weight = (x.T @ dual) / spread[:, None]
    return weight, middle - mean @ weight

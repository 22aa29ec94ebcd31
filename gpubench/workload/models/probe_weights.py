"""Weights without a download that still tell right from wrong.

A plain random network answers nearly the same for every image, so an agreement test passes
whatever is broken; a deep one also amplifies rounding. A probe is a seeded random network whose
layers are scaled by what they are given, whose residual branches are damped and whose
normalisations are calibrated, so that it passes information on without amplifying noise; its last
layer is then fitted, by ridge regression, to scikit-learn's digits. It classifies real, labelled
images.
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

_SPREAD, _CALIBRATE, _FIT, _BATCH = 32, 64, 400, 16
_DAMPING = 0.1
_LAYERS = (nn.Conv2d, nn.Linear)
_RECTIFIERS = (nn.ReLU, nn.ReLU6)
_BORN, _SCALE = 0.1, 0.3
"""Scales of whole branches: as small as this at birth; here."""
_SHIFT = 1.0
"""Of what a normalisation hands on to a rectifier, in standard deviations."""
_RIDGE = 0.3
"""Penalty, relative to the mean squared length of a standardised feature vector."""


def fit(module: nn.Module, spec: Spec, classes: int = 10) -> float:
    """Turn a freshly initialised network into a probe, in place: its first ten classes are digits.

    Returns its accuracy on digits that were neither fitted nor will ever be in a pool.
    """
    layer = head(module, classes)
    if classes < 10 or layer is None or len(layer.weight) != classes:
        raise InputError(
            "weights 'probe' tell ten digits apart, in a last layer that is linear: this network "
            f"has {classes} classes, and ends in {layer}; give its own weights, or 'random'"
        )
    pixels, labels = builtin.digits()
    count = builtin.FITTED  # the rest judges
    inputs = [torch.from_numpy(preprocess.apply(spec, p)) for p in pixels[:count]]
    module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    _damp(module)
    _spread(module, layer, inputs[:_SPREAD])
    _calibrate(module, inputs[:_CALIBRATE])
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
    """Prepare normalisations and scales of branches so that depth does not amplify noise.

    A rectifier behind a normalisation is nearly linear where most of its inputs are above zero:
    batch norms with random layers amplify differences at every one otherwise (Yang et al., "A Mean
    Field Theory of Batch Normalization", 2019). The last norm of a residual branch is small
    instead, and what scales a whole branch and would hide it at birth is not. Transformers'
    branches, normalised first, need neither.
    """
    damped = set()
    for block in module.modules():
        kind = type(block).__name__
        residual = kind in ("BasicBlock", "Bottleneck", "ResBottleneckBlock")
        if residual or any(
            vars(block).get(said) for said in ("use_res_connect", "apply_residual", "has_skip")
        ):
            damped.add(
                [
                    part
                    for name, part in block.named_modules()
                    if isinstance(part, nn.BatchNorm2d) and not name.startswith("downsample")
                ][-1]
            )
        for own in () if isinstance(block, _LAYERS) else block.parameters(recurse=False):
            if own.numel() > 1 and 0 < own.abs().max() <= _BORN and own.min() == own.max():
                nn.init.constant_(own, _SCALE)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            # timm's own class has its activation inside, or none.
            rectified = norm not in damped and type(getattr(norm, "act", None)) is not nn.Identity
            nn.init.constant_(norm.weight, _DAMPING if norm in damped else 1.0)
            nn.init.constant_(norm.bias, _SHIFT if rectified else 0.0)


def _spread(module: nn.Module, last: nn.Module, inputs: list[torch.Tensor]) -> None:
    """Scale the weights of every layer but the ``last`` by what it is given, in one pass.

    Each channel then has mean 0 (where there is a bias) and variance 1 over these images, whatever
    the network is made of: the data-dependent initialisation of Salimans & Kingma, "Weight
    Normalization" (2016), and of Mishkin & Matas, "All you need is a good init" (2016). What goes
    into a rectifier without a normalisation (SqueezeNet, AlexNet, VGG) is shifted as in `_damp`. A
    gate (squeeze and excitation) stays as it was born, nearly constant: one that varies as much as
    that would multiply the noise of all that it gates.
    """
    scaled: list[tuple[nn.Module, torch.Tensor]] = []  # the last one, and what came of it

    def shift(_: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        layer, out = scaled[-1]
        if given[0] is not out or layer.bias is None:
            return None
        layer.bias.add_(_SHIFT)
        return (given[0] + _SHIFT,)

    def scale(layer: nn.Module, given: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, nn.Conv2d) and given[0].shape[2:] == (1, 1):  # of a pooled picture
            return out
        axis = 1 if isinstance(layer, nn.Conv2d) else out.ndim - 1
        over = [dim for dim in range(out.ndim) if dim != axis]
        shape = [-1 if dim == axis else 1 for dim in range(out.ndim)]
        if layer.bias is None:
            mean, spread = torch.zeros(out.shape[axis]), out.std().expand(out.shape[axis])
        else:
            mean, spread = out.mean(over), out.std(over)
        spread = spread.clamp_min(1e-3 * float(spread.max()) + 1e-12)
        layer.weight.div_(spread.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.sub_(mean).div_(spread)
        out = (out - mean.reshape(shape)) / spread.reshape(shape)
        scaled[:] = [(layer, out)]
        return out

    layers = [p for p in module.modules() if isinstance(p, nn.Conv2d | nn.Linear) and p is not last]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    rectifiers = [part for part in module.modules() if isinstance(part, _RECTIFIERS)]
    hooks += [part.register_forward_pre_hook(shift) for part in rectifiers]
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
    with torch.inference_mode():
        module(torch.stack(inputs).contiguous(memory_format=torch.channels_last))
    for norm in norms:
        norm.eval()
    for hook in hooks:
        hook.remove()


def _calibrate(module: nn.Module, inputs: list[torch.Tensor]) -> None:
    """Set batch-norm statistics to their averages over these images."""
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over batches
        norm.train()
    if norms:
        _forward(module, inputs)
    for norm in norms:
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

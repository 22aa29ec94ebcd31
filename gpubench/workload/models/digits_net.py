"""The project's own small network: classifies scikit-learn's digits, trained on first use.

Offline, in seconds, and as accurate as such a network is, so that real accuracy can be measured
with every backend and precision. Plain convolution, batch-norm and ReLU blocks, pooling and one
linear layer: whatever fuses or quantises networks knows these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench.workload.data import builtin, preprocess
from gpubench.workload.data.preprocess import Spec

if TYPE_CHECKING:
    import torch
    from torch import nn

NAME = "digits"
CLASSES = 10
SPEC = Spec(size=(32, 32), resize=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""A digit has 8 x 8 pixels: more would show it nothing new."""

_WIDTHS = (16, 32, 48, 64)
_EPOCHS, _BATCH = 30, 50
_RATE, _DECAY, _SMOOTHING = 1e-2, 5e-2, 0.1
_TURN, _ZOOM, _SHIFT, _NOISE = 0.2, 0.12, 0.15, 0.05
"""Augmentation, at most: radians, share of the size, share of half the width; spread of noise."""


def build(classes: int = CLASSES) -> nn.Module:
    """(N, 3, 32, 32) -> (N, classes); 47,482 parameters."""
    from torch import nn

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    first, second, third, last = _WIDTHS
    return nn.Sequential(
        *block(3, first, 2),
        *block(first, second, 1),
        *block(second, third, 2),
        *block(third, last, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(last, classes),
    )


def fit(module: nn.Module, spec: Spec) -> float:
    """Train a freshly initialised network, in place, on the digits that no pool draws from.

    Returns its accuracy on all others. One thread, so that the order of sums, and with it the
    weights, are the same whatever cores this process has.
    """
    import torch

    pixels, numbers = builtin.digits()
    inputs = torch.stack([torch.from_numpy(preprocess.apply(spec, p)) for p in pixels])
    labels, cut = torch.tensor(numbers), builtin.FITTED
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            _train(module, inputs[:cut], labels[:cut])
    finally:
        torch.set_num_threads(threads)
    module.eval()
    with torch.inference_mode():
        answers = torch.cat([module(part).argmax(1) for part in inputs[cut:].split(256)])
    return float((answers == labels[cut:]).double().mean())


def _train(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """AdamW under one cycle of the learning rate (Smith & Topin 2017), with smoothed labels."""
    import torch
    from torch.nn.functional import cross_entropy

    module.train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=_RATE, weight_decay=_DECAY)
    steps = _EPOCHS * (len(inputs) // _BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
    for _ in range(_EPOCHS):
        for part in torch.randperm(len(inputs)).split(_BATCH):
            logits = module(_varied(inputs[part]))
            optimiser.zero_grad()
            cross_entropy(logits, labels[part], label_smoothing=_SMOOTHING).backward()
            optimiser.step()
            cycle.step()


def _varied(inputs: torch.Tensor) -> torch.Tensor:
    """Each image turned, zoomed and shifted a little, its edge continued, with some noise."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    def spread(most: float, *shape: int) -> torch.Tensor:
        return most * (2 * torch.rand(len(inputs), *shape) - 1)

    angle, shift = spread(_TURN), spread(_SHIFT, 2)
    across, down = 1 + spread(_ZOOM), 1 + spread(_ZOOM)
    rows = [across * angle.cos(), -down * angle.sin(), shift[:, 0]]
    rows += [across * angle.sin(), down * angle.cos(), shift[:, 1]]
    transform = torch.stack(rows, 1).reshape(-1, 2, 3)
    grid = affine_grid(transform, list(inputs.shape), align_corners=False)
    moved = grid_sample(inputs, grid, padding_mode="border", align_corners=False)
    return moved + _NOISE * torch.randn_like(moved)

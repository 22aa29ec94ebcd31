"""Torchvision's operators and its v2 transforms, as its decoders on the host and on a GPU share."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from gpubench.errors import Unavailable
from gpubench.workload.data import preprocess

if TYPE_CHECKING:
    import torch

    from gpubench.workload.data.preprocess import Spec

RGB = 3
"""`torchvision.io.ImageReadMode.RGB`."""


def operator(name: str) -> Any:
    """One of `torchvision.io`'s operators.

    The operator itself, because the function around it warns of deprecation at every call since
    0.29. Raises Unavailable in a build without it.
    """
    import torch
    import torchvision.io

    found = getattr(torch.ops.image, name, None)
    if found is None:
        raise Unavailable(
            f"torchvision {torchvision.__version__} was built without {name}",
            "install a torchvision with its image extension (0.24 to 0.29 have it), or use another "
            "decoder",
        )
    return found


def encoded(data: bytes) -> torch.Tensor:
    """(N,) uint8, a copy: torch has no read-only tensors."""
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@cache
def _normalisation(spec: Spec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation, (3, 1, 1) float32. Torchvision would make them of numbers for each
    picture, and for such a copy the host waits until the GPU has done all before it."""
    import torch

    mean, std = (torch.tensor(v, dtype=torch.float32, device=device) for v in spec.normalisation)
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)


def transform(spec: Spec, pixels: torch.Tensor, out: torch.Tensor) -> None:
    """(3, H, W) uint8 RGB -> ``out``, one input on the same device."""
    import torch
    from torchvision.transforms.v2 import InterpolationMode, functional

    height, width = pixels.shape[-2:]
    wide, high, left, top = preprocess.geometry(spec, width, height)
    mode = InterpolationMode(spec.interpolation)
    with torch.inference_mode():
        resized = functional.resize(pixels, [high, wide], mode, antialias=True)
        made = functional.crop(resized, top, left, *spec.size)
        if spec.channels == "bgr":
            made = made.flip(0)
        if spec.dtype != "uint8":
            mean, std = _normalisation(spec, made.device)
            made = functional.to_dtype(made, torch.float32, scale=True).sub_(mean).div_(std)
        out.copy_(made if spec.layout == "NCHW" else made.permute(1, 2, 0))

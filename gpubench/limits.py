"""What bounds a cell: the work in one image, and how fast the hardware was seen to be."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Amount = Annotated[float, Meta(ge=0, le=1e18)]
Rate = Annotated[float, Meta(ge=1, le=1e18)]


class Work(Struct, frozen=True, kw_only=True):
    """What a network costs, whatever computes it. Counts of numbers, not of bytes."""

    flops: Amount
    """Floating-point operations of one image's matrix products and convolutions; a multiplication
    and an addition are two."""
    weights: Amount
    """Numbers that are read once a batch."""
    activations: Amount
    """Numbers that the layers with products, and pooling, read and write for one image, when
    everything between them is fused into them."""
    ends: Amount
    """Numbers in one image and its logits: what must move even if all else stays in caches."""


class Ceiling(Struct, frozen=True, kw_only=True):
    """The roofline that one cell is held against: all its replicas together."""

    work: Work
    flops_per_s: Rate
    """Measured peak of matrix products in the cell's precision."""
    bytes_per_s: Rate
    """Measured bandwidth of memory."""
    precision: str
    """What the products of that peak were computed in: 'bf16'."""
    cache_bytes: Amount = 0.0
    """Of the caches that its replicas share: what may stay there from one batch to the next."""

"""Encoded pictures of a data set as full batches, prefetched by threads or processes."""

from gpubench.pipeline.loader.loader import Loader, unsupported
from gpubench.pipeline.loader.ring_buffer import Slot

__all__ = ["Loader", "Slot", "unsupported"]

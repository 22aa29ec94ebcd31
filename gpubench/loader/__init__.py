"""Encoded pictures of a data set as full batches, prefetched by threads or processes."""

from gpubench.loader.loader import Loader, unsupported
from gpubench.loader.ring import Slot

__all__ = ["Loader", "Slot", "unsupported"]

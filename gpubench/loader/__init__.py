"""Encoded pictures of a data set as full batches, prefetched by threads or processes."""

from gpubench.loader.loader import Loader, open, unsupported  # noqa: A004
from gpubench.loader.ring import Slot

__all__ = ["Loader", "Slot", "open", "unsupported"]

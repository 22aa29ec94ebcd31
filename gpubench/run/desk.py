"""What a node does of what rank 0 asks: cells of its own suite, with its own paths."""

from __future__ import annotations

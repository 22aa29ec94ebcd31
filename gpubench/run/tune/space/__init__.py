"""The configurations that a search may choose from.

A `Space` holds the values of every axis; `cells` makes ordinary cells of it. Nothing here knows a
backend: what is worth searching comes in with the `Catalog` (`Option.search`, `Option.when`), so
a third party's backend is searched without any change here.
"""

from gpubench.run.tune.space.as_suite import suite, to_toml
from gpubench.run.tune.space.axes import Placement, Space, chosen, default, trying
from gpubench.run.tune.space.baseline import baseline
from gpubench.run.tune.space.grid import cells, coordinates

__all__ = [
    "Placement",
    "Space",
    "baseline",
    "cells",
    "chosen",
    "coordinates",
    "default",
    "suite",
    "to_toml",
    "trying",
]

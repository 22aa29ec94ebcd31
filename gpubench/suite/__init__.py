"""Suites: TOML -> `types.Suite` -> cells. What plug-ins need is found here.

`Option` is what a backend or a decoder declares.
"""

from gpubench.suite.types import Cell, Option, OptionValue

__all__ = ["Cell", "Option", "OptionValue"]

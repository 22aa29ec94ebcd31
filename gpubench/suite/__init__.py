"""Suites: TOML -> `types.Suite` -> cells. Plug-ins import `Option` and `Cell` from here."""

from gpubench.suite.types import Cell, Option, OptionValue

__all__ = ["Cell", "Option", "OptionValue"]

"""The tests of cells, and how they are told from everybody else's: imports pytest only.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gpubench.pytest_plugin.result import Result
    from gpubench.pytest_plugin.suite_runs import Wanted

FIXTURE = "gpubench"


def answers_are_right(gpubench: Result) -> None:
    """The test of a cell; `pytest_pyfunc_call` has asserted everything by now."""


class CellItem(pytest.Function):
    """A test that has no code of its own."""

    def __init__(self, *, wanted: Wanted, step: int = 0, **rest: Any) -> None:
        super().__init__(**rest)
        self.wanted, self.step = wanted, step
        self.add_marker("gpubench")  # for "-m gpubench"

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.wanted.cell.label  # the headline of a failure


def wanted_of(item: pytest.Item) -> Wanted | None:
    """What ``item`` wants measured; None for everybody else's tests."""
    if isinstance(item, CellItem):
        return item.wanted
    callspec = getattr(item, "callspec", None)
    if callspec is None or FIXTURE not in callspec.params:
        return None
    wanted: Wanted = callspec.params[FIXTURE]
    return wanted


def repetition(item: pytest.Item) -> int:
    """0, 1, ... where a plug-in such as pytest-repeat or pytest-flakefinder runs a test several
    times: they parametrize it with an argument of their own, whose name nobody else would give."""
    if isinstance(item, CellItem):
        return item.step
    callspec = getattr(item, "callspec", None)
    own = [v for k, v in callspec.params.items() if k.startswith("__")] if callspec else []
    return next((step for step in own if isinstance(step, int)), 0)


def will_be_skipped(item: pytest.Item) -> bool:
    """By a mark; a condition that is text is not evaluated: its cell is measured in vain."""
    return any(
        mark.name == "skip" or (mark.name == "skipif" and any(a is True for a in mark.args))
        for mark in item.iter_markers()
    )

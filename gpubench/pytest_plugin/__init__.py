"""Suites as pytest tests, measured by gpubench and handed to pytest-benchmark.

A suite file named on the command line is one test a cell. Directories are left alone, unless the
ini option ``gpubench_suites`` has a matching pattern (``gpubench_suites = ["suites/*.toml"]``)::

    pytest suites/ci.toml --benchmark-json out.json
    pytest suites/ci.toml --benchmark-compare --benchmark-compare-fail=median:5%

A test of one's own says what to measure by ``@pytest.mark.gpubench(suite="ci", ...)`` and gets a
`result.Result` as its argument ``gpubench``, once for each cell.

What is measured, what a round is, and what fails or skips a test: the documentation, "With pytest".
``-p no:gpubench`` leaves the plug-in out.
PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

NAME = "gpubench"


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """``-p gpubench.pytest_plugin`` loads what the entry point does, and never a second time."""
    from gpubench.pytest_plugin import hooks

    if not pluginmanager.has_plugin(NAME):
        pluginmanager.register(hooks, NAME)

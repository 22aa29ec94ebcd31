"""Suites as pytest tests, measured by gpubench and handed to pytest-benchmark.

A suite file named on the command line is one test a cell. Directories are left alone, unless the
ini option ``gpubench_suites`` has a matching pattern (``gpubench_suites = ["suites/*.toml"]``)::

    pytest suites/ci.toml --benchmark-json out.json
    pytest suites/ci.toml --benchmark-compare --benchmark-compare-fail=median:5%

A test of one's own states what to measure, and gets the result; it runs once for each cell::

    @pytest.mark.gpubench(suite="ci", backend="onnxruntime", batch_size=1)
    def test_latency(gpubench):
        assert gpubench.p50_ms < 20
        assert gpubench.agreement == 1

``suite`` is the name of a shipped suite or a path relative to the test's file; any other keyword
overrides a key of the suite's workload, axes or policy, as the options of ``gpubench run`` do. What
the marks of a class or module say is added to, key by key. ``gpubench`` is a `result.Result`.

What is measured: before the first test of a suite runs, all of its selected cells are, in rounds of
fresh, pinned processes; so drift of the machine is never booked on one cell, and a test's own
time-out is not spent on it. **A round of pytest-benchmark is a repeat** (the unit of gpubench's own
intervals): its median time per batch, or its time per image in the throughput scenario. So StdDev
and IQR are what fresh processes differ by, and OPS is batches/s or images/s. ``extra_info`` has
images/s, the 95 % interval, flags, parity and the machine's fingerprint.

Answers outside their tolerance, a crash or a time-out in any repeat fail the test. What this
machine lacks is skipped, with its remedy; ``--gpubench-require NAMES`` makes that a failure. With
``--benchmark-disable`` one short repeat checks the answers, and a test that asks for a time is
skipped. Beside other processes of pytest-xdist nothing is measured: skipped, with the remedy.

The plug-in is called ``gpubench``: ``-p no:gpubench`` leaves it out.
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

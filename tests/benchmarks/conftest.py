"""The project's own benchmarks. Each is a ratio, or a small absolute, measured side by side.

uv run pytest tests/benchmarks --runslow --benchmark-enable -s -o python_files='bench_*.py'
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, float, float], None]:
    """figure(what, value, reach): print it, and fail when a figure promised is not reached."""

    def say(what: str, value: float, reach: float) -> None:
        print(f"\n{request.node.name}: {what} {value:.4g} (reach: at most {reach:g})")
        assert value <= reach, f"{what}: {value:.4g} > {reach:g}"

    return say

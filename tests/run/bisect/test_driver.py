"""A bisection over commits, with real agents and workers, on the fake backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpubench.run.bisect import driver, setup
from gpubench.run.bisect.driver import BisectJob
from gpubench.suite.types import Rule
from tests.run.ab.test_driver import Watch
from tests.run.ab.test_interpreters import git
from tests.run.ab.test_revisions import Project, project

assert project

Bisect = Callable[..., BisectJob]


@pytest.fixture
def job(project: Project, tmp_path: Path) -> Bisect:
    def make(good: str = "base", bad: str = "HEAD", **given: Any) -> BisectJob:
        return setup.bisection(
            "suites/gate.toml", given.pop("chosen", {}), (good, bad), None, Rule(),
            given.pop("budget_s", 600.0), project.cache, tmp_path / "bisect",
            given.pop("resume", False),
        )  # fmt: skip

    return make


def test_the_slow_commit_is_found(project: Project, job: Bisect) -> None:
    for n in range(6):
        if n == 3:
            project.model(busy_us=900)
        project.write("notes.txt", str(n))
        project.commit(f"c{n}")
    outcome = driver.run(job(), Watch())
    (step,) = outcome.outlook.stretches
    assert step.what == "step", outcome
    names = [v.name for v in job(resume=True).row.versions]
    assert names[step.second] == git(project.top, "rev-parse", "c3")[:12]
    assert 2 < pow(2.718281828, step.effect.value) < 4
    assert git(project.top, "status", "--porcelain") == ""
    assert git(project.top, "worktree", "list").count("\n") == 0

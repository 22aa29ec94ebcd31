"""A pull request changes files: each arm has those of its own commit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from gpubench.run.ab import arms, driver, interpreters
from gpubench.run.ab import setup as ab_setup
from gpubench.suite.types import Rule
from tests.conftest import FAKES
from tests.run.ab.test_driver import Watch, wrapper
from tests.run.ab.test_interpreters import git

SUITE = """
[workload]
model = "../models/net.onnx"
images = "synthetic"
[axes]
backend = ["fake"]
batch_size = [1]
scenario = ["latency"]
device = "cpu"
cores = 1
[policy]
repeats = 2
warmup_s = 0.01
duration_s = 0.04
max_relative_error = 0.001
"""
UV = f"""#!/bin/sh
while [ "$1" != --project ]; do shift; done
mkdir -p "$2/.venv/bin"
printf '#!/bin/sh\\nexport PYTHONPATH="{FAKES}"\\nexec "{sys.executable}" "$@"\\n' \\
  > "$2/.venv/bin/python"
chmod +x "$2/.venv/bin/python"
"""


class Project:
    """A folder of a repository, and what `gpubench ab` makes of it."""

    def __init__(self, top: Path, network: Path, cache: Path) -> None:
        self.top, self._network, self.cache = top, network, cache
        self.python = wrapper(top.parent / "python", "TRUE")

    def write(self, name: str, content: str) -> Path:
        file = self.top / "app" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        return file

    def model(self, busy_us: int, name: str = "models/net.onnx") -> Path:
        """A network that the fake backend is busy with for so long."""
        network = onnx.load(self._network)
        network.doc_string = f"busy_us={busy_us}"
        file = self.write(name, "")
        onnx.save(network, file)
        return file

    def commit(self, tag: str = "") -> None:
        git(self.top, "add", ".")
        git(self.top, "commit", "-qm", "a change", "--allow-empty")
        if tag:
            git(self.top, "tag", tag)

    def ab(
        self,
        baseline: str | None = "base",
        candidate: str | None = None,
        specs: tuple[str, str] = ("", ""),
        suite: str = "suites/gate.toml",
        **given: Any,
    ) -> driver.ABJob:
        made = [
            interpreters.of_reference(f"--{arm}-ref", ref, self.cache) if ref else None
            for arm, ref in (("baseline", baseline), ("candidate", candidate))
        ]
        said = [
            arms.parse(f"--{arm}", [text] if text else [])
            for arm, text in zip(("baseline", "candidate"), specs, strict=True)
        ]
        return ab_setup.comparison(
            suite, given.pop("chosen", {}), (said[0], said[1]), (None, self.python), Rule(),
            given.pop("budget_s", 0.001), self.cache, self.top.parent / "out",
            given.pop("resume", False), (), (made[0], made[1]), **given,
        )  # fmt: skip


@pytest.fixture
def project(
    fakes: None, tmp_path: Path, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """Its first commit is 'base'; the working directory is its folder 'app'."""
    tools, top = tmp_path / "tools", tmp_path / "repository"
    tools.mkdir()
    (tools / "uv").write_text(UV)
    (tools / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git(tmp_path, "init", "-q", str(top))
    found = Project(top, tiny_onnx, tmp_path / "cache")
    found.write("pyproject.toml", "")
    found.write("suites/gate.toml", SUITE)
    found.model(busy_us=300)
    found.commit("base")
    monkeypatch.chdir(top / "app")
    return found


def models(job: driver.ABJob) -> list[str]:
    return [side.header.planned[0].model for side in job.sides]


def test_a_pull_request_that_swaps_the_model_is_measured(project: Project) -> None:
    """Until now both arms had the head's file: 0.0 %, EQUIVALENT."""
    project.model(busy_us=1800)
    project.commit()
    job = project.ab()
    old, new = models(job)
    assert Path(new) == project.top / "app/suites/../models/net.onnx"
    assert Path(old).is_relative_to(project.cache)
    assert [b"busy_us=300" in Path(file).read_bytes() for file in (old, new)] == [True, False]
    files = driver.run(job, Watch())
    [before], [after] = (file.records for file in files)
    assert before.status == after.status == "ok"
    assert before.contents["model"] != after.contents["model"]
    assert after.median_ns() > 4 * before.median_ns()  # type: ignore[operator]
    assert git(project.top, "status", "--porcelain") == ""

"""The line of commits from a good one to a bad one, in scratch repositories."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.errors import InputError
from gpubench.run.bisect.commits import INERT, Commits
from tests.run.ab.test_interpreters import git


class Scratch:
    """A repository whose commits carry tags of their names."""

    def __init__(self, top: Path) -> None:
        self.top = top
        top.mkdir()
        git(top, "init", "-q", "-b", "main", ".")

    def commit(self, name: str, file: str = "code.py") -> None:
        place = self.top / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(name)
        git(self.top, "add", ".")
        git(self.top, "commit", "-qm", f"the {name}")
        git(self.top, "tag", name)

    def tags(self, row: Commits) -> list[str]:
        return [git(self.top, "tag", "--points-at", v.name) for v in row.versions]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scratch:
    found = Scratch(tmp_path / "repository")
    found.commit("start")
    monkeypatch.chdir(found.top)
    return found


def test_every_commit_between_with_its_line(scratch: Scratch, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        scratch.commit(name)
    row = Commits("start", "HEAD", tmp_path)
    assert scratch.tags(row) == ["start", "one", "two", "three"]
    assert row.versions[1].line.startswith(git(scratch.top, "rev-parse", "--short", "one"))
    assert "the one (a, 2" in row.versions[1].line
    assert row.notes == []


def test_documentation_costs_nothing(scratch: Scratch, tmp_path: Path) -> None:
    scratch.commit("readme", "README.md")
    scratch.commit("code")
    scratch.commit("workflow", ".github/workflows/ci.yml")
    scratch.commit("umlaut", "docs/\u00fcber.md")
    scratch.commit("requirements", "requirements.txt")
    git(scratch.top, "commit", "-qm", "nothing", "--allow-empty")
    row = Commits("start", "HEAD", tmp_path)
    assert scratch.tags(row) == ["start", "code", "requirements"]
    assert row.notes == ["4 commits of documentation left out"]
    for name in ("LICENSE-Apache-2.0.txt", "LICENSE", "CITATION.cff", ".gitlab-ci.yml",
                 ".gitignore", ".gitlab-ci-perf.yml", "x/LICENSE" + 99 * "-a"):  # fmt: skip
        assert INERT.search(name)
    for name in (
        "LICENSE_PLATES.onnx",
        "LICENSE-NET.PT2",
        "LICENSE" + 99 * "-" + "/x",
        "NOTICE.py",
        "models/CITATIONS.pth",
    ):  # a name alone is none
        assert not INERT.search(name)
    with pytest.raises(InputError, match=r"only documentation has changed \(1 commit\)"):
        Commits("start", "readme", tmp_path)


def test_what_came_with_a_merge_came_with_the_merge(scratch: Scratch, tmp_path: Path) -> None:
    git(scratch.top, "checkout", "-qb", "side")
    scratch.commit("side-one", "side.py")
    scratch.commit("side-two", "side.py")
    git(scratch.top, "checkout", "-q", "main")
    scratch.commit("main-one")
    git(scratch.top, "merge", "-q", "--no-ff", "-m", "a merge", "side")
    git(scratch.top, "tag", "merge")
    scratch.commit("after")
    row = Commits("start", "after", tmp_path)
    assert scratch.tags(row) == ["start", "main-one", "merge", "after"]
    row = Commits("side-one", "after", tmp_path)  # not among first parents
    assert scratch.tags(row) == ["side-one", "side-two", "merge", "after"]


def test_bad_references(scratch: Scratch, tmp_path: Path) -> None:
    scratch.commit("one")
    git(scratch.top, "checkout", "-qb", "side", "start")
    scratch.commit("side")
    for good, bad, told in (
        ("nowhere", "one", "--good 'nowhere': git knows no such commit"),
        ("start", "x; touch y", "--bad 'x; touch y': git knows no such commit"),
        ("one", "one^{}", r"--good 'one' and --bad 'one\^\{\}' are one commit"),
        ("one", "start", "--good 'one' descends from --bad 'start': is it the other way round"),
        ("side", "one", r"no ancestor of --bad 'one'; their last common commit is [0-9a-f]{12}"),
    ):
        with pytest.raises(InputError, match=told):
            Commits(good, bad, tmp_path)


def test_a_shallow_clone_says_so(
    scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        scratch.commit(name)
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{scratch.top}", str(shallow))
    git(shallow, "fetch", "-q", "--depth=1", "origin", "tag", "start")
    monkeypatch.chdir(shallow)
    with pytest.raises(InputError, match=r"HEAD~1.*this clone is shallow.*--unshallow"):
        Commits("HEAD~1", "HEAD", tmp_path)
    with pytest.raises(InputError, match=r"no ancestor.*this clone is shallow.*--unshallow"):
        Commits("start", "HEAD", tmp_path)


def test_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="needs the project's git repository"):
        Commits("a", "b", tmp_path)

"""The commits between a good one and a bad one, as versions of a bisection."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from gpubench import units
from gpubench.errors import InputError
from gpubench.run.ab import interpreters, revisions
from gpubench.run.ab.interpreters import Made
from gpubench.run.bisect.row import Arm, Row, Version

INERT = re.compile(
    r"(^|/)\.(github|gitlab)/|\.(md|rst|adoc)$"
    r"|(^|/)(LICEN[CS]E|NOTICE|AUTHORS|CODEOWNERS|CITATION|\.gitignore|\.gitlab-ci|Jenkinsfile)"
    r"(-\w+|\.(txt|cff|bib|yml|\d+))*$"
)  # fmt: skip
"""Files that change nothing which is measured: a commit that changes no others is like the one
before it, and needs no environment."""


class Commits(Row):
    """From good to bad along one line of parents.

    Of a merge the first parent that descends from the good commit: what came with the other side
    came with the merge, as `git bisect --first-parent` has it. Raises InputError for references
    that are no commits, and where the bad one does not descend from the good one.
    """

    def __init__(self, good: str, bad: str, root: Path) -> None:
        self._root = root
        top, first = revisions.resolved("--good", good)
        _, last = revisions.resolved("--bad", bad)
        if first == last:
            raise InputError(f"--good {good!r} and --bad {bad!r} are one commit, {first[:12]}")
        names = _line(top, first, last, f"--good {good!r}", f"--bad {bad!r}")
        same = _inert(top, names)
        kept = [name for name in names if name not in same]
        if len(kept) == 1:
            raise InputError(
                f"between --good {good!r} and --bad {bad!r} only documentation has changed "
                f"({units.count(len(same), 'commit')}): nothing that is measured can differ"
            )
        lines = revisions.git("git", top, "log", "--no-walk=unsorted", "--stdin",
                              "--format=%h %s (%an, %as)", read="\n".join(kept))  # fmt: skip
        found = [Version(n[:12], line) for n, line in zip(kept, lines.splitlines(), strict=True)]
        notes = [f"{units.count(len(same), 'commit')} of documentation left out"] if same else []
        super().__init__("commit", found, notes)
        self._commits = kept

    def arm(self, place: int) -> Arm:
        option, name = self.option(place), self._commits[place]
        made = interpreters.of_reference(option, name, self._root)
        return Arm(None, made)

    def words(self, first: int, second: int) -> list[str]:
        names = (self.versions[first].name, self.versions[second].name)
        return ["--baseline-ref", names[0], "--candidate-ref", names[1]]

    def suite_of(self) -> Made | None:
        return self.arm(len(self.versions) - 1).made


def _line(top: Path, first: str, last: str, good: str, bad: str) -> list[str]:
    """Every commit from ``first`` to ``last``."""

    def path(start: str, end: str) -> dict[str, list[str]]:
        listed = revisions.git("git", top, "rev-list", "--ancestry-path", "--parents",
                               f"{start}..{end}")  # fmt: skip
        words = [line.split() for line in listed.splitlines()]
        return {commit: parents for commit, *parents in words}

    found = path(first, last)
    if last not in found:
        if first in path(last, first):
            raise InputError(f"{good} descends from {bad}: is it the other way round?")
        hint = revisions.shallow(top)
        with suppress(InputError):
            shared = revisions.git("git", top, "merge-base", first, last)[:12]
            hint = hint or f"; their last common commit is {shared}: give that as --good"
        raise InputError(f"{good} is no ancestor of {bad}{hint}")
    line = [last]
    while line[-1] != first:
        line.append(next(p for p in found[line[-1]] if p in found or p == first))
    return line[::-1]


def _inert(top: Path, names: Sequence[str]) -> set[str]:
    """Those that change nothing which is measured, by their files."""
    asked = [f"{commit} {parent}" for parent, commit in pairwise(names)]
    told = revisions.git("git", top, "diff-tree", "--stdin", "-r", "--name-only", "--no-renames",
                         read="\n".join(asked))  # fmt: skip
    changed: dict[str, list[str]] = {name: [] for name in names}
    current = names[0]
    for line in told.splitlines():
        if line in changed:
            current = line
        else:
            changed[current].append(line.strip('"'))
    return {name for name in names[1:] if all(INERT.search(file) for file in changed[name])}

"""Commits of the user's repository, each as a tree of its own; and which arm has its files where.

The user's repository is only read: a tree borrows its objects, and lies in the cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from gpubench import files, units
from gpubench.cache import REFS, Cache
from gpubench.errors import InputError, SuiteError
from gpubench.machine import software
from gpubench.machine.processes import run_tied

LIMIT_S = 1800.0
"""Of one command: what it fetches and builds may be large."""
WORKING_TREE = "the working tree"
MADE = ".git/gpubench-made"
"""In a tree that is whole."""


class Tree(Struct, frozen=True):
    """All files that a repository tracks, as an arm has them."""

    name: str
    """In words: 'main (5319bc7abcde)', or `WORKING_TREE`."""
    top: Path
    lacks: tuple[str, ...] = ()
    """Of a `Revision`, its notes."""


class Revision(Struct, frozen=True, kw_only=True):
    """A commit with a tree of its own."""

    reference: str
    commit: str
    top: Path
    """Of the user's repository."""
    tree: Path
    """The same at the commit."""
    project: Path
    """The folder in ``tree`` that is to it what the working directory is to ``top``."""
    root: Path
    """What is to ``tree`` as / is to ``top``; in the cache, with what belongs to both."""
    notes: tuple[str, ...] = ()
    """What it lacks."""

    @property
    def name(self) -> str:
        short = self.commit[:12]
        return short if self.commit.startswith(self.reference) else f"{self.reference} ({short})"


class AbsentError(SuiteError):
    """A file that the suite names is in one arm's tree, and not in the other's."""


class Places:
    """Where each path that a suite names comes from in one arm.

    What the repository tracks comes from the arm's own tree. What git ignores, and what lies
    outside of the repository, is the same in both arms, and told.
    """

    def __init__(
        self, tree: Tree | None = None, other: Tree | None = None, worktree: Tree | None = None
    ) -> None:
        """``tree``: the arm's; ``other``: its rival's; ``worktree``: the user's own. None: all
        paths stay as they are."""
        self.tree = tree
        self.worktree = worktree
        self._others = [one for one in (other, worktree) if one and one != tree]
        self.shared: dict[str, str] = {}
        """Path -> why it is the same in both arms."""

    def __call__(self, path: str) -> str:
        """As `of`; what both arms share is noted."""
        found = self.of(path)
        if not (self.tree and os.access(found, os.F_OK)):
            return found
        real = Path(os.path.realpath(found))
        if not real.is_relative_to(self.tree.top.resolve()):
            ignored = self._below(real)[0] is not None
            self.shared[str(real)] = "ignored by git" if ignored else "outside of the repository"
        return found

    def of(self, path: str) -> str:
        """The arm's own counterpart of an absolute path. Raises AbsentError where only another tree
        has it."""
        top, below = self._below(Path(path))
        if self.tree is None or top is None:
            return path
        own = Path(path) if top == self.tree.top else self.tree.top / below
        lacks = "".join(f"; {note}" for note in self.tree.lacks)
        if os.access(own, os.F_OK):
            if self.tree.lacks and (file := next(filter(_is_pointer, _files(own)), None)):
                name = file.relative_to(self.tree.top)
                raise SuiteError(f"'{name}' of {self.tree.name} is a Git LFS pointer{lacks}")
            return str(self._filled(own, below))
        for other in self._others:
            if os.path.lexists(found := Path(path) if top == other.top else other.top / below):
                if other == self.worktree and _untracked(found, other.top):
                    return str(found)
                if os.path.lexists(own):  # a link that leads nowhere
                    continue
                sparse = (_answers(self.tree.top, "ls-files", "-t", below) or "").startswith("S")
                hint = ", whose sparse checkout leaves it out" if sparse else ""
                raise AbsentError(
                    f"'{below}' is in {other.name}, and not in {self.tree.name}{hint}{lacks}"
                )
        return str(own)

    def _filled(self, own: Path, below: Path) -> Path:
        """Of a folder that the commit has as the working tree does, the latter's where git ignores
        some of it: pictures beside a .gitkeep."""
        if self.tree is None or self.worktree in (None, self.tree) or not own.is_dir():
            return own
        top, it = self.worktree.top, f":(literal){below}"
        commit = git("git", self.tree.top, "rev-parse", "HEAD")
        listed = ("ls-files", "-o", "--exclude-standard", "--directory")
        if not _answers(top, *listed, "-i", "--", it) or _answers(top, *listed, "--", it):
            return own
        same = _answers(top, "diff", "--no-ext-diff", "--quiet", commit, "--", it) is not None
        return top / below if same else own

    def _below(self, path: Path) -> tuple[Path | None, Path]:
        """The tree that ``path`` lies in, the innermost of several, and where in it."""
        trees = [*self._others, *([self.tree] if self.tree else [])]
        tops = sorted({t.top for t in trees}, key=lambda top: -len(top.parts))
        resolved = path.parent.resolve() / path.name
        for place in (resolved,) if ".." in path.parts else (path, resolved):
            for top in tops:
                if place.is_relative_to(top):
                    return top, place.relative_to(top)
        return None, path


def _untracked(path: Path, top: Path) -> bool:
    """Whether git ignores it, or where it leads to; also what lies outside of the repository."""
    real = Path(os.path.realpath(path))  # of a circle of links, too
    asked = ("check-ignore", "-q")  # fails for what lies behind a link
    return not real.is_relative_to(top) or any(
        _answers(top, *asked, place) is not None for place in (path, real)
    )


# ------------------------------------------------------------------------------ making


def revision(option: str, reference: str, root: Path) -> Revision:
    """The repository of the working directory at ``reference``, below ``root``, the cache's.

    It is kept: a second call for the same commit is quick. Raises InputError, which begins with
    ``option``, where git does not know the reference or cannot give its files.
    """
    asked = f"{option} {reference!r}"
    top, commit = resolved(option, reference)
    here = Path.cwd().resolve().relative_to(top.resolve())
    slug = hashlib.sha256(os.fsencode(top)).hexdigest()[:8]
    place = root / REFS / f"{commit[:12]}-{slug}"
    # By the same path as below /, so that what is called ../lib here has room there.
    tree = place.joinpath(*top.parts[1:])
    with Cache(root).locked(place):
        if not (tree / MADE).exists():
            shutil.rmtree(place, ignore_errors=True)
            _clone(asked, top, tree, commit)
        notes = [
            *_submodules(asked, top, tree),
            *_large_files(asked, top, tree),
            *_neighbours(asked, top, tree, place),
        ]
    return Revision(
        reference=reference, commit=commit, top=top, tree=tree, project=tree / here, root=place,
        notes=tuple(notes),
    )  # fmt: skip


def resolved(option: str, reference: str) -> tuple[Path, str]:
    """(top of the repository of the working directory, commit). Raises InputError as `revision`."""
    asked = f"{option} {reference!r}"
    needs = f"{asked}: needs the project's git repository as current directory"
    top = Path(git(needs, Path(), "rev-parse", "--show-toplevel"))
    verify = ["rev-parse", "--verify", "--quiet", "--end-of-options"]
    unknown = f"{asked}: git knows no such commit{shallow(top)}"
    found = git(unknown, Path(), *verify, f"{reference}^{{commit}}")
    if found.startswith("^"):  # '^main': all but its history
        raise InputError(unknown)
    return top, found


def shallow(top: Path) -> str:
    """What to say of a repository that may lack history; '': it has all."""
    if git("git", top, "rev-parse", "--is-shallow-repository") != "true":
        return ""
    return (
        "; this clone is shallow, so history may be missing: git fetch --unshallow, or "
        "fetch-depth: 0 of actions/checkout"
    )


def _clone(what: str, top: Path, tree: Path, commit: str) -> None:
    """Check ``commit`` of the repository at ``top`` out into ``tree``, a new folder, with the tags.

    It borrows the objects, so the user's repository stays as it is. `git clone --shared` would not
    do: of a shallow repository it copies only what branches hold, and the base of a pull request
    is known to FETCH_HEAD alone.
    """

    def inside(name: str) -> Path:
        return Path(git(what, top, "rev-parse", "--path-format=absolute", "--git-path", name))

    kind = git(what, top, "rev-parse", "--show-object-format")
    git(what, top, "init", "-q", f"--object-format={kind}", str(tree))
    git(what, tree, "remote", "add", "origin", str(top))
    (tree / ".git/objects/info/alternates").write_bytes(os.fsencode(inside("objects")) + b"\n")
    if inside("shallow").is_file():
        shutil.copyfile(inside("shallow"), tree / ".git/shallow")
    # Projects that take their version from git look for tags.
    tags = git(what, top, "for-each-ref", "--format=create %(refname) %(objectname)", "refs/tags")
    git(what, tree, "update-ref", "--stdin", read=tags)
    if _answers(top, "config", "--get-all", "core.sparseCheckout") == "true":
        for key in ("core.sparseCheckout", "core.sparseCheckoutCone"):
            git(what, tree, "config", key, _answers(top, "config", "--get", key) or "false")
        shutil.copyfile(inside("info/sparse-checkout"), tree / ".git/info/sparse-checkout")
    git(what, tree, "checkout", "-q", "--detach", commit)
    # Of a partial clone: git says it, and reports success.
    if lacking := git(what, tree, "ls-files", "--deleted", "-z").split("\0")[:-1]:
        raise InputError(
            f"{what}: this clone lacks {units.count(len(lacking), 'file')} of {commit[:12]}, the "
            f"first {lacking[0]!r}; where it is partial: git archive -o /dev/null {commit[:12]}"
        )
    (tree / MADE).touch()


def _submodules(what: str, top: Path, tree: Path) -> Iterator[str]:
    """Check out those that ``top`` has, at the commits that ``tree`` names; what is left out."""
    for commit, place in _staged(what, tree, "160000"):
        own, made = top / place, tree / place
        if not (own / ".git").exists():
            continue
        if not (made / MADE).exists():
            if _answers(own, "cat-file", "-e", f"{commit}^{{commit}}") is None:
                yield (
                    f"submodule '{place}' is left out, its commit {commit[:12]} is not in this "
                    f"clone: git -C {place} fetch origin {commit}"
                )
                continue
            shutil.rmtree(made, ignore_errors=True)
            _clone(what, own, made, commit)
        yield from _submodules(what, own, made)
        yield from _large_files(what, own, made)


def _staged(what: str, tree: Path, mode: str) -> Iterator[tuple[str, str]]:
    """(object, path) of what git has in that mode."""
    for line in git(what, tree, "ls-files", "--stage", "-z").split("\0"):
        facts, _, path = line.partition("\t")
        if facts.startswith(mode):  # '160000 5319bc7... 0'
            yield facts.split()[1], path


def _large_files(what: str, top: Path, tree: Path) -> Iterator[str]:
    """Fetch what Git LFS keeps elsewhere, as the user's repository would; what could not be."""
    kept = git(what, tree, "ls-files", "-z", "--", ":(attr:filter=lfs)").split("\0")
    left = [name for name in kept if name and _is_pointer(tree / name)]
    if not left:
        return
    many = f"{units.count(len(left), 'file')} of Git LFS, the first '{left[0]}'"
    if _answers(tree, "lfs", "version") is None:
        yield f"{many}: git lfs is not installed; install it and start again"
        return
    try:
        git(what, tree, "lfs", "install", "--local", "--skip-repo")
        run("git lfs pull", software.git(tree, "lfs", "pull"), _fetching_as(what, top))
    except InputError as error:
        yield f"{many}: {error}"


def _fetching_as(what: str, top: Path) -> dict[str, str]:
    """Environment variables by which git, elsewhere, fetches as in ``top``: from where, and with
    which credentials. Including its settings would not do: what they include by the repository's
    place (as actions/checkout has its token) is found there alone.
    """
    found = software.environ_of_another() | {"GIT_TERMINAL_PROMPT": "0"}
    count = int(found.get("GIT_CONFIG_COUNT") or 0)
    for line in git(what, top, "config", "--local", "--includes", "--list", "-z").split("\0"):
        key, given, value = line.partition("\n")
        if key and not re.match(r"core\.(?!sshcommand|askpass)|extensions\.|include", key):
            found[f"GIT_CONFIG_KEY_{count}"] = key
            found[f"GIT_CONFIG_VALUE_{count}"] = value if given else "true"
            count += 1
    return found | {"GIT_CONFIG_COUNT": str(count)}


def _is_pointer(file: Path) -> bool:
    with suppress(OSError), files.opened(file) as content:
        return content.read(len(files.POINTER)) == files.POINTER
    return False


def _files(place: Path) -> Iterator[Path]:
    """A file, or those below a folder."""
    yield from (place,) if place.is_file() else filter(Path.is_file, place.rglob("*"))


def _neighbours(what: str, top: Path, tree: Path, root: Path) -> Iterator[str]:
    """Link what its symbolic links and its projects' sources lead to outside of the repository;
    sources that are not there.

    ``root``: what is to ``tree`` as / is to ``top``.
    """

    found, known = set[Path](), set[Path]()

    def outside(folder: Path, path: str) -> Path | None:
        """To where ``path`` leads from a folder, which is found then; None: it stays inside."""
        real = Path(os.path.normpath(folder / path))
        if Path(path).is_absolute() or real.is_relative_to(top):
            return None
        found.add(real)
        return real

    for _, name in _staged(what, tree, "120000"):
        with suppress(OSError):  # a sparse checkout leaves it out
            outside((top / name).parent, str((tree / name).readlink()))
    listed = git(what, tree, "ls-files", "-z", "--", ":(glob)**/pyproject.toml").split("\0")
    projects = [(tree / name, top / name) for name in listed if name]
    while projects:
        file, as_if = projects.pop()
        for name, path in _sources(file):
            real = outside(as_if.parent, path)
            if real is None or real in known:
                continue
            known.add(real)
            if not real.exists():
                yield (
                    f"{as_if}: {name} = {path!r} leads to {real}, which is not there: put it back, "
                    "or name an environment that is made, with --baseline-python"
                )
            projects.append((real / "pyproject.toml", real / "pyproject.toml"))
    for real in sorted(found):  # a folder before what is in it
        link = root.joinpath(*real.parts[1:])
        if real.exists() and not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(real)


def _sources(pyproject: Path) -> Iterator[tuple[str, str]]:
    """(key, path) of what uv is to take from files."""
    found: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        found = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    for key in ("tool", "uv"):
        inner = found.get(key)
        found = inner if isinstance(inner, dict) else {}
    sources = found.get("sources", {})
    for name, said in sources.items() if isinstance(sources, dict) else ():
        for one in said if isinstance(said, list) else [said]:
            if isinstance(one, dict) and isinstance(one.get("path"), str):
                yield f"tool.uv.sources.{name}", one["path"]


# ------------------------------------------------------------------------------ running


def git(what: str, at: Path, *words: str, read: str = "") -> str:
    """What git answers. InputError begins with ``what``."""
    environ = software.environ_of_git() | {"GIT_LFS_SKIP_SMUDGE": "1"}
    return run(f"{what}: git {words[0]}", software.git(at, *words), environ, read)


def _answers(at: Path, *words: str | Path) -> str | None:
    """What git answers; None: it fails."""
    with suppress(InputError):
        return git("", at, *map(str, words))
    return None


def run(
    what: str,
    command: Sequence[str],
    environ: Mapping[str, str],
    read: str = "",
    log: Path | None = None,
) -> str:
    """The command's output; it reads ``read``. InputError begins with ``what``, and names the
    ``log`` that has all it said."""
    try:
        done = run_tied(command, environ, f"{read}\n" if read else "", LIMIT_S)
    except FileNotFoundError as error:
        raise InputError(f"{what}: {command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{what} was not done after {LIMIT_S:g} s") from error
    if done.returncode:
        told = done.stderr.strip()[-600:]
        if log:
            files.put(log, os.fsencode(done.stderr))
            told += f" (all of it: {log})"
        raise InputError(f"{what} failed: {told}".rstrip(": "))
    return done.stdout.strip()

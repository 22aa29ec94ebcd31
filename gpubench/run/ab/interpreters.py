"""Interpreters for the arms of an A/B: one that is there, or one made from a git reference."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path

import gpubench
from gpubench.cache import REFS, Cache
from gpubench.errors import InputError
from gpubench.machine import software
from gpubench.machine.import_check import try_imports
from gpubench.machine.processes import run_tied

SYNC_LIMIT_S = 1800.0


def existing(option: str, python: Path) -> Path:
    """An interpreter, or the directory of a virtual environment, that has gpubench."""
    found = python / "bin/python" if python.is_dir() else python
    if not (found.is_file() and os.access(found, os.X_OK)):
        raise InputError(f"{option} {python}: no interpreter there; expected .../bin/python")
    found = found.absolute()  # not resolved: the link is what makes it a virtual environment
    if not has_gpubench(found):
        raise InputError(
            f"{option} {python}: cannot import gpubench; install it there: "
            f"uv pip install --python {found} gpubench=={gpubench.__version__}"
        )
    return found


def of_reference(reference: str, root: Path) -> tuple[Path, str]:
    """(interpreter, commit) of an environment with the project in this directory at ``reference``.

    The working tree lies below ``root`` and is kept: a second call for the same commit is quick.
    Raises InputError when git does not know the reference or the environment cannot be made.
    """
    needs = f"--baseline-ref {reference!r}: needs the project's git repository as current directory"
    top = Path(_git(needs, Path(), "rev-parse", "--show-toplevel"))
    verify = ["rev-parse", "--verify", "--quiet", "--end-of-options"]
    unknown = f"--baseline-ref {reference!r}: git knows no such commit"
    if _git(needs, Path(), "rev-parse", "--is-shallow-repository") == "true":
        unknown += (
            "; this clone is shallow, so history may be missing: git fetch --unshallow, or "
            "fetch-depth: 0 of actions/checkout"
        )
    commit = _git(unknown, Path(), *verify, f"{reference}^{{commit}}")
    here = Path.cwd().resolve().relative_to(top.resolve())
    slug = hashlib.sha256(os.fsencode(top)).hexdigest()[:8]
    tree = root / REFS / f"{commit[:12]}-{slug}"
    with Cache(root).locked(tree):
        ready = tree.with_suffix(".ready")
        if not ready.exists():
            shutil.rmtree(tree, ignore_errors=True)
            _clone(top, tree, commit)
        project = tree / here
        if not (project / "pyproject.toml").is_file():
            raise InputError(
                f"--baseline-ref {reference!r}: there is no pyproject.toml at that commit; make an "
                "environment by other means and name it with --baseline-python"
            )
        python = project / ".venv/bin/python"
        if not (ready.exists() and has_gpubench(python)):
            if (uv := shutil.which("uv")) is None:
                raise InputError("--baseline-ref needs uv to make the environment: pip install uv")
            environ = software.environ_of_another()
            sync = [uv, "sync", "-q", "--no-dev", "--project", str(project)]
            into = {"UV_PROJECT_ENVIRONMENT": str(python.parents[1])}
            _run("--baseline-ref: uv sync", sync, environ | into)
            if not has_gpubench(python):
                install = [uv, "pip", "install", "-q", "--python", str(python), own_source()]
                _run("--baseline-ref: uv pip install", install, environ)
            ready.touch()
    return existing("--baseline-ref", python), commit


def _clone(top: Path, tree: Path, commit: str) -> None:
    """Check ``commit`` of the repository at ``top`` out into ``tree``, with the tags.

    It borrows the objects, so the user's repository stays as it is. `git clone --shared` would not
    do: of a shallow repository it copies only what branches hold, and the base of a pull request
    is known to FETCH_HEAD alone.
    """

    def git(at: Path, *words: str, read: str = "") -> str:
        return _git("--baseline-ref", at, *words, read=read)

    def inside(name: str) -> Path:
        return Path(git(top, "rev-parse", "--path-format=absolute", "--git-path", name))

    kind = git(top, "rev-parse", "--show-object-format")
    git(top, "init", "-q", f"--object-format={kind}", str(tree))
    git(tree, "remote", "add", "origin", str(top))
    (tree / ".git/objects/info/alternates").write_bytes(os.fsencode(inside("objects")) + b"\n")
    if inside("shallow").is_file():
        shutil.copyfile(inside("shallow"), tree / ".git/shallow")
    # Projects that take their version from git look for tags.
    tags = git(top, "for-each-ref", "--format=create %(refname) %(objectname)", "refs/tags")
    git(tree, "update-ref", "--stdin", read=tags)
    git(tree, "checkout", "-q", "--detach", commit)


def has_gpubench(python: Path) -> bool:
    """Whether ``python`` has a gpubench of its own."""
    try:
        return "error" not in try_imports(["gpubench.run"], 60, python)["gpubench.run"]
    except OSError:
        return False


def own_source() -> str:
    """What to install so that an environment has this gpubench: where ours was installed from."""
    checkout = Path(gpubench.__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        return str(checkout)
    told = distribution("gpubench").read_text("direct_url.json")  # PEP 610; none: an index
    if told is None:
        return f"gpubench=={gpubench.__version__}"
    direct = json.loads(told)
    vcs = direct.get("vcs_info")
    return f"gpubench @ {vcs['vcs']}+{direct['url']}@{vcs['commit_id']}" if vcs else (
        f"gpubench @ {direct['url']}"
    )  # fmt: skip


def _git(what: str, at: Path, *words: str, read: str = "") -> str:
    return _run(
        f"{what}: git {words[0]}", software.git(at, *words), software.environ_of_git(), read
    )


def _run(what: str, command: Sequence[str], environ: Mapping[str, str], read: str = "") -> str:
    """The command's output; it reads ``read``. InputError begins with ``what``."""
    try:
        done = run_tied(command, environ, f"{read}\n" if read else "", SYNC_LIMIT_S)
    except FileNotFoundError as error:
        raise InputError(f"{what}: {command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{what} was not done after {SYNC_LIMIT_S:g} s") from error
    if done.returncode:
        tail = done.stderr.strip()[-600:]
        raise InputError(f"{what} failed: {tail}".rstrip(": "))
    return done.stdout.strip()

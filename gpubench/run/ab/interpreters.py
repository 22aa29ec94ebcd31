"""Interpreters for the arms of an A/B: one that is there, or one made from a git reference."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import msgspec

import gpubench
from gpubench import plugins
from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.machine import software
from gpubench.machine.import_check import try_imports
from gpubench.run.ab import revisions
from gpubench.run.ab.revisions import Revision, run

RUNTIMES = ("torch", "onnxruntime", "openvino")


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


class Made(Revision, frozen=True, kw_only=True):
    """A commit with a tree and an environment of its own."""

    python: Path


def of_reference(option: str, reference: str, root: Path, python: Path | None = None) -> Made:
    """An environment with the project in this directory at ``reference``, and its tree.

    Both lie below ``root``, the cache's, and are kept: a second call for the same commit is quick.
    ``python``: an interpreter that is there, instead. Raises InputError, which begins with
    ``option``, when git does not know the reference or the environment cannot be made.
    """
    found = revisions.revision(option, reference, root)
    if python:
        return Made(**msgspec.structs.asdict(found), python=python)
    if not (found.project / "pyproject.toml").is_file():
        file = (found.project / "pyproject.toml").relative_to(found.tree)
        beside = option.replace("-ref", "-python")
        remedy = f"; name one that is there: {beside} PYTHON" if beside != option else ""
        raise InputError(
            f"{option} {reference!r}: there is no {file} at that commit, of which uv would make "
            f"the environment{remedy}"
        )
    python = found.project / ".venv/bin/python"
    with Cache(root).locked(found.root):
        ready = found.root.with_suffix(".ready")
        if not (ready.exists() and has_gpubench(python)):
            _sync(option, found, python)
            existing(option, python)
            ready.touch()
    return Made(**msgspec.structs.asdict(found), python=python)


def find_uv(option: str) -> str:
    """Raises InputError where it is not installed."""
    if (found := shutil.which("uv")) is None:
        raise InputError(f"{option} needs uv to make the environment: pip install uv")
    return found


def _sync(option: str, revision: Revision, python: Path) -> None:
    uv = find_uv(option)
    lacks = "".join(f"; {note}" for note in revision.notes)
    environ, venv = software.environ_of_another(), python.parents[1]
    shutil.rmtree(venv, ignore_errors=True)  # it may be half made
    into = environ | {"UV_PROJECT_ENVIRONMENT": str(venv)}
    what, log = f"{option} {revision.reference!r}", revision.root / "uv.log"
    for more in (["--no-dev"], []):  # where gpubench is for developers: as they have locked it
        sync = [uv, "sync", "-q", *more, "--project", str(revision.project)]
        run(f"{what}{lacks}: uv sync", sync, into, log=log)
        if has_gpubench(python) and has_runtimes(python):
            return
    if not has_gpubench(python):
        source = own_source(plugins.extras())
        install = [uv, "pip", "install", "-q", "--python", str(python), source]
        run(f"{what}: uv pip install gpubench", install, environ, log=log)


def has_gpubench(python: Path) -> bool:
    """Whether ``python`` has a gpubench of its own."""
    try:
        return "error" not in try_imports(["gpubench.run"], 60, python)["gpubench.run"]
    except OSError:
        return False


def has_runtimes(python: Path) -> bool:
    """Whether ``python`` has the libraries of those that are here, in whichever version."""
    here = [name for name in RUNTIMES if find_spec(name)]
    look = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    environ = software.environ_of_python(other=True)
    return subprocess.run([python, "-c", look, *here], env=environ, check=False).returncode == 0


def own_source(extras: Sequence[str] = ()) -> str:
    """What to install so that an environment has this gpubench: where ours was installed from."""
    chosen = f"[{','.join(extras)}]" if extras else ""
    checkout = Path(gpubench.__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f"{checkout}{chosen}"
    told = distribution("gpubench").read_text("direct_url.json")  # PEP 610; none: an index
    if told is None:
        return f"gpubench{chosen}=={gpubench.__version__}"
    direct = json.loads(told)
    if vcs := direct.get("vcs_info"):
        return f"gpubench{chosen} @ {vcs['vcs']}+{direct['url']}@{vcs['commit_id']}"
    return f"gpubench{chosen} @ {direct['url']}"

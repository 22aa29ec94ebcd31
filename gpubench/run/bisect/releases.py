"""The releases of a library between a good one and a bad one, as versions of a bisection.

Each has an environment of its own that lies over this one: the release and what it needs in other
versions come first on the path, and all the rest is shared. uv lists and installs them, from
whichever index it is set up for.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import site
import sys
from importlib.util import find_spec
from pathlib import Path

from packaging.utils import canonicalize_name

from gpubench import files
from gpubench.cache import REFS, Cache
from gpubench.errors import InputError
from gpubench.machine import software
from gpubench.run.ab import interpreters
from gpubench.run.ab.interpreters import find_uv
from gpubench.run.ab.revisions import run
from gpubench.run.bisect.row import Arm, Row, Version

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
NUMBER = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+|\.post\d+|\.dev\d+)*(\+[a-z0-9.]+)?")
NO_SUCH = "No solution found"
"""In what uv says where no release fits."""


class Releases(Row):
    """Those that this Python can have, from good to bad; pre-releases only where asked for.

    Raises InputError for a package that is not installed here, and for releases that there are not.
    """

    def __init__(self, package: str, good: str, bad: str, root: Path) -> None:
        if not NAME.fullmatch(package):
            raise InputError(
                f"--package {package!r}: expected the name of one package, such as onnxruntime"
            )
        self._package, self._root, self._own = package, root, canonicalize_name(package)
        here = software.packages()
        self._here = {name: here[name] for name in here if name not in ("", "gpubench")}
        module = self._own.replace("-", "_")  # a sister package may be what brings it
        if self._own not in self._here and find_spec(module) is None:
            raise InputError(
                f"--package {package!r}: is not installed here, so nothing that is measured "
                f"would use it: uv pip install {package}"
            )
        for option, number in (("--good", good), ("--bad", bad)):
            if not NUMBER.fullmatch(number):
                raise InputError(f"{option} {number!r}: expected a version, such as 1.20.1")
        if good == bad:
            raise InputError(f"--good and --bad are one release, {good}")
        for option, number in (("--good", good), ("--bad", bad)):
            if self._newest(f"=={number}", f"{option} {number!r}") is None:
                raise InputError(
                    f"{option} {number!r}: there is no such release of {package} for this Python "
                    "and machine"
                )
        if self._newest(f">{_public(good)},=={bad}", "--bad") is None:
            raise InputError(f"--good {good!r} is no earlier release than --bad {bad!r}")
        found = [bad]
        limits = "--prerelease", "disallow"
        while older := self._newest(f">{_public(good)},<{_public(found[-1])}", package, *limits):
            found.append(older)
        numbers = [good, *reversed(found)]
        super().__init__("release", [Version(n, f"{package} {n}") for n in numbers])

    def arm(self, place: int) -> Arm:
        return Arm(self._environment(place), None)

    def words(self, first: int, second: int) -> list[str]:
        pythons = [str(self._place(n) / "bin/python") for n in (first, second)]
        return ["--baseline-python", pythons[0], "--candidate-python", pythons[1]]

    def _newest(self, limits: str, what: str, *more: str) -> str | None:
        """The newest release within ``limits``, or None."""
        words = ("pip", "compile", "-", "--no-deps", "-q", "--no-header", "--no-annotate",
                 "--color", "never", "--python", sys.executable, *more)  # fmt: skip
        asked = f"{self._package}{limits}"
        try:
            said = run(what, [find_uv("--package"), *words], software.environ_of_another(), asked)
        except InputError as error:
            if NO_SUCH in str(error):
                return None
            raise
        lines = [line for line in said.splitlines() if "==" in line]
        return lines[0].partition("==")[2].split()[0] if lines else None

    def _place(self, place: int) -> Path:
        """Where its environment is, or is to be."""
        release = [self._package, self.versions[place].name, sys.prefix, sorted(self._here.items())]
        name = hashlib.sha256(json.dumps(release).encode()).hexdigest()
        return self._root / REFS / f"{name[:12]}-{name[12:20]}"

    def _environment(self, place: int) -> Path:
        where, option = self._place(place), self.option(place)
        python, ready = where / "bin/python", where.with_suffix(".ready")
        release = f"{self._package}=={self.versions[place].name}"
        with Cache(self._root).locked(where):
            if not (ready.exists() and interpreters.has_gpubench(python)):
                shutil.rmtree(where, ignore_errors=True)  # it may be half made
                uv, environ = find_uv("--package"), software.environ_of_another()
                run(option, [uv, "venv", "-q", "--python", sys.executable, str(where)], environ)
                pins = where / "constraints.txt"
                pinned = [f"{n}=={v}" for n, v in sorted(self._here.items()) if n != self._own]
                files.put(pins, "\n".join(pinned).encode())
                install = [uv, "pip", "install", "-q", "--python", str(python), release]
                try:
                    run(option, [*install, "-c", str(pins)], environ)
                except InputError as error:
                    if NO_SUCH not in str(error):
                        raise
                    run(option, install, environ)  # it needs other versions of something
                (inside,) = where.glob("lib/python*/site-packages")
                below = [f"import site; site.addsitedir({p!r})" for p in site.getsitepackages()]
                files.put(inside / "gpubench-below.pth", "\n".join(below).encode())
                interpreters.existing(option, python)
                ready.touch()
        return python


def _public(number: str) -> str:
    return number.partition("+")[0]

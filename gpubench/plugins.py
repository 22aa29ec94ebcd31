"""Backends and decoders by name: built-ins and third parties alike are entry points of a group."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import (
    EntryPoint,
    PackageNotFoundError,
    distribution,
    entry_points,
    metadata,
    packages_distributions,
    version,
)
from importlib.util import find_spec
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from gpubench.errors import InputError, Unavailable

_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}
"""Module -> the package that has it, where they are called otherwise."""


def names(group: str) -> list[str]:
    """Names of all that is registered in ``group``, sorted; imports nothing."""
    return sorted(_entries(group))


def get(group: str, name: str) -> Any:
    """What is registered as ``name``, called without arguments.

    ``group``: 'gpubench.backends', for example. Raises InputError when there is no such name, or
    its module cannot be loaded.
    """
    entry, kind = _entries(group).get(name), group.rpartition(".")[2].removesuffix("s")
    if entry is None:
        raise InputError(f"unknown {kind} {name!r}; registered: {', '.join(names(group))}")
    try:
        return entry.load()()
    except Exception as error:  # a third party's module may raise anything at import
        raise InputError(f"{kind} {name!r} ({entry.value}) cannot be loaded: {error!r}") from error


def installed(*packages: str, extra: str = "", remedy: str = "") -> dict[str, str]:
    """Their versions.

    ``extra``: of gpubench, which brings all of them; '': whichever does. Raises Unavailable for one
    that is not there, or is older than what gpubench declares of it.
    """
    found: dict[str, str] = {}
    for name in packages:
        declared = _declared(name)
        try:
            found[name] = version(name)
        except PackageNotFoundError as error:
            what = f"'gpubench[{extra or declared.extra}]'" if extra or declared.extra else name
            raise Unavailable(
                f"{name} is not installed", remedy or f"pip install {what}"
            ) from error
        check(name, found[name])
    return found


def check(package: str, found: str, remedy: str = "", *, of: str = "") -> None:
    """Raises Unavailable where gpubench declares that it needs another version than ``found``.

    ``of``: what ``package`` is a build of, and declared as.
    """
    need = _declared(of or package).need
    if not serves(found, need):
        raise Unavailable(
            f"{package} {found} is installed, and gpubench needs {need}",
            remedy
            or (
                f"pip install '{package}{need}'"
                if _from_an_index(package, found)
                else f"update it to {need} from where it came: pip would replace that build"
            ),
        )


def need(what: str, package: str, *, extra: str) -> None:
    """Raises InputError where ``package``, which ``what`` needs, is not there or too old."""
    try:
        installed(package, extra=extra)
    except Unavailable as lack:
        raise InputError(f"{what}: {lack.reason}; {lack.remedy}") from lack


def is_here(package: str) -> bool:
    """Whether it is installed, in whichever version."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


@cache
def builds(module: str) -> tuple[str, ...]:
    """The packages that have it: several where one has overwritten files of another.

    Reads the lists of files of all packages: takes a second where there are many.
    """
    return tuple(sorted(set(packages_distributions().get(module, ()))))


def package_of(module: str, *usual: str) -> str:
    """The one that ``module`` comes from, of several that have it; '': none is here.

    ``usual``: those that are looked for first, which is quicker.
    """
    if here := next(filter(is_here, usual), ""):
        return here
    return next(iter(builds(module)), "") if find_spec(module) else ""


def reinstall(module: str) -> str:
    """How to install once more what ``module`` comes from, in the version and build that it has."""
    lines = []
    for name in builds(module):
        found = version(name)
        index = f": pip install --force-reinstall --no-deps {name}=={found}"
        lines.append(
            f"reinstall {name} {found}"
            + (index if _from_an_index(name, found) else " from where it came")
        )
    return "; ".join(lines) or f"pip install {_DISTRIBUTIONS.get(module, module)}"


def _from_an_index(package: str, found: str) -> bool:
    """Whether pip would find its like in the index: no vendor's build, nor of conda or a system."""
    try:
        installer = distribution(package).read_text("INSTALLER") or ""
    except PackageNotFoundError:
        return True
    return installer.strip() in ("pip", "uv") and "+" not in found


def outdated() -> dict[str, Unavailable]:
    """What is installed in a version that gpubench declares as too old, by package."""
    found = {}
    for name in sorted(set().union(*_brings().values())):
        try:
            if is_here(name):
                check(name, version(name))
        except Unavailable as lack:
            found[name] = lack
    return found


def lacking(error: BaseException) -> Unavailable | None:
    """What is missing, or too old, where ``error`` says that a module cannot be found.

    None for what gpubench does not declare: that is its user's own.
    """
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    top = error.name.partition(".")[0]
    name = _DISTRIBUTIONS.get(top, top)
    if _declared(name) == _Declared():
        return None
    try:
        installed(name)
    except Unavailable as lack:
        return lack
    return None


def declared(package: str) -> SpecifierSet:
    """The versions of it that gpubench says it needs."""
    return _declared(package).need


def serves(found: str, need: str | SpecifierSet) -> bool:
    """Whether version ``found`` is one of ``need``.

    A vendor's build, such as 2.11.0a0+abc.nv26.01, counts as the release that it is called after.
    """
    try:
        base = Version(found).base_version
    except InvalidVersion:
        return True  # of no release at all: its maker knows
    return SpecifierSet(str(need)).contains(base, prereleases=True)


def extras() -> list[str]:
    """Of gpubench, those all of whose packages are installed; without those that another has."""
    core = _brings()[""].keys()
    brings = {extra: brought.keys() - core for extra, brought in _brings().items()}
    here = {extra: names for extra, names in brings.items() if names and all(map(is_here, names))}
    return sorted(e for e, names in here.items() if not any(names < o for o in here.values()))


class _Declared(NamedTuple):
    """What gpubench says of a package that it uses."""

    need: SpecifierSet = SpecifierSet()
    extra: str = ""
    """The smallest that brings it; '': gpubench itself does."""


@cache
def _brings() -> Mapping[str, Mapping[str, SpecifierSet]]:
    """What gpubench's extras, and '' for itself, bring where this machine's markers hold."""
    about = metadata("gpubench")
    every = [Requirement(one) for one in about.get_all("Requires-Dist") or ()]
    return {
        extra: {
            canonicalize_name(one.name): one.specifier
            for one in every
            if not one.marker or one.marker.evaluate({"extra": extra})
        }
        for extra in ("", *(about.get_all("Provides-Extra") or ()))
    }


def _declared(package: str) -> _Declared:
    name = canonicalize_name(package)
    having = [extra for extra, brought in _brings().items() if name in brought]
    if not having:
        return _Declared()
    smallest = min(having, key=lambda extra: len(_brings()[extra]))
    return _Declared(_brings()[smallest][name], smallest)


def _entries(group: str) -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}

"""The two arms of an interleaved A/B: what differs, and which cell is compared with which."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gpubench.errors import InputError, SuiteError
from gpubench.run.ab.revisions import AbsentError, Places
from gpubench.run.serving import compatibility, manifest
from gpubench.suite import toml_file
from gpubench.suite.file import Draft, listed
from gpubench.suite.types import Cell, Suite

AXES = ("backend", "device", "precision", "input", "batch_size", "replicas", "replicas_per_device",
        "sharing", "dispatch", "decoder", "loader", "loader_cores", "cache")  # fmt: skip
NETWORK = ("model", "weights", "output", "calibration")
"""Keys of the workload that make other answers to the same question."""
TABLES = ("preprocess", "arguments")
"""Likewise, each key of them: 'preprocess.mean'."""
FIELDS = (*AXES, *NETWORK, *(f"{table}.KEY" for table in TABLES))
"""What the arms may differ in besides a backend's options; the rest would be another question."""
SINGLE = ("device", *NETWORK)
SAME = {
    "images": "use --images",
    "labels": "use --labels",
    "cores": "set axes.cores in the suite",
    "scenario": "use --scenario",
    "boundary": "use --boundary",
}
"""What must be the same in both arms, and how both are told."""


class Stored(Struct, frozen=True):
    """What `gpubench deploy` has written, as an arm."""

    cell: Cell
    artefact: Path
    contents: str
    """SHA-256 over its files."""
    notes: tuple[str, ...]
    """What differs from where it was checked."""


class Spec(Struct, frozen=True):
    """What one arm was asked to be: {'backend': 'onnxruntime', 'memory_format': ...}."""

    option: str
    """'--baseline' or '--candidate', for messages."""
    values: dict[str, str]
    stored: Stored | None = None

    @property
    def words(self) -> str:
        """'backend=onnxruntime,precision=bf16'."""
        return ",".join(f"{key}={value}" for key, value in self.values.items())

    @property
    def named(self) -> set[str]:
        """What it differs in, or may."""
        own = {*AXES, *self.stored.cell.options} if self.stored else set()
        return own | {*self.values}


def parse(option: str, texts: Sequence[str], same: Collection[str] = tuple(SAME)) -> Spec:
    """('backend=onnxruntime,precision=bf16', 'preprocess.mean=[0.5, 0.5, 0.5]') -> Spec.

    ``same``: what must not be given.
    """
    pairs: list[tuple[str, str]] = []
    for pair in (part for text in texts for part in re.split(r",(?![^\[]*\])", text)):
        key, equals, value = (word.strip() for word in pair.partition("="))
        if not (key and equals and value):
            raise SuiteError(f"{option} {pair!r}: expected KEY=VALUE, such as backend=onnxruntime")
        pairs.append((key, value))
    return spec(option, pairs, same)


def spec(
    option: str, pairs: Sequence[tuple[str, str]], same: Collection[str] = tuple(SAME)
) -> Spec:
    """The same from (key, value)."""
    values: dict[str, str] = {}
    for key, value in pairs:
        pair = f"{key}={value}"
        if key in same:
            raise SuiteError(
                f"{option} {pair!r}: {key} must be the same in both arms, or they answer different "
                f"questions; {SAME[key]}"
            )
        if key in values:
            raise SuiteError(f"{option} {pair!r}: {key} is given twice")
        values[key] = value
    return Spec(option, values)


def opened(spec: Spec) -> Spec:
    """With what a ``deployment=DIR`` in it says. Raises InputError, Unavailable."""
    folder = spec.values.get("deployment")
    if folder is None:
        return spec
    if more := spec.values.keys() - {"deployment", *NETWORK}:
        raise SuiteError(
            f"{spec.option} {spec.words}: {min(more)} is the deployment's own; beside deployment "
            "only model and weights can be named: where the network that it was made of lies now"
        )
    root = Path(folder).absolute()
    try:
        made = manifest.read(root)
        manifest.verify(root, made)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compatibility.check(made, compatibility.machine(made.cell, made.decoder))
    except InputError as error:
        raise InputError(f"{spec.option} {spec.words}: {error}") from error
    artefact = root / manifest.inside(root, made.artefact)
    contents = manifest.digest_of(made)
    notes = tuple(f"{folder}: {warning.message}" for warning in caught)
    return msgspec.structs.replace(spec, stored=Stored(made.cell, artefact, contents, notes))


def suite_of(
    spec: Spec, draft: Draft, chosen: Mapping[str, Any], own: Places | None = None
) -> Suite:
    """The suite as this arm measures it, with its ``own`` files. Raises SuiteError.

    What is wrong with the arm begins with the arm's option; a mistake in the suite or in ``chosen``
    is both arms', and told as theirs.
    """
    try:
        return draft.suite(_overrides(spec, draft, chosen), own or str)
    except AbsentError:
        raise
    except SuiteError as error:
        draft.suite(chosen)  # raises what is wrong with both arms
        whose = spec.words or (own and own.tree and own.tree.name)
        hint = "; it is checked against the network that it was made of: name that with model=..."
        raise SuiteError(f"{spec.option} {whose}: {error}{hint if spec.stored else ''}") from error


def _overrides(spec: Spec, draft: Draft, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What takes the place of the suite's words in this arm."""
    overrides = {key: value for key, value in chosen.items() if value is not None}
    options: dict[str, str] = {}
    if spec.stored:
        overrides |= _as_deployed(spec.stored.cell)
    for key, value in spec.values.items():
        table, _, name = key.partition(".")
        if key in (*AXES, *NETWORK):
            overrides[key] = value if key in SINGLE else [value]
        elif table in TABLES and name:
            overrides[table] = overrides.get(table, {}) | {name: toml_file.value(value)}
        elif key != "deployment":
            options[key] = value
    names, known = listed(overrides.get("backend", draft.backends)), draft.known_options
    if not options or not known.keys() >= {*names}:  # the check says which is unknown
        return overrides
    tables = {name: draft.options.get(name, {}) for name in names}
    for key, text in options.items():
        having = [name for name in names if key in known[name]]
        if not having:
            words = ", ".join([*FIELDS, *sorted({k for name in names for k in known[name]})])
            raise SuiteError(f"{key}={text!r}: there is no such key; known: {words}")
        for name in having:
            tables[name] = tables[name] | {key: [toml_file.value(text)]}
    kept = [name for name in names if all(key in tables[name] for key in options)]
    if not kept:
        raise SuiteError("no backend has all of these options")
    return {**overrides, "options": {name: tables[name] for name in kept}, "backend": kept}


def _as_deployed(cell: Cell) -> dict[str, Any]:
    """All that it was deployed with; what is asked of it is the suite's."""
    said: dict[str, Any] = {
        key: value if key in SINGLE else [value]
        for key in (*AXES, *NETWORK)
        if (value := getattr(cell, key)) != ""
    }
    if cell.preprocess:
        said["preprocess"] = {key: cell.preprocess.plain(key) for key in cell.preprocess.given}
    if cell.arguments:
        said["arguments"] = dict(cell.arguments)
    options = {name: [value] for name, value in cell.options.items()}
    return said | {"options": {cell.backend: options}}


def match(
    baseline: Spec, candidate: Spec, before: Sequence[Cell], after: Sequence[Cell]
) -> list[tuple[Cell, Cell]]:
    """Cells that are equal but for what the specs name, in the order of the candidate's.

    Cells of one arm without a counterpart are left out. Raises SuiteError where there is more
    than one counterpart, or none at all.
    """
    named = baseline.named | candidate.named
    first, second = _by_identity(baseline, before, named), _by_identity(candidate, after, named)
    pairs = [(first[key], cell) for key, cell in second.items() if key in first]
    if not pairs:
        raise SuiteError(
            f"--baseline {baseline.words!r} and --candidate {candidate.words!r} have no cell in "
            f"common; the baseline's first is '{before[0].label}', "
            f"the candidate's '{after[0].label}'"
        )
    return pairs


def _by_identity(spec: Spec, cells: Sequence[Cell], named: set[str]) -> dict[object, Cell]:
    found: dict[object, Cell] = {}
    for cell in cells:
        key = _identity(cell, named)
        if key in found:
            given = repr(spec.words) if spec.words else "(not given)"
            raise SuiteError(
                f"{spec.option} {given} leaves a choice between '{found[key].label}' and "
                f"'{cell.label}'; name what tells them apart, here or with an option such as "
                "--backend"
            )
        found[key] = cell
    return found


def _identity(cell: Cell, named: set[str]) -> object:
    """What must be equal in both arms. Options belong to a backend: of two, they may differ."""
    # Cores are shared out over replicas, and a GPU's cells have none: they follow from these two.
    shared = {"replicas", "replicas_per_device", "device"}
    free = named | ({"cores"} if named & shared else set())
    # A lone replica shares its device with nobody, whatever the suite says.
    free |= {"replicas_per_device"} if "replicas" in named else set()
    fields = [getattr(cell, f) for f in (*AXES, "cores", "scenario", "boundary") if f not in free]
    options = {} if "backend" in named else cell.options
    return repr((fields, sorted((k, v) for k, v in options.items() if k not in named)))

"""The two arms of an interleaved A/B: what differs, and which cell is compared with which."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec import Struct

from gpubench.errors import SuiteError
from gpubench.run.ab.revisions import AbsentError, Places
from gpubench.suite import toml_file
from gpubench.suite.file import Draft, listed
from gpubench.suite.types import Cell, Suite

FIELDS = ("backend", "device", "model", "weights", "precision", "input", "batch_size",
          "replicas", "replicas_per_device", "dispatch")  # fmt: skip
"""What the arms may differ in besides a backend's options; the rest would be another question."""
SAME = ("images", "cores", "scenario", "boundary")
FILES = ("model", "weights", "images")
"""Of which a suite has one: they tell no cells of an arm apart."""


class Spec(Struct, frozen=True):
    """What one arm was asked to be: {'backend': 'onnxruntime', 'memory_format': ...}."""

    option: str
    """'--baseline' or '--candidate', for messages."""
    values: dict[str, str]

    @property
    def words(self) -> str:
        """'backend=onnxruntime,precision=bf16'."""
        return ",".join(f"{key}={value}" for key, value in self.values.items())


def parse(option: str, texts: Sequence[str], same: Collection[str] = SAME) -> Spec:
    """('backend=onnxruntime,precision=bf16', 'threads=2') -> Spec.

    ``same``: what must not be given.
    """
    values: dict[str, str] = {}
    for pair in (part for text in texts for part in text.split(",")):
        key, equals, value = (word.strip() for word in pair.partition("="))
        if not (key and equals and value):
            raise SuiteError(f"{option} {pair!r}: expected KEY=VALUE, such as backend=onnxruntime")
        if key in same:
            how = "set axes.cores in the suite" if key == "cores" else f"use --{key}"
            raise SuiteError(f"{option} {pair!r}: {key} must be the same in both arms; {how}")
        if key in values:
            raise SuiteError(f"{option} {pair!r}: {key} is given twice")
        values[key] = value
    return Spec(option, values)


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
        raise SuiteError(f"{spec.option} {whose}: {error}") from error


def _overrides(spec: Spec, draft: Draft, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What takes the place of the suite's words in this arm."""
    fields = {key: value for key, value in spec.values.items() if key in FIELDS}
    axes = {k: v if k in ("model", "weights", "device") else [v] for k, v in fields.items()}
    overrides = {key: value for key, value in {**chosen, **axes}.items() if value is not None}
    options = {key: value for key, value in spec.values.items() if key not in FIELDS}
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


def match(
    baseline: Spec, candidate: Spec, before: Sequence[Cell], after: Sequence[Cell]
) -> list[tuple[Cell, Cell]]:
    """Cells that are equal but for what the specs name, in the order of the candidate's.

    Cells of one arm without a counterpart are left out. Raises SuiteError where there is more
    than one counterpart, or none at all.
    """
    named = {*baseline.values, *candidate.values}
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
            raise SuiteError(
                f"{spec.option} {spec.words!r} leaves a choice between '{found[key].label}' and "
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
    fields = [getattr(cell, f) for f in (*FIELDS, *SAME) if f not in free and f not in FILES]
    options = {} if "backend" in named else cell.options
    return repr((fields, sorted((k, v) for k, v in options.items() if k not in named)))

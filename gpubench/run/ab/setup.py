"""Words of the command line -> the job of an interleaved A/B."""

from __future__ import annotations

import secrets
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.errors import SuiteError
from gpubench.machine import software
from gpubench.machine.cores import usable_cores
from gpubench.machine.gpu import visible_gpus
from gpubench.records.record import Pairing
from gpubench.run import plan as planning
from gpubench.run.ab import arms, driver
from gpubench.run.ab.interpreters import Made
from gpubench.run.ab.pair_runner import ARMS
from gpubench.run.ab.revisions import WORKING_TREE, AbsentError, Places, Tree
from gpubench.run.availability import catalog, device_of
from gpubench.run.record_builder import directory, new_header
from gpubench.run.setup import Source, check_required
from gpubench.suite import file, toml_file
from gpubench.suite import grid as suite_grid
from gpubench.suite.schema import show
from gpubench.suite.types import Rule

SuiteFrom = Literal["head", "base"]
"""Whose suite says what is measured: the candidate's, or the baseline's."""
TOLD = 3
"""Differences between two suites that are told."""


def comparison(
    source: Source,
    chosen: Mapping[str, Any],
    specs: tuple[arms.Spec, arms.Spec],
    pythons: tuple[Path | None, Path | None],
    rule: Rule | Callable[[Mapping[str, float]], Rule],
    budget_s: float,
    cache_dir: Path | None,
    output: Path | None,
    resume: bool,
    required: Sequence[str],
    revisions: tuple[Made | None, Made | None] = (None, None),
    suite_from: SuiteFrom | Made = "head",
) -> driver.ABJob:
    """Both arms of an interleaved A/B: (baseline, candidate) in ``specs`` and ``pythons``.

    ``revisions``: arms that are commits, with interpreters of their own; an arm that is none has
    the working tree's files. A file that one arm lacks leaves its cells unavailable there.
    ``suite_from``: a third commit may say what is measured. ``rule``: or what makes one of the
    suite's ``gate``.
    """
    cores, gpus = usable_cores(), len(visible_gpus())
    wanted = chosen.get("cell") or ()
    chosen = {key: value for key, value in chosen.items() if key != "cell" and value is not None}
    specs = arms.opened(specs[0]), arms.opened(specs[1])
    for spec, revision in zip(specs, revisions, strict=True):
        if spec.stored and revision:
            text = f"a deployment is of no commit; leave {spec.option}-ref out"
            raise SuiteError(f"{spec.option} {spec.words}: {text}")
    own = _places(revisions, suite_from)
    draft, notes = _draft(source, own, suite_from)
    suites, lacks = [], [""] * len(ARMS)
    for place, spec in enumerate(specs):
        try:
            suites.append(arms.suite_of(spec, draft, chosen, own[place]))
        except AbsentError as error:  # the other arm's: what would be measured
            lacks[place] = str(error)
            suites.append(arms.suite_of(spec, draft, chosen, own[1 - place]))
    grids = [suite_grid.expand(s, device_of(s, gpus), len(cores)) for s in suites]
    matched = arms.match(*specs, *grids)
    kept = {cell.key for pair in matched for cell in pair}
    for key in wanted:
        if key not in kept:
            raise SuiteError(f"--cell {key!r}: neither arm has such a cell here")
    matched = [pair for pair in matched if not wanted or {c.key for c in pair} & {*wanted}]
    backends = {n: base.get(n) for n in sorted({c.backend for pair in matched for c in pair})}
    check_required(required, sorted(backends))
    rule = rule if isinstance(rule, Rule) else rule(suites[1].gate)
    token = uuid.uuid4().hex[:12]
    apart = any((*pythons, *revisions))  # both by path, so that both start in the same way
    sides = []
    for place, arm in enumerate(ARMS):
        cells = [pair[place] for pair in matched]
        plan = planning.make(suites[place], cells, backends, cores, gpus)
        if lack := lacks[place]:
            remedy = f"commit it there, or name another: {specs[place].option} KEY=PATH"
            skips = [planning.Skip(cell, "unavailable", lack, remedy) for cell in cells]
            plan = msgspec.structs.replace(plan, cells=[], skips=skips)
        revision, python = revisions[place], pythons[place]
        words = [specs[place].words]
        if revision:
            words.append(f"ref={revision.reference} ({revision.commit[:12]})")
            python = revision.python
        elif python:
            words.append(f"python={python}")
        tree = own[place].tree
        plain = tree.name if tree else "nothing"
        pairing = Pairing(
            session=token, arm=arm, differs=",".join(filter(None, words)) or plain, rule=rule,
            tree=str(tree.top) if tree else "",
        )  # fmt: skip
        header = msgspec.structs.replace(new_header(plan), pairing=pairing, planned=cells)
        python = python or (Path(sys.executable) if apart else None)
        directory_ = revision.project if revision else None
        commit, stored = revision.commit if revision else "", specs[place].stored
        notes += stored.notes if stored else ()
        sides.append(driver.Side(arm, plan, header, python, directory_, commit, stored))
    return driver.ABJob(
        sides=(sides[0], sides[1]),
        backends=backends,
        rule=rule,
        budget_s=budget_s,
        out=output or directory(f"ab-{suites[0].name}"),
        cache_dir=Cache(cache_dir).root,
        seed=secrets.randbits(32),  # afresh: a fixed one would repeat an unlucky order for ever
        left_out=tuple(c.label for grid in grids for c in grid if c.key not in kept),
        notes=(*notes, *_told(own, revisions)),
        same_input=any(revisions) and not any(spec.named & {*arms.NETWORK} for spec in specs),
        resume=resume,
        required=tuple(required),
    )


# ------------------------------------------------------------------------------ commits


def _places(
    revisions: tuple[Made | None, Made | None], suite_from: SuiteFrom | Made
) -> list[Places]:
    """Whose files each arm has; [...] that change nothing where no arm is a commit."""
    top = next((r.top for r in revisions if r), None)
    if top is None:
        return [Places(), Places()]
    worktree = Tree(WORKING_TREE, top)
    trees = [_made(r) if r else worktree for r in revisions]
    third = None if isinstance(suite_from, str) else _made(suite_from)
    both = zip(trees, trees[::-1], strict=True)
    return [Places(tree, third or other, worktree) for tree, other in both]


def _made(revision: Made) -> Tree:
    return Tree(revision.name, revision.tree, revision.notes)


def _draft(
    source: Source, own: Sequence[Places], suite_from: SuiteFrom | Made
) -> tuple[file.Draft, list[str]]:
    """The suite of one arm, and in what the other's differs."""
    if isinstance(source, file.Draft):
        return source, []
    found = str(file.find(source).absolute())
    if not isinstance(suite_from, str):
        third = Places(_made(suite_from), own[0].worktree)
        return file.read(third.of(found), catalog()), []
    first, second = own if suite_from == "base" else own[::-1]
    draft = file.read(first.of(found), catalog())
    if first.tree is None or second.tree is None:
        return draft, []
    name = Path(found).name
    try:
        other = second.of(found)
    except AbsentError:
        return draft, [f"{second.tree.name} has no {name}; that of {first.tree.name} is measured"]
    if other == str(draft.path):
        return draft, []
    data: toml_file.Data = {}
    with suppress(SuiteError):
        data = toml_file.read(Path(other), file.WHAT)
    told = [f"{at} = {a}, there {b}" for at, a, b in _changes(draft.data, data)]
    more = [f"{len(told) - TOLD} more"] * (len(told) > TOLD)
    differ = f"{name} of {first.tree.name} is measured, and differs from that of {second.tree.name}"
    return draft, [f"{differ}: {'; '.join(told[:TOLD] + more)}"] if told else []


def _changes(one: Any, other: Any, at: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, value, value) of what differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from _changes(one.get(key), other.get(key), f"{at}.{key}" if at else key)
    elif one != other:
        first, second = ("nothing" if value is None else show(value) for value in (one, other))
        yield at, first, second


def _told(own: Sequence[Places], revisions: Sequence[Made | None]) -> Iterator[str]:
    """What a reader must know of the files that are compared."""
    for path, why in {**own[0].shared, **own[1].shared}.items():
        yield f"the same in both arms, {why}: {path}"
    for places, revision in zip(own, revisions, strict=True):
        for note in revision.notes if revision else ():
            yield f"{places.tree and places.tree.name}: {note}"
        if places.tree and not revision and software.commit(places.tree.top)["dirty"]:
            yield "the working tree has changes that are not committed: measured as it is"

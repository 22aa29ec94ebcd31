"""How a table's values look: one place for text, Markdown and HTML.

Digits follow the measured precision, and the bounds of an interval share the value's unit and
decimals: 11.06 ms [10.94, 11.19].
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Struct

from gpubench import units
from gpubench.analysis.stats import Estimate, repeats
from gpubench.analysis.summary import WIDE, Summary, flags_of
from gpubench.analysis.tables.table import Amount, Column, Part
from gpubench.escape import line as line  # every table's text goes through it
from gpubench.records.record import FAILURES, FLAGS, Header, RecordFile
from gpubench.suite.types import Cell

NOTHING = "–"

STATUSES = {
    "unavailable": "this machine lacks something; the remedy says what",
    "unsupported": "the backend cannot do this cell",
    "missing": "planned, but not in the file",
    "ruled-out": "a search did not measure it: it could not have been chosen",
    "not reached": "the search ended, or was interrupted, before its turn",
    WIDE: "the interval is wider than policy.target_half_width, and more repeats were allowed",
}

_SCALE = {"images/s": (1.0, ""), "x": (1.0, "×"), "fraction": (100.0, " %"),
          "share": (100.0, " %"), "share of n": (100.0, " %"), "points": (1.0, " points"),
          "steps": (1.0, ""), "MHz": (1.0, " MHz"),
          "°C": (1.0, " °C"), "W": (1.0, " W"), "GFLOP/s": (1.0, ""), "GB/s": (1.0, ""),
          "FLOP/byte": (1.0, ""), "cost": (1.0, ""), "kWh": (1.0, " kWh")}  # fmt: skip
_STEPS = {
    "ns": (("s", 1e-9), ("ms", 1e-6), ("us", 1e-3), ("ns", 1.0)),
    "J": (("J", 1.0), ("mJ", 1e3), ("uJ", 1e6)),
    "bytes": (("GiB", 2.0**-30), ("MiB", 2.0**-20), ("KiB", 2.0**-10), ("B", 1.0)),
}


class Shown(Struct, frozen=True):
    """A value for people."""

    main: str
    aside: str = ""
    """The interval, or why there is none."""

    def words(self, unit: str = "") -> str:
        """'160 images/s [120, 230]' with a ``unit`` that ``main`` lacks; '11 ms (1 repeat)'."""
        aside = self.aside if not self.aside or self.aside[0] == "[" else f"({self.aside})"
        return f"{self.main}{unit} {aside}".rstrip()


def show(value: Any, unit: str, like: float | None = None) -> Shown:
    """Any value that `Table.rows` may hold; ``unit``: one that a `Column` may have.

    ``like``: in the unit that this value would have (ms for all of a row).
    """
    if isinstance(value, Estimate):
        return _estimate(value, unit, like)
    if isinstance(value, Amount):
        return _amount(value)
    if isinstance(value, Part):
        return Shown(show(value.value, unit).main, units.percent(value.share, 0))
    if isinstance(value, list):
        return Shown(", ".join(show(v, unit).main for v in value) or NOTHING)
    if value is None or value == "":
        return Shown(NOTHING)
    if unit == "spread":
        return Shown(percent(value, value))
    if isinstance(value, float) and not unit:
        return Shown(f"{value:.2g}")
    if isinstance(value, float) or unit in (*_SCALE, *_STEPS):
        return _estimate(Estimate(value=value), unit, like)
    return Shown(str(value))


def percent(
    share: float, half: float | None = None, *, signed: bool = False, unit: str = " %"
) -> str:
    """0.0534 -> '5.3 %', with as many decimals as a half-width of ``half`` supports.

    None where it is 10 % or more, else 1; 2 below 0.3 %, 3 below 0.03 %.
    """
    fitting = math.ceil(-math.log10(100 * half / 3)) if half else 1
    decimals = min(3, max(int(not half or half < 0.1), fitting))
    text = f"{100 * share:{'+' if signed else ''},.{decimals}f}"
    text = text.replace("-", "", 1) if float(text.replace(",", "")) == 0 else text
    return text + unit


def _amount(a: Amount) -> Shown:
    if a.unit == "bytes":
        return Shown(units.size(a.value))
    if a.unit in ("change", "points"):
        unit = " %" if a.unit == "change" else " points"
        half = None if a.low is None or a.high is None else (a.high - a.low) / 2
        main = percent(a.value, half, signed=True, unit=unit)
        if a.low is None or a.high is None:
            return Shown(main)
        ends = (percent(end, half, signed=True, unit="") for end in (a.low, a.high))
        return Shown(main, f"[{', '.join(ends)}]")
    if a.unit == "share":
        return Shown(percent(a.value))
    rate = a.unit == "images/s"
    return Shown(f"{units.significant(a.value, 4)}/s" if rate else units.duration(a.value, 4))


def _estimate(e: Estimate, unit: str, like: float | None = None) -> Shown:
    if e.value is None:
        short = e.why.partition(":")[0]
        return Shown(NOTHING, short)
    factor, suffix = _scale(like or e.value, unit)
    half = 1.0 if e.span else e.relative_half_width
    value = e.value * factor
    decimals = units.digits_for(half) - 1
    decimals -= math.floor(math.log10(abs(value))) if value else 0
    main = _fixed(value, decimals) + suffix
    if e.span:
        ends = " to ".join(_fixed(end * factor, decimals) for end in e.span)
        return Shown(main, f"{e.why}: repeats {ends}")
    if e.low is None or e.high is None:
        return Shown(main, e.why.partition(":")[0])
    bounds = f"[{_fixed(e.low * factor, decimals)}, {_fixed(e.high * factor, decimals)}]"
    return Shown(main, f"{bounds} of {e.n:,}" if unit == "share of n" else bounds)


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def _scale(value: float, unit: str) -> tuple[float, str]:
    steps = _STEPS.get(unit)
    if steps is None:
        return _SCALE.get(unit, (1.0, ""))
    name, factor = next(((n, f) for n, f in steps if abs(value) * f >= 1), steps[-1])
    return factor, f" {name}"


SINGLE = repeats(1)
"""Why an `Estimate` from a single repeat has no interval."""


def compact(value: Any, unit: str, *, single: bool = False) -> str:
    """One short piece: '11.06 ms ±1.1%', or '11.06 ms (1 repeat)' where there is no interval.

    '6.63 to 10.68 ms' are the repeats, where they are too far apart for one. ``single``: leave
    '(1 repeat)' out, because a note says it of all.
    """
    shown = show(value, unit)
    if isinstance(value, Estimate) and value.span and value.value:
        factor, suffix = _scale(value.value, unit)
        low, high = (units.significant(end * factor, 3) for end in value.span)
        return f"{low} to {high}{suffix}"
    half = value.relative_half_width if isinstance(value, Estimate) else None
    if half is not None and unit.startswith("share"):  # near 0 and 1 it is lopsided
        return full(value, unit)
    if half is None or math.isinf(half):
        if shown.main == NOTHING or shown.aside == "baseline":
            return shown.aside or NOTHING
        hidden = not shown.aside or (single and shown.aside == SINGLE)
        return shown.main if hidden else f"{shown.main} ({shown.aside})"
    return f"{shown.main} ±{units.significant(100 * half, 2)}%"


def full(value: Any, unit: str) -> str:
    """With the whole interval: '11.06 ms [10.94, 11.19]'."""
    shown = show(value, unit)
    if shown.main == NOTHING or shown.aside == "baseline":
        return shown.aside or NOTHING
    return shown.words()


EVERY = "In every row: "
"""How the note of a table on what all of its rows share begins (`tables.table.with_axes`)."""


def with_shared(notes: Sequence[str], shared: Sequence[str]) -> list[str]:
    """``notes`` of a table; the one on what all rows share says ``shared``, too."""
    if not shared:
        return [*notes]
    at = next((n for n, note in enumerate(notes) if note.startswith(EVERY)), len(notes))
    known = [note.removeprefix(EVERY).removesuffix(".") for note in notes[at : at + 1]]
    return [*notes[:at], f"{EVERY}{', '.join([*known, *shared])}.", *notes[at + 1 :]]


def flagged(*summaries: Summary, before: str = "; ") -> str:
    """'; flagged DRIFT'; '' without a flag."""
    flags = flags_of(*summaries)
    return f"{before}flagged {', '.join(flags)}" if flags else ""


def is_number(column: Column) -> bool:
    """Right-aligned and sorted as a number."""
    return column.unit not in ("", "key", "flags")


def meaning(flag: str) -> str:
    """What a flag, or a status shown as one, says."""
    if flag.startswith("failed: "):
        return FAILURES.get(flag.removeprefix("failed: "), "the cell broke")
    if flag.endswith(" invalidated"):
        return "measured again after heat, a power brake, a pause or another process on the GPU"
    return {**STATUSES, **FLAGS}.get(flag, "some repeats broke: see skips and failures")


def unusual(c: Cell) -> dict[str, str]:
    """Axis -> words, of what is not the default of its axis: {'cache': 'cold cache'}."""
    path = c.boundary == "pipeline"
    words = {
        "per device": f"{c.replicas_per_device} per device" if c.replicas_per_device > 1 else "",
        "cache": f"{c.cache} cache" if c.cache != "warm" else "",
        "sharing": c.sharing if c.sharing != "auto" else "",
        "input": f"{c.input} input" if c.input != "float32" else "",
        "dispatch": c.dispatch if c.dispatch != "independent" else "",
        "decoder": f"{c.decoder} decoding" if path else "",
        "loader": c.loader if path and c.loader != "auto" else "",
        "loading cores": f"{c.loader_cores} loading" if c.loader_cores else "",
    }
    return {axis: word for axis, word in words.items() if word}


def options(c: Cell) -> list[str]:
    """['num_streams=2'], sorted."""
    return [f"{k}={v}" for k, v in sorted(c.options.items())]


WHERE = ("-o", "--output", "--resume")
"""Options that say where results go."""


def command(header: Header, key: str = "KEY") -> str:
    """The command that measures one cell again: the run's own, with only this cell.

    Where its results went, other cells and ``--require`` (of backends it leaves out) are dropped.
    Of an arm of an A/B: the command that compares again, as a cell alone has no rival. Of a
    search: the one that searches again, as no suite file holds its cells.
    """
    if header.pairing or header.search:
        return _again(header, (*WHERE, "--json"))
    return _again(header, (*WHERE, "--cell", "--require"), "--cell", key)


NOT_OF_AB = (*WHERE, "--repeats", "--ray", "--ship", "--insecure-cluster",
             "--per", "--price", "--max-latency", "--baseline")  # fmt: skip
"""Options of a run or a fleet that an A/B has not, or means otherwise."""


def decide(header: Header, best: Cell, rival: Cell) -> str:
    """The A/B that tells the run's best cell from its ``rival`` of another backend, at the same
    batch size and number of replicas; each arm with its own precision and options."""
    drop = [*NOT_OF_AB, "--cell", "--require", "--backend", "--batch-size", "--replicas"]
    only = ["--batch-size", str(best.batch_size), "--replicas", str(best.replicas)]
    arms = {"--baseline": (rival, [f"backend={rival.backend}"]),
            "--candidate": (best, [f"backend={best.backend}"])}  # fmt: skip
    for axis in ("precision", "input", "dispatch", "replicas_per_device", "sharing"):
        option, planned = "--" + axis.replace("_", "-"), {getattr(c, axis) for c in header.planned}
        if getattr(best, axis) != getattr(rival, axis):
            for cell, words in arms.values():
                words.append(f"{axis}={getattr(cell, axis)}")
        elif len(planned) > 1:
            drop.append(option)
            only += [option, str(getattr(best, axis))]
    for option, (cell, words) in arms.items():
        words += [f"{k}={str(v).lower() if v is True or v is False else v}"
                  for k, v in sorted(cell.options.items())]  # fmt: skip
        only += [option, ",".join(words)]
    return _again(header, drop, *only, verb="ab")


def against(header: Header, commit: str) -> str:
    """The A/B of this run's suite, whatever was typed of it, against a ``commit`` of its files."""
    return _again(header, NOT_OF_AB, "--baseline-ref", commit, verb="ab")


def resume(header: Header, out: str | Path) -> str:
    """The command that goes on with this run, whose results are in ``out``."""
    return _again(header, WHERE, "--resume", "-o", str(out))


def _again(header: Header, drop: Sequence[str], *extra: str, verb: str = "") -> str:
    """``verb``: another one than the run's own."""
    words = header.command
    if words[:1] == ["pytest"] and not verb:
        return shlex.join(words)
    own = "ab" if header.pairing else "tune" if header.search else "run"
    typed = words[1] if len(words) > 1 else ""
    if typed in ((own, "fleet") if verb else (own, "tune", "bisect", "fleet")):
        return again([verb or typed, *words[2:]], drop, *extra)
    return again([verb or own, header.suite.name], drop, *extra)


def again(words: Sequence[str], drop: Sequence[str], *extra: str) -> str:
    """The command line of these ``words``, without the options ``drop``, and with ``extra``."""
    kept: dict[bool, list[str]] = {False: [], True: []}
    for name, group in _options(words):
        if name not in drop:
            kept[name == "--"] += group
    return shlex.join(["gpubench", *kept[False], *extra, *kept[True]])


ALONE = ("--quiet", "--resume", "--json", "--github", "--ship", "--insecure-cluster")
"""Options without a value."""


def _options(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(option or '', its words), in every form that click takes: --o v, --o=v, -o v, -ov, -qov."""
    after = [*words[1:], "-"]
    words = [  # the value of --ray may be left out
        "--ray=" if word == "--ray" and next_.startswith("-") else word
        for word, next_ in zip(words, after, strict=True)
    ]
    left = iter(words)
    for word in left:
        if word == "--":
            yield word, [word, *left]
        elif word.startswith("--"):
            name, attached, _ = word.partition("=")
            alone = attached or name in ALONE
            yield name, [word, *([] if alone else islice(left, 1))]
        elif word.startswith("-") and word != "-":
            rest = word[1:].lstrip("q")
            if word[1:] != rest:
                yield "-q", ["-q"]
            if rest:
                yield f"-{rest[0]}", [f"-{rest}", *(islice(left, 1) if len(rest) == 1 else [])]
        else:
            yield "", [word]


def machine(header: Header) -> str:
    """The machine in a few words, as far as the environment says."""
    seen = header.nodes or [header.environment]
    words = [gpu.get("name") for each in seen for gpu in each.get("gpus", [])]
    words += [each.get("cpu", {}).get("model") for each in seen]
    words += [quota for each in seen for quota in _quota(each)]
    many = f"{len(header.nodes)} nodes: " if len(header.nodes) > 1 else ""
    return many + (", ".join(dict.fromkeys(str(w) for w in words if w)) or header.fingerprint)


def _quota(environment: dict[str, Any]) -> list[str]:
    """['a quota of 0.6 CPUs'] of a control group, or []."""
    cpus = environment.get("limits", {}).get("cpus")
    return [f"a quota of {cpus:g} CPUs"] if cpus else []


def nodes(environments: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each machine of a run on several: 'node 1: host b, 2 x H100, driver 550, ..'."""
    return [f"node {rank}: {', '.join(_node(each))}" for rank, each in enumerate(environments)]


def _node(environment: dict[str, Any]) -> Iterator[str]:
    """What tells machines apart, as far as the environment says."""
    gpus = environment.get("gpus", [])
    cpu, memory, system, versions = (
        environment.get(key, {}) for key in ("cpu", "memory", "os", "libraries")
    )
    yield f"host {environment.get('host') or 'unknown'}"
    yield from (f"{n} x {name}" for name, n in Counter(gpu.get("name") for gpu in gpus).items())
    yield from dict.fromkeys(f"driver {gpu['driver']}" for gpu in gpus if gpu.get("driver"))
    yield f"{cpu.get('model') or 'unknown CPU'} ({cpu.get('usable') or '?'} usable cores)"
    yield from _quota(environment)
    if total := memory.get("total_bytes"):
        yield units.size(total)
    if kernel := system.get("kernel"):
        yield f"kernel {kernel}"
    yield from (f"{k} {versions[k]}" for k in ("torch", "onnxruntime") if k in versions)
    if environment.get("engine"):
        yield str(environment["engine"])


def differences(files: Sequence[RecordFile]) -> list[str]:
    """'Nodes differ: node 1: libraries.torch 2.9.0, node 0: 2.10.0', one for each difference."""
    several = len(files) > 1
    return [
        f"Nodes differ{f' in run {f.header.run_id}' if several else ''}: {text}"
        for f in files
        for text in f.header.node_differences
    ]


def title(files: Sequence[RecordFile]) -> str:
    """'quick' or 'quick, latency'."""
    return ", ".join(dict.fromkeys(f.header.suite.name for f in files))

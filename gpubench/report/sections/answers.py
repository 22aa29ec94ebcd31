"""The five questions of a first look: which is fastest, by how much, is it right, can I trust it,
and what to type next; and what failed, by its cause."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from gpubench.analysis import resolution
from gpubench.analysis.scaling.diagnosis import Diagnosis
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import (
    UNTRIED,
    Summary,
    baseline_of,
    flags_of,
    gain,
    problems,
    run_names,
    speedup,
)
from gpubench.analysis.tables import accuracy, table
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.report.sections import headline, pipeline, scaling
from gpubench.report.sections.headline import Winner
from gpubench.units import count, percent


class Cause(Struct, frozen=True, kw_only=True):
    """One reason why cells have no good result."""

    status: str
    reason: str
    remedy: str
    cells: list[str]
    """Labels; a cell of which only some repeats ended so says which."""


class Answers(Struct, frozen=True, kw_only=True):
    """Each a sentence or two."""

    fastest: list[str]
    """One for each workload and measure, the most important first."""
    found: bool
    """There is a winner."""
    right: str
    wrong: bool
    trust: list[str]
    command: str
    why: str
    """What the command is for."""


def told(
    files: Sequence[RecordFile], summaries: Sequence[Summary], found: Sequence[Diagnosis]
) -> list[tuple[str, list[str], bool]]:
    """What every report but the page begins with: (what is asked, sentences, is it wrong)."""
    won = ordered(headline.winners(summaries))
    said = answers(files, summaries, won, places(files))
    made = headline.counts(summaries)
    cells = ", ".join(f"{n} {name}" for name, n in made.items())
    rows = [
        ("fastest", [*said.fastest, *pipeline.headline(summaries)], False),
        ("accuracy", [said.right] if said.found or said.wrong else [], said.wrong),
        ("trust", [" ".join(said.trust), f"{count(sum(made.values()), 'cell')}: {cells}."], False),
        ("scaling", scaling.lines(found), False),
        ("next", [f"{said.command}  ({said.why})"], False),
    ]
    return [(name, kept, bad) for name, lines, bad in rows if (kept := [*filter(None, lines)])]


def answers(
    files: Sequence[RecordFile],
    summaries: Sequence[Summary],
    won: Sequence[Winner],
    places: Mapping[str, str],
) -> Answers:
    """``won``: as `ordered` has them. ``places``: as `places` names them."""
    right, wrong = _right(summaries)
    command, why = _next(files[0], won)
    failed = len(causes(summaries)) > 0
    none = "Nothing was measured: no cell could run." if failed else "Nothing was measured."
    if any(s.timed for s in summaries):
        none = "No cell gave a result that can be ranked."
    return Answers(
        fastest=fastest(won, summaries, places) or [none], found=bool(won), right=right,
        wrong=wrong, trust=_trust(summaries), command=command, why=why,
    )  # fmt: skip


def place(file: RecordFile) -> str:
    """'AMD EPYC 7B13 (2 cores)'."""
    cpu = file.header.environment.get("cpu", {})
    cores = cpu.get("usable") or cpu.get("cores")
    many = f" ({count(cores, 'core')})" if cores else ""
    return formatting.machine(file.header) + many


def places(files: Sequence[RecordFile]) -> dict[str, str]:
    """Run -> its machine, where there are runs of several; else {}."""
    if len({f.header.fingerprint for f in files}) < 2:
        return {}
    made = [place(f) for f in files]
    return {name: where if made.count(where) == 1 else f"{where}, run {name}"
            for name, where in zip(run_names(files), made, strict=True)}  # fmt: skip


def ordered(won: Sequence[Winner]) -> list[Winner]:
    """The widest boundary first, and latency before images/s."""
    width = {"pipeline": 0, "transfer": 1, "compute": 2}
    return sorted(won, key=lambda w: (width.get(w.summary.cell.boundary, 3),
                                      w.measure != "latency"))  # fmt: skip


def fastest(
    won: Sequence[Winner], summaries: Sequence[Summary], places: Mapping[str, str]
) -> list[str]:
    """'openvino is 2.4× [2.3, 2.5] faster than torch-eager at batch 1: latency 5.6 ms.' of each."""
    timed = [s for s in summaries if s.timed]
    precisions = len({s.cell.precision for s in timed}) > 1
    several = len({s.cell.backend for s in timed}) > 1
    bases = baseline_of(summaries)
    said = []
    for w, name in zip(won, headline.differing(won), strict=True):
        s, c, latency = w.summary, w.summary.cell, w.measure == "latency"
        base = bases.get(id(s))
        times = (speedup if latency else gain)(base, s) if base and base is not s else Estimate()
        text = f"{c.backend} {c.precision}" if precisions else c.backend
        if base and times.low is not None and times.low > 1:
            text += f" is {formatting.full(times, 'x')} faster than {base.cell.backend}"
        else:
            text += " is fastest" if several else " was measured alone"
        text += f" at batch {c.batch_size}"
        text += f", {c.replicas} replicas" if c.replicas > 1 else ""
        text += f" on {places[s.run]}" if places else ""
        text += f" ({name})" if name else ""
        shown = formatting.show(*((s.p50, "ns") if latency else (s.throughput, "images/s")))
        text += f": {shown.words(unit='' if latency else ' images/s')}"
        text += " for one batch" if latency else ""
        text += f"; not told apart from {', '.join(w.rivals)}" if w.rivals else ""
        said.append(f"{text}{formatting.flagged(s)}.")
    return said


def _right(summaries: Sequence[Summary]) -> tuple[str, bool]:
    """(in words, whether some answers are wrong)."""
    checked = [s for s in summaries if s.timed and accuracy.agreement(s) is not None]
    if not checked:
        return "Answers were not checked.", False
    wrong = [s for s in checked if accuracy.verdict(s) != accuracy.MATCH]
    images = min(s.parity.images for s in checked if s.parity) if any(
        s.parity for s in checked) else 0  # fmt: skip
    least = min(accuracy.agreement(s) or 0.0 for s in checked)
    reference = accuracy.reference_name(checked)
    if wrong:
        who = ", ".join(dict.fromkeys(s.cell.backend for s in wrong))
        text = (
            f"{len(wrong)} of {count(len(checked), 'cell')} answer otherwise than {reference}, or "
            f"below the accuracy asked for: {who}. They have no rank."
        )
        return text, True
    several = len(checked) > 1
    text = f"Yes: all {len(checked)} cells match" if several else "Yes: its one cell matches"
    text += f" {reference}"
    text += f" (top-1 {percent(least, 0)} of {images} images)." if images else "."
    known = [(e.value, e) for s in checked if (e := accuracy.accuracy(s)).value is not None]
    if known:
        worst = min(known, key=lambda x: x[0])[1]
        some = "at least " if len({v for v, _ in known}) > 1 else ""
        text += f" Accuracy {some}{formatting.full(worst, 'share of n')} labelled images."
    return text, False


def _trust(summaries: Sequence[Summary]) -> list[str]:
    """What this run can tell apart, and how many of its cells have flags."""
    timed = [s for s in summaries if s.timed]
    runs = dict.fromkeys(s.run for s in timed)
    said = {run: resolution.sentence([s for s in timed if s.run == run]) for run in runs}
    lines = [f"{run}: {text}" if len(runs) > 1 else text for run, text in said.items()]
    flagged = [s for s in timed if flags_of(s)]
    kinds = Counter(f for s in flagged for f in flags_of(s) if not headline.bad(f))
    marks = ", ".join(f"{f} {n}" for f, n in kinds.most_common(3))
    if flagged:
        lines.append(f"{len(flagged)} of {count(len(timed), 'cell')} flagged: {marks}.")
    elif timed:
        busy = any(s.busy for s in timed)  # then the sentence above has named flags
        lines.append("No cell has another flag." if busy else "No cell is flagged.")
    return lines


def _next(file: RecordFile, won: Sequence[Winner]) -> tuple[str, str]:
    """(command, what it is for)."""
    head = file.header
    if not won:
        return "gpubench doctor", "says what this machine lacks, and how to get it"
    first = won[0]
    c = first.summary.cell
    if head.pairing or head.search:
        return formatting.command(head), "measures it again"
    rivals = [s.cell for s in first.ties if s.cell.backend != c.backend]
    if rivals:
        name = rivals[0].backend
        return formatting.decide(head, c, rivals[0]), f"decides between {c.backend} and {name}"
    words = ["gpubench", "tune", c.model, "--weights", c.weights, "--images", c.images]
    named = {"--labels": c.labels, "--calibration": c.calibration, "--output-name": c.output}
    words += [word for option, value in named.items() if value for word in (option, value)]
    said = {key: c.preprocess.plain(key) for key in c.preprocess.given} if c.preprocess else {}
    tables = {"--preprocess": said, "--arguments": dict(c.arguments)}
    for option, pairs in tables.items():
        for key, value in pairs.items():
            text = value if isinstance(value, str) else json.dumps(value)
            words += [option, f"{key}={text}"]
    return shlex.join(words), "finds precision, batch size, replicas and options that are faster"


def causes(summaries: Sequence[Summary]) -> list[Cause]:
    """Failures first, then skips; each with every cell that it stopped."""
    found: dict[tuple[str, str, str], list[str]] = {}
    names = dict(zip(map(id, summaries), table.labels(summaries), strict=True))
    for p in problems(summaries):
        if p.status in UNTRIED:
            continue
        some = "" if p.repeats == "all" else f" (repeat {p.repeats})"
        name = f"{names[id(p.summary)]}, {p.summary.cell.scenario}{some}"
        found.setdefault((p.status, p.reason, p.remedy), []).append(name)
    made = [Cause(status=k[0], reason=k[1], remedy=k[2], cells=v) for k, v in found.items()]
    return sorted(made, key=lambda c: (not headline.bad(c.status), -len(c.cells)))

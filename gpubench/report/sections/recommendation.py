"""What a search recommends, in five lines for a terminal, and as JSON for programs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from gpubench import units
from gpubench.analysis.best import ALIKE
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary
from gpubench.analysis.tables import accuracy
from gpubench.analysis.tables.tune import UNITS
from gpubench.analysis.tune import racing, result
from gpubench.analysis.tune.pruning import MARGIN
from gpubench.analysis.tune.racing import Kept, Standing
from gpubench.analysis.tune.result import Evidence, View
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.report.sections import headline
from gpubench.suite.goal import Metric

MOST_CAUSES = 3
"""Causes of failures that are told."""
FORMAT = 1
"""Version of the layout of JSON reports; a change that breaks readers raises it."""

BETTER = {
    "throughput": "times the images/s of", "latency": "times faster than",
    "energy": "times less energy than", "memory": "times less memory than",
}  # fmt: skip


def lines(file: RecordFile, evidence: Evidence | None = None) -> list[str]:
    """What; how much better, and how sure; answers; latency and limits; what was measured.

    Where nothing is shown to keep the limits: what comes closest, and by how much.
    """
    found = result.view(file, evidence)
    if best := found.best:
        head = f"Recommended: {where(found, best)}"
        s = found.summaries[best.cell.key]
        said = [*accuracy.preprocessing([s]), *accuracy.doubts([s.parity])]
        said = [*ties(found, best), answers(found, best), *said, limits(found, best)]
        return [head, gain(found, best), *said, tried(found), *failures(found)]
    return [*_nothing(found), tried(found), *failures(found)]


def told(files: Sequence[RecordFile], evidence: Evidence | None) -> list[str]:
    """The lines of a search that is reported alone; of other runs none."""
    searched = len(files) == 1 and files[0].header.search
    return lines(files[0], evidence) if searched else []


def where(found: View, s: Standing) -> str:
    """'onnxruntime int8, batch 16, 2 replicas of 4 cores, spinning=False'."""
    return headline.where(found.summaries[s.cell.key])


def amount(e: Estimate, metric: Metric) -> str:
    """'1,234 images/s [1,220, 1,248]'."""
    value, aside = shown(e, metric)
    text = "not known" if value.startswith(formatting.NOTHING) else value
    return f"{text} {aside}" if aside.startswith("[") else f"{text} ({aside})" if e.span else text


def shown(e: Estimate, metric: Metric) -> tuple[str, str]:
    """('1,234 images/s', '[1,220, 1,248]')."""
    found = formatting.show(e, UNITS[metric.kind])
    unit = {"throughput": " images/s", "energy": "/image"}.get(metric.kind, "")
    return f"{found.main}{unit}", found.aside


def gain(found: View, best: Standing) -> str:
    """'Throughput 2,341 images/s [..]: 11.8x [11.5, 12.1] the images/s of today's default ...'."""
    goal, base = found.goal, found.base
    text = f"{title(goal.objective)} {amount(best.value, goal.objective)}"
    if base is None:
        return f"{text}; today's default gave no result to compare with"
    if best.cell.key == base.cell.key:
        return f"{text}; this is today's default: nothing tried was better"
    better = f"{times(found.gain)} {BETTER[goal.objective.kind]}"
    return f"{text}: {better} today's default ({default(found, base)}); {sureness(found)}"


def ties(found: View, best: Standing) -> list[str]:
    """'Not told apart from openvino int8, batch 32, 2 replicas and 3 more; ...'."""
    others = racing.ties(found.standings, best)
    if not others:
        return []
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    rule = f"of those within {units.percentage(ALIKE)} the simplest is recommended"
    return [f"Not told apart from {where(found, others[0])}{more}; {rule}"]


def default(found: View, base: Standing) -> str:
    """'torch-eager fp32, batch 8, 1 replica: 207 images/s [205, 208]'; how many sizes of it were
    measured, where some were not."""
    sizes = [s.n for s in found.standings if s.cell.key in found.search.baseline]
    seen, of = sum(n > 0 for n in sizes), len(sizes)
    some = f", best of {seen} of its {of} batch sizes" if seen < of else ""
    return f"{where(found, base)}{some}: {amount(base.value, found.goal.objective)}"


def times(e: Estimate) -> str:
    """'11.8 [11.5, 12.1]', '11.8 (no interval: 1 repeat)'."""
    shown = formatting.show(e, "x")
    aside = shown.aside
    if not aside.startswith("["):
        aside = f"({aside})" if e.span else f"(no interval: {aside})"
    return f"{shown.main.removesuffix('×')} {aside}"


def sureness(found: View) -> str:
    """What the A/B says, or that there is none."""
    v = found.verdict
    if v is None:
        return "from the search's own rounds: no A/B has confirmed it"
    objective = found.goal.objective
    own = objective.kind == "throughput" and v.metric.startswith("images/s")
    own = own or (objective == Metric("latency") and v.metric == "p50 [ns]")
    by = "" if own else f" by {v.metric}"
    won, of = found.won
    if v.verdict == "INCONCLUSIVE" and of:
        pairs = f"{won} of {units.count(of, 'pair')} of an interleaved A/B"
        return f"unconfirmed: better{by} in {pairs} ({v.verdict}: {v.reason})"
    return f"{v.verdict}{by} in an interleaved A/B of {units.count(v.pairs, 'pair')}"


def answers(found: View, s: Standing) -> str:
    """'Answers: 99.2 % match the reference; accuracy 97.4 % [..], 0.3 points below its'."""
    summary = found.summaries[s.cell.key]
    agree, right = accuracy.agreement(summary), accuracy.accuracy(summary)
    if agree is None:
        return "Answers: not checked"
    reference = accuracy.reference_name([summary])
    words = [f"Answers: {units.percent(agree)} match {reference}{_pictures(summary)}"]
    if right.value is not None:
        words.append(f"accuracy {formatting.full(right, 'share of n')}{_drop(summary)}")
    if s.floor:
        state = {"kept": "is kept", "broken": "is broken"}.get(s.floor.state, "is undecided")
        words.append(f"{s.floor.name} {s.floor.least:g} {state}")
    return "; ".join(words)


def _pictures(s: Summary) -> str:
    """' on 256 pictures (digits)': a match of few, or of one class, tells little."""
    asked = s.parity.answers if s.parity else None
    if asked is None:
        return ""
    few = ", all of one class: it tells little" if len(set(asked.given)) == 1 else ""
    return f" on {units.count(len(asked.given), 'picture')} ({s.cell.images}{few})"


def _drop(s: Summary) -> str:
    drop = accuracy.drop(s)
    if drop is None:
        return ""
    if abs(drop) < 0.05:
        return ", the reference's too"
    return f", {abs(drop):.1f} points {'below' if drop > 0 else 'above'} the reference's"


def limits(found: View, s: Standing) -> str:
    """'Latency: p50 4.12 ms; p99 latency <= 20 ms is kept (up to 12.3 ms when measured again)'."""
    summary = found.summaries[s.cell.key]
    name = "Latency: p50" if s.cell.scenario == "latency" else "Time of a batch:"
    words = [f"{name} {formatting.full(summary.p50, 'ns')}"]
    words += [kept(each) for each in s.limits]
    return "; ".join(words) + ("" if s.limits else "; no limit was set")


def kept(each: Kept) -> str:
    """'p99 latency <= 20 ms is kept: 12.3 ms, one repeat in 100 would show 14.1 ms'."""
    state = {"met": "is kept", "open": "is not yet shown to be kept", "violated": "is broken"}
    text, metric = f"{each.limit.text} {state[each.state]}", each.limit.metric
    if each.value is None:
        return f"{text}: not measured"
    text += f": {metric.text(each.value)}"
    if each.worst is None or each.state == "violated":
        return text
    if each.missing:
        return f"{text}, {each.missing} samples too few to tell"
    return f"{text}, one repeat in 100 would show {metric.text(each.worst)}"


def tried(found: View) -> str:
    """'Measured 84 of 412 configurations, of 3 of 4 backends, in 9 min 12 s: 40 worse, ...'."""
    seen, of = backends(found)
    text = (
        f"Measured {len(result.measured(found))} of "
        f"{units.count(len(found.standings), 'configuration')}, of {seen} of "
        f"{units.count(of, 'backend')}, in {units.clock(result.spent_s(found))}"
    )
    text = ": ".join(filter(None, [text, ", ".join(outcomes(found))]))
    missed = f"not one of {', '.join(found.unseen)} was reached" if found.unseen else ""
    return "; ".join(filter(None, [text, missed, left(found)]))


def backends(found: View) -> tuple[int, int]:
    """How many were measured, and of how many."""
    seen = racing.backends(s for s in found.standings if s.n)
    return len(seen), len(racing.backends(found.standings))


def failures(found: View) -> list[str]:
    """'Not measured: 180 configurations: calibration needs 128 pictures, ...; remedy'."""
    told = result.causes(found)
    lines = [
        "; ".join(filter(None, (f"{units.count(n, 'configuration')}: {cause}", remedy)))
        for cause, remedy, n in told[:MOST_CAUSES]
    ]
    more = [f"and {len(told) - MOST_CAUSES} more causes"] if len(told) > MOST_CAUSES else []
    return [f"Failed or left out: {line}" for line in lines + more]


def outcomes(found: View) -> list[str]:
    """'40 worse', '12 break a limit': of all but the recommended one."""
    words = result.OUTCOMES | {"ruled-out": "ruled out unmeasured"}
    counts = result.tally(found)
    words["violates"] = "breaks a limit" if counts.get("violates") == 1 else "break a limit"
    return [f"{n} {words[k]}" for k, n in counts.items() if k != "best"]


def left(found: View) -> str:
    """'58.1 % of the roofline, bound by compute: at most 4,030 images/s'."""
    share = result.share_of(found)
    if share is None or found.best is None:
        return ""
    if share.share > 1 + MARGIN:
        return "more than the measured peaks allow: the machine was busy while they were measured"
    rate = Metric("throughput").text(1e9 * found.best.cell.total_batch / share.roofline_ns)
    return f"{units.percent(share.share)} of the roofline, bound by {share.binds}: {rate}"


def _nothing(found: View) -> list[str]:
    """What can be said where nothing is recommended, and how far that is shown."""
    near = found.leader or result.closest(found)
    if near is None:
        if not result.measured(found):
            could = "could be" if result.causes(found) else "was"
            return [f"No recommendation: nothing {could} measured"]
        return ["No recommendation: no configuration gave answers that match the reference"]
    lines = [*_nearest(found, near), answers(found, near)]
    seen, of = backends(found)
    if not racing.compared(found.standings):
        return [f"No recommendation: {seen} of {units.count(of, 'backend')} measured, a longer "
                f"--budget measures one of each; so far: {where(found, near)}", *lines]  # fmt: skip
    if found.leader:
        return [f"No recommendation yet: {where(found, near)} leads, but the search ended before "
                "its answers and limits were checked", *lines]  # fmt: skip
    asked = " and ".join(found.asked)
    if found.settled:
        return [f"Nothing keeps the limits ({asked}); closest: {where(found, near)}", *lines]
    left = sum(s.status == "unmeasured" for s in found.standings)
    why = f"; {units.count(left, 'configuration')} not reached" if left else ""
    return [f"Undecided: nothing measured so far is shown to keep the limits ({asked}){why}; "
            f"closest: {where(found, near)}", *lines]  # fmt: skip


def _nearest(found: View, near: Standing) -> list[str]:
    """How close it comes, and what today's default does."""
    objective, base = found.goal.objective, found.base
    words = [f"It has {amount(near.value, objective)}", *map(kept, near.limits)]
    words += [near.floor.text] if near.floor else []
    worst = max(near.limits, key=result.excess, default=None)
    if worst and worst.state != "met" and worst.value is not None:
        by = result.excess(worst)
        beyond = f"{units.percent(by)} beyond" if by < 1 else f"{units.significant(1 + by)} times"
        words.append(f"{beyond} the limit")
    said = "Today's default gave no result"
    if base:
        said = f"Today's default, {default(found, base)}"
    return ["; ".join(words), said]


def title(metric: Metric) -> str:
    """'P99 latency'."""
    return metric.name[0].upper() + metric.name[1:]


def commands(file: RecordFile) -> list[str]:
    """What to do with it: measure it again, deploy it."""
    best = str(PurePath(file.path).parent / "best.toml")
    return [shlex.join(["gpubench", "run", best]),
            shlex.join(["gpubench", "deploy", best, "-o", "model"])]  # fmt: skip


def to_json(file: RecordFile, evidence: Evidence | None = None) -> dict[str, Any]:
    """``{format, lines, recommendation, baseline, gain, verdict, ties, tried, measured, backends,
    causes, seconds, closest, front, configurations}``; times in ns, a ``gain``
    above 1 is better.

    ``recommendation``, ``baseline`` and each of ``configurations`` are `racing.Standing`s with the
    cell's key, label and answers.
    """
    found = result.view(file, evidence)
    near = result.closest(found) if found.leader is None else None
    tied = racing.ties(found.standings, found.best) if found.best else []
    return {
        "format": FORMAT, "path": file.path, "search": found.search, "lines": lines(file, evidence),
        "recommendation": found.best and _plain(found, found.best),
        "baseline": found.base and _plain(found, found.base),
        "gain": found.gain, "gain_of_pairs": found.paired, "verdict": found.verdict,
        "commands": commands(file) if found.best else [],
        "leader": found.leader and found.leader.cell.key,
        "closest": near and {
            "key": near.cell.key,
            "beyond": [{"limit": k.limit, "share": result.excess(k)} for k in near.limits],
        },
        "ties": [s.cell.key for s in tied],
        "tried": result.tally(found), "measured": len(result.measured(found)),
        "backends": dict(zip(("measured", "of"), backends(found), strict=True)),
        "causes": [{"cause": c, "remedy": r, "configurations": n}
                   for c, r, n in result.causes(found)],
        "seconds": result.spent_s(found),
        "roofline": result.share_of(found),
        "front": sorted(result.front(found)),
        "configurations": [_plain(found, s) for s in found.standings],
    }  # fmt: skip


def _plain(found: View, s: Standing) -> dict[str, Any]:
    summary = found.summaries[s.cell.key]
    return {
        "key": s.cell.key, "label": s.cell.label, "cell": s.cell,
        "outcome": result.outcome(found, s), "status": s.status,
        "reason": s.reason, "n": s.n, "value": s.value, "behind": s.behind, "limits": s.limits,
        "floor": s.floor and {"least": s.floor.least, "state": s.floor.state},
        "p50_ns": summary.p50, "images_per_s": summary.throughput,
        "agreement": accuracy.agreement(summary), "accuracy": accuracy.accuracy(summary),
        "drop_points": accuracy.drop(summary),
    }  # fmt: skip

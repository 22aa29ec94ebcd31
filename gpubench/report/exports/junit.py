"""JUnit XML, for every CI that shows tests: a cell is a test case, and each metric of it.

Of a comparison REGRESSED is a failure, MISSING an error, INCONCLUSIVE and INCOMPARABLE are skipped.
Of a run a cell that failed is a failure, one that left no record an error, a skipped one skipped.
Valid for Ant's schema (the strictest: elements in this order, no time zone) and for Jenkins'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from msgspec import Struct

from gpubench import escape
from gpubench.analysis.compare.compare import View
from gpubench.analysis.compare.verdicts import CODES
from gpubench.analysis.summary import Problem, Summary, flags_of, problems_of, summarise
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.report.sections import compare

OUTCOMES = {"REGRESSED": "failure", "MISSING": "error", "INCOMPARABLE": "skipped",
            "INCONCLUSIVE": "skipped"}  # fmt: skip
"""Verdict -> element; any other passes."""

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""


class Case(Struct, frozen=True, kw_only=True):
    """One test case."""

    name: str
    group: str
    seconds: float
    outcome: str = ""
    """'' passed, or 'failure', 'error', 'skipped'."""
    kind: str = ""
    message: str = ""
    output: str = ""


def render(files: Sequence[RecordFile], view: View | None) -> bytes:
    """A test suite for the comparison, or one for each run where there is none."""
    root = ET.Element("testsuites")
    if view is not None:
        paired = compare.paired(view.rows)
        name = f"gpubench {'ab' if paired else 'compare'} {files[-1].header.suite.name}"
        root.append(_suite(0, name, files[-1], list(_compared(files, view))))
    else:
        for number, file in enumerate(files):
            arm = f" {pairing.arm}" if (pairing := file.header.pairing) else ""
            name = f"gpubench run {file.header.suite.name}{arm}"
            summaries = summarise([file])
            broken = problems_of(summaries)
            cases = [_measured(s, broken[id(s)]) for s in summaries]
            root.append(_suite(number, name, file, cases))
    ET.indent(root, " ")
    body: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return body + b"\n"


def _compared(files: Sequence[RecordFile], view: View) -> Iterable[Case]:
    wall = _seconds(view)
    if not view.rows:
        text = "the two runs have nothing to compare"
        yield Case(name="comparison", group="gpubench", seconds=0.0, outcome="error",
                   kind="MISSING", message=text)  # fmt: skip
    for c in view.rows:
        keys = {c.key} if c.interleaved else {c.key, c.baseline_key or c.key}
        seconds = sum(wall.get(key, 0.0) for key in keys) if c.judged == "speed" else 0.0
        text = f"{c.verdict}: {compare.sentence(c)}"
        yield Case(
            name=compare.name(c), group=f"gpubench.{files[-1].header.suite.name}", seconds=seconds,
            outcome=OUTCOMES.get(c.verdict, ""), kind=f"{c.verdict} {c.code}".strip(),
            message=text, output=text,
        )  # fmt: skip


def _seconds(view: View) -> dict[str, float]:
    """Cell key -> wall time of all its repeats in both runs.

    Records of an A/B's arms each have the time of the whole pair: the candidate's are enough.
    """
    found: dict[str, float] = {}
    for side in view.sides()[1 if view.arms else 0 :]:
        for key, s in side.items():
            found[key] = found.get(key, 0.0) + sum(r.wall_s for r in s.records)
    return found


def _measured(s: Summary, found: Sequence[Problem]) -> Case:
    failed = [p for p in found if p.status.startswith("failed")]
    if failed:
        outcome, kind = "failure", failed[0].status
    elif s.status == "missing":
        outcome, kind = "error", "missing"
    else:
        outcome, kind = ("", "") if s.ranked else ("skipped", s.status)
    told = "; ".join(
        f"{p.status} (repeats: {p.repeats}): {p.reason}" + (f" -> {p.remedy}" * bool(p.remedy))
        for p in found
    )
    if s.status == "ok" and not s.values:
        outcome, kind = "error", "no-value"
        told = "; ".join(filter(None, (CODES[kind], ", ".join(flags_of(s)), told)))
    return Case(
        name=s.cell.label, group=f"gpubench.{s.cell.backend}", outcome=outcome, kind=kind,
        seconds=sum(r.wall_s for r in s.records), message=told, output=_values(s),
    )  # fmt: skip


def _values(s: Summary) -> str:
    """'p50 11.06 ms [10.94, 11.19], images/s 90.4 [89.5, 91.2]; flagged DRIFT'."""
    if not s.timed:
        return s.status
    shown = [f"p50 {formatting.full(s.p50, 'ns')}"] if s.cell.scenario == "latency" else []
    shown.append(f"images/s {formatting.full(s.throughput, 'images/s')}")
    return ", ".join(shown) + formatting.flagged(s)


def _suite(number: int, name: str, file: RecordFile, cases: Sequence[Case]) -> ET.Element:
    counts = {k: sum(c.outcome == k for c in cases) for k in ("failure", "error", "skipped")}
    head = file.header
    suite = ET.Element("testsuite", {
        "name": _line(name), "package": "gpubench", "id": str(number),
        "timestamp": _timestamp(head.started),
        "hostname": _line(str(head.environment.get("host") or "localhost")),
        "tests": str(len(cases)), "failures": str(counts["failure"]),
        "errors": str(counts["error"]), "skipped": str(counts["skipped"]),
        "time": f"{sum(c.seconds for c in cases):.3f}",
    })  # fmt: skip
    properties = ET.SubElement(suite, "properties")
    facts = {"run": head.run_id, "records": file.path, "machine": formatting.machine(head),
             "fingerprint": head.fingerprint}  # fmt: skip
    for key, value in facts.items():
        ET.SubElement(properties, "property", {"name": key, "value": _line(value)})
    for case in cases:
        suite.append(_case(case))
    # A case may hold nothing but its outcome in Ant's schema, so values stand at the suite's end.
    ET.SubElement(suite, "system-out").text = _legal(
        "\n".join(f"{case.name}: {case.output}" for case in cases if case.output)
    )
    ET.SubElement(suite, "system-err").text = _legal("\n".join(file.notes))
    return suite


def _case(case: Case) -> ET.Element:
    element = ET.Element("testcase", {
        "name": _line(case.name), "classname": _line(case.group), "time": f"{case.seconds:.3f}",
    })  # fmt: skip
    if case.outcome:
        outcome = ET.SubElement(element, case.outcome, {"message": _line(case.message)})
        if case.outcome != "skipped":  # which has no type in Ant's schema
            outcome.set("type", _line(case.kind))
        outcome.text = _legal(f"{case.name}: {case.message}")
    return element


def _legal(text: str) -> str:
    return escape.visible(_ILLEGAL.sub("\ufffd", text))


def _line(text: str) -> str:
    """For an attribute: one line, and never empty."""
    return _legal(" ".join(text.split())) or "-"


def _timestamp(started: str) -> str:
    """UTC, without the zone that Ant's schema forbids."""
    try:
        when = datetime.fromisoformat(started)
        when = when.replace(tzinfo=when.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):  # no time, or one before the year 1
        when = datetime.fromtimestamp(0, UTC)
    return when.isoformat(timespec="seconds").removesuffix("+00:00")

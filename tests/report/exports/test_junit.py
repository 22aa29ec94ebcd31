"""JUnit XML: valid for every reader, and never green where nothing was shown."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from gpubench.analysis.compare.compare import view
from gpubench.analysis.compare.verdicts import VERDICTS, Comparison
from gpubench.records.record import Record, RecordFile
from gpubench.report import exports
from gpubench.report.exports import junit
from gpubench.report.sections.compare import sentence
from tests.report import make, make_pairs

CELLS = make.grid(backends=("torch-eager",), batches=(1,), replicas=(1, 2), scenarios=("latency",))
ATTRIBUTES = {
    "testsuite": {"name", "package", "id", "timestamp", "hostname", "tests", "failures", "errors",
                  "skipped", "time"},
    "testcase": {"name", "classname", "time"},
    "property": {"name", "value"},
}  # fmt: skip


def arms(effect: float = 0.0) -> list[RecordFile]:
    return list(make_pairs.arms(CELLS, None, effect))


def comparison(verdict: str, **changes: Any) -> Comparison:
    known: dict[str, Any] = {
        "key": "abc", "label": "onnxruntime fp32 b8 x1 latency", "metric": "p50 [ns]",
        "baseline": 1e6, "candidate": 1.052e6, "ratio": 1.052, "low": 1.041, "high": 1.063,
        "n": (24, 24), "pairs": 24, "pair_sd": 0.011, "p": 0.00041, "verdict": verdict,
        "code": "confirmed", "reason": "slower than 2 %", "smallest_detectable": 0.031,
    }  # fmt: skip
    return Comparison(**(known | changes))


def junit_of(content: bytes) -> ET.Element:
    """Parsed, after the rules of Ant's and of Jenkins' schema: what both allow."""
    root = ET.fromstring(content)  # noqa: S314 (our own)
    assert (root.tag, root.attrib) == ("testsuites", {})
    for number, suite in enumerate(root):
        tags = [child.tag for child in suite]
        n = tags.count("testcase")
        assert tags == ["properties", *["testcase"] * n, "system-out", "system-err"]
        assert set(suite.attrib) == ATTRIBUTES["testsuite"]
        assert suite.attrib["id"] == str(number)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        assert all(suite.attrib.values())
        assert int(suite.attrib["tests"]) == n
        for tag, counted in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert len(suite.findall(f"testcase/{tag}")) == int(suite.attrib[counted])
        for element in suite.iter():
            if element.tag in ("testcase", "property"):
                assert set(element.attrib) == ATTRIBUTES[element.tag]
            if "time" in element.attrib:
                assert re.fullmatch(r"\d+\.\d{3}", element.attrib["time"])
        for case in suite.findall("testcase"):
            assert [child.tag for child in case] in ([], ["failure"], ["error"], ["skipped"])
            for outcome in case:
                kind = set() if outcome.tag == "skipped" else {"type"}
                assert set(outcome.attrib) == {"message"} | kind
                assert len(outcome) == 0
    return root


def test_junit_of_a_comparison_maps_every_verdict() -> None:
    found = [comparison(v, key=v, label=f"cell {v}") for v in VERDICTS]
    root = junit_of(exports.export(arms(), "junit", replace(view(*arms()), rows=found))[""])
    outcomes = {case.attrib["name"].split()[1]: [c.tag for c in case] for case in root[0][1:-2]}
    assert outcomes == {
        "REGRESSED": ["failure"], "MISSING": ["error"], "INCOMPARABLE": ["skipped"],
        "INCONCLUSIVE": ["skipped"], "IMPROVED": [], "EQUIVALENT": [],
    }  # fmt: skip
    failure = root.find(".//failure")
    assert failure is not None
    message = failure.attrib["message"]
    for words in ("+5.2 %", "+4.1, +6.3", "24 pairs", "pair sd 1.1 %", "3.1 %", "p = 0.00041"):
        assert words in message
    assert failure.attrib["type"] == "REGRESSED confirmed"
    assert "cell EQUIVALENT: EQUIVALENT: 1.000 ms -> 1.052 ms" in (root[0][-2].text or "")


def test_an_effect_without_an_interval_claims_no_confidence() -> None:
    assert "time +5.2 % [+4.1, +6.3] (95 %); 24 pairs" in sentence(comparison("REGRESSED"))
    assert "time +5.2 %; 24 pairs" in sentence(comparison("INCONCLUSIVE", low=None, high=None))


def test_junit_compares_two_runs_and_two_arms_by_itself() -> None:
    two = [make.run(CELLS[:2], run_id="a"), make.run(CELLS[:2], run_id="b")]
    assert exports.verdicts_on(two[:1]) is None
    assert exports.verdicts_on([*two, two[0]]) is None
    stored = exports.verdicts_on(two)
    assert stored is not None
    assert len(stored.rows) == 2
    wide = exports.verdicts_on(two, delta=0.5, history=[])
    assert wide is not None
    assert {c.verdict for c in wide.rows} == {"EQUIVALENT"}
    both = arms(0.5)
    paired = exports.verdicts_on([both[1], both[0]])
    assert paired is not None
    assert {c.verdict for c in paired.rows} == {"REGRESSED"}
    root = junit_of(exports.export(both, "junit", paired)[""])
    assert root[0].attrib["name"] == "gpubench ab quick"
    assert float(root[0].attrib["time"]) == pytest.approx(1.7 * len(both[0].records))


def test_junit_never_passes_when_nothing_was_compared() -> None:
    root = junit_of(exports.export(arms(), "junit", replace(view(*arms()), rows=[]))[""])
    assert root[0].attrib["errors"] == "1"


def test_junit_of_runs_tells_failed_missing_and_skipped_apart() -> None:
    file = make.realistic(samples=40)
    root = junit_of(exports.export([file, make.run(CELLS[:1])], "junit")[""])
    assert len(root) == 2
    assert root[1].attrib["errors"] == root[1].attrib["failures"] == "0"
    kinds = {
        tag: {e.attrib["message"].split(" (")[0] for e in root[0].findall(f"testcase/{tag}")}
        for tag in ("failure", "error", "skipped")
    }
    assert kinds == {
        "failure": {"failed: crash", "failed: out-of-memory", "failed: parity"},
        "error": {"missing"},
        "skipped": {"unavailable", "unsupported"},
    }
    skip = root[0].find("testcase[@name='tensorrt fp32 b1 x1 latency']/skipped")
    assert skip is not None
    assert "no CUDA device -> run on a machine with an NVIDIA GPU" in skip.attrib["message"]
    # A failed repeat fails the cell, as it fails the run
    case = root[0].find("testcase[@name='torch-eager fp32 b4 x2 latency']/failure")
    assert case is not None
    assert "repeats: 2" in case.attrib["message"]
    assert "torch-eager fp32 b1 x1 latency: p50 11" in (root[0][-2].text or "")


def test_a_start_before_the_first_year_is_no_time() -> None:
    for started, shown in (
        ("0001-01-01T00:00:00+23:59", "1970-01-01T00:00:00"),
        ("2026-01-02T03:04:05.6+02:00", "2026-01-02T01:04:05"),
        ("2026-01-02", "2026-01-02T00:00:00"),
    ):
        head = make.header(CELLS[:1], started=started)
        root = junit_of(junit.render([RecordFile("r", head, [])], None))
        assert root[0].attrib["timestamp"] == shown


def test_junit_survives_text_that_xml_cannot_hold() -> None:
    nasty = "a\x00\x1b[31m \ud800 \ufffe <b>&\"' ]]>\nnext"
    found = [comparison("REGRESSED", label=nasty, reason=nasty)]
    head = make.header(CELLS[:1], environment={"host": nasty}, started="yesterday")
    file = RecordFile(nasty, head, [], [nasty])
    root = junit_of(junit.render([file], replace(view(file, file), rows=found)))
    case = root[0].find("testcase")
    assert case is not None
    assert case.attrib["name"] == "a\ufffd\ufffd[31m \ufffd \ufffd <b>&\"' ]]> next"
    assert "]]>\nnext" in (root[0][-1].text or "")


def test_a_cell_without_a_value_is_an_error_and_not_green() -> None:
    file = make.run([make.cell(scenario="throughput", replicas=2)], samples=5)

    def apart(r: Record) -> Record:
        moved = [replace(s, start_ns=n * 9 * make.S, end_ns=n * 9 * make.S + s.end_ns)
                 for n, s in enumerate(r.replicas)]  # fmt: skip
        return replace(r, replicas=moved, flags=["NO-COMMON-WINDOW"])

    file = replace(file, records=[apart(r) for r in file.records])
    root = ET.fromstring(junit.render([file], None))  # noqa: S314
    assert (root[0].attrib["errors"], root[0].attrib["tests"]) == ("1", "1")
    (error,) = root.iter("error")
    assert "NO-COMMON-WINDOW" in error.attrib["message"]

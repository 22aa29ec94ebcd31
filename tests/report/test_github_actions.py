"""What GitHub is told: the verdict first, within its limits, whatever a cell is called."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gpubench.analysis.compare.verdicts import VERDICTS, Comparison
from gpubench.records.record import Record, RecordFile
from gpubench.report import github_actions, markdown
from gpubench.suite.types import Rule
from tests.report import make

NASTY = "x|y\n::error::<img src=x onerror=alert(1)> @all [a](b) `c` ::set-env name=A::% 50%, 1:2\r"


def comparison(verdict: str, number: int = 0, **changes: Any) -> Comparison:
    ratio = 1.5 + number / 1000
    known: dict[str, Any] = {
        "key": f"k{number}", "label": f"cell-{number} latency", "metric": "p50 [ns]",
        "baseline": 1e6, "candidate": ratio * 1e6, "ratio": ratio, "low": ratio - 0.01,
        "high": ratio + 0.01, "n": (24, 24), "pairs": 24, "pair_sd": 0.011, "verdict": verdict,
        "interleaved": True,
        "code": "confirmed", "reason": f"because of {number}", "smallest_detectable": 0.031,
    }  # fmt: skip
    return Comparison(**(known | changes))


def cells(text: str) -> list[list[str]]:
    """The rows of all tables, without their heads."""
    lines = text.splitlines()
    return [
        re.split(r"(?<!\\)\|", line)[1:-1]
        for above, line in pairwise(lines)
        if line.startswith("| ") and above.startswith("|")
    ]


# ------------------------------------------------------------------------------ the summary


def test_the_verdict_comes_first_and_unchanged_rows_are_folded() -> None:
    found = [comparison(v, n) for n, v in enumerate(reversed(VERDICTS))]
    text = github_actions.summary(found, rule=Rule(delta=0.03))
    lines = text.splitlines()
    assert lines[0] == "## gpubench"
    assert lines[2].startswith("**REGRESSED: 1 of 6 cells is slower: cell-5 latency by 5")
    shown, folded = text.split("<details>")
    assert [row[0].strip() for row in cells(shown)] == [v for v in VERDICTS if v != "EQUIVALENT"]
    assert [row[0].strip() for row in cells(folded)] == ["EQUIVALENT"]
    assert folded.count("</details>") == 1
    assert "±3 %" in text
    regressed = cells(shown)[0]
    for words in ("1.000 ms", "1.505 ms", "+50.5 %", "24", "1.1 %", "3.1 %", "because of 5"):
        assert any(words in cell for cell in regressed), words


def test_a_long_summary_keeps_the_worst_rows_whole_and_says_how_many_are_gone() -> None:
    many = [comparison("REGRESSED", n, reason="größer " * 20) for n in range(400)]
    many += [comparison("EQUIVALENT", 1000 + n) for n in range(300)]
    text = github_actions.summary(many)
    size = len(text.encode())
    assert github_actions.LIMIT - 1000 < size <= github_actions.LIMIT
    rows = cells(text)
    gone, of = map(int, re.findall(r"(\d+) of (\d+) rows are left out", text)[0])
    assert (gone + len(rows), of) == (700, 700)
    assert {len(row) for row in rows} == {len(rows[0])}
    kept = [int(re.findall(r"cell\\?-(\d+)", row[1])[0]) for row in rows]
    assert kept == list(range(399, 399 - len(kept), -1))  # the largest slowdown first, no gaps
    assert text.index("left out") < text.index("|")
    assert text.splitlines()[-1] == markdown.comparison(many).splitlines()[-1]  # notes stay
    assert text.count("<details>") == text.count("</details>") == 1


def test_a_summary_that_fits_says_nothing_about_rows() -> None:
    assert "left out" not in github_actions.summary([comparison("REGRESSED")])


def test_one_huge_reason_does_not_push_out_the_others() -> None:
    found = [comparison("REGRESSED", 1, reason="x" * 100_000), comparison("REGRESSED", 0)]
    text = github_actions.summary(found)
    assert len(text.encode()) < 5000
    assert len(cells(text)) == 2
    assert "xxx…" in text


def test_no_comparison_is_not_a_pass() -> None:
    assert "MISSING" in github_actions.summary([])
    (line,) = github_actions.commands([])
    assert line.startswith("::warning title=gpubench%3A MISSING::")


def test_a_run_shows_failures_first_then_tables() -> None:
    text = github_actions.run_summary([make.realistic(samples=40)])
    lines = text.splitlines()
    assert lines[0] == "## gpubench quick: 16 failed, 1 missing"
    assert len(text.encode()) <= github_actions.LIMIT
    assert text.index("### Skips and failures") < text.index("<summary>Latency per batch: 94 rows")
    first = [row[1].strip() for row in cells(text)[:20]]
    assert first[0] == "failed: crash"
    assert first[-3:] == ["unavailable", "unavailable", "unsupported"]
    assert "**CPU-BUSY** (12 cells)" in text
    good = github_actions.run_summary([make.run(make.grid(replicas=(1,)))])
    assert good.startswith("## gpubench quick: nothing failed\n")
    assert "### Throughput" in good
    assert "left out" not in good


def test_even_flags_by_the_hundred_fit() -> None:
    c = make.cell()
    flags = [f"{n} " + "F" * 600 for n in range(300)]
    file = RecordFile("r", make.header([c]), [Record(cell=c, repeat=0, status="ok", flags=flags)])
    assert len(github_actions.run_summary([file]).encode()) <= github_actions.LIMIT


# ------------------------------------------------------------------------------ user text


def test_user_text_cannot_break_the_table_or_become_markup() -> None:
    found = [comparison("REGRESSED", label=NASTY, reason=NASTY)]
    text = github_actions.summary(found)
    (row,) = cells(text)
    plain = cells(github_actions.summary([comparison("REGRESSED")]))[0]
    assert len(row) == len(plain)
    assert "<img" not in text
    assert not re.search(r"(?<!\\)@all", text)
    assert "::error" not in [line[:7] for line in text.splitlines()]
    head = make.header([make.cell()])
    broken = Record(cell=make.cell(), repeat=0, status="failed", kind="error", reason=NASTY)
    text = github_actions.run_summary([RecordFile("r", head, [broken])])
    assert "<img" not in text
    assert len(cells(text)) == 1


def test_commands_are_single_lines_that_read_back() -> None:
    (line,) = github_actions.commands([comparison("REGRESSED", label=NASTY, reason=NASTY)])
    assert "\n" not in line
    assert "\r" not in line
    match = re.fullmatch(r"::error title=([^:,\r\n]*)::([^\r\n]*)", line)
    assert match is not None

    def read(text: str) -> str:  # as GitHub's runner does
        for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")):
            text = text.replace(code, char)
        return text.replace("%25", "%")

    assert read(match[1]) == f"gpubench: REGRESSED {NASTY}"
    assert read(match[2]).endswith(f"confirmed: {NASTY}")


# ------------------------------------------------------------------------------ annotations


def test_each_verdict_has_its_level() -> None:
    found = [comparison(v, label=v) for v in VERDICTS]
    found.append(
        comparison("INCONCLUSIVE", label="stored", code="no-history", pairs=0, interleaved=False)
    )
    levels = {
        re.split(r"[ :]+", line)[4]: line.split(" ")[0]
        for line in github_actions.commands(found[:6])
    }
    assert levels == {
        "REGRESSED": "::error", "MISSING": "::warning", "INCOMPARABLE": "::warning",
        "INCONCLUSIVE": "::warning",
    }  # fmt: skip
    assert "no-history" in github_actions.commands(found)[-1]


@pytest.mark.parametrize(("n", "lines"), [(9, 9), (10, 10), (11, 10), (500, 10)])
def test_at_most_ten_of_a_level_the_last_counting_the_rest(n: int, lines: int) -> None:
    found = [comparison(v, k) for v in ("REGRESSED", "MISSING") for k in range(n)]
    told = github_actions.commands(found)
    for level in ("error", "warning"):
        mine = [line for line in told if line.startswith(f"::{level} ")]
        assert len(mine) == lines
        more = f"::{level} title=gpubench%3A {n - 9} more::"
        assert mine[-1].startswith(more) == (n > 10)
        assert f"cell-{n - 1} " in mine[0]  # the worst is named


def test_failed_and_missing_cells_of_a_run_are_annotated_and_skips_are_not() -> None:
    told = github_actions.run_commands([make.realistic(samples=40)])
    assert sum(line.startswith("::error ") for line in told) == 10
    (missing,) = [line for line in told if line.startswith("::warning ")]
    assert "missing onnxruntime fp32 b128 x1 latency::planned" in missing
    assert not any("tensorrt" in line for line in told)
    assert github_actions.run_commands([make.run([make.cell()])]) == []


# ------------------------------------------------------------------------------ telling GitHub


def test_it_is_wanted_on_github_or_when_asked_for() -> None:
    assert github_actions.wanted(True, {})
    assert github_actions.wanted(False, {"GITHUB_ACTIONS": "true"})
    assert not github_actions.wanted(False, {"GITHUB_ACTIONS": "false"})
    assert not github_actions.wanted(False, {})


def test_the_summary_is_appended_and_commands_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "summary.md"
    path.write_text("# before\n", encoding="utf-8")
    for word in ("one ±", "two"):
        github_actions.publish(
            word, [f"::error::{word}"], environ={"GITHUB_STEP_SUMMARY": str(path)}
        )
    assert path.read_text(encoding="utf-8") == "# before\none ±\ntwo\n"
    assert capsys.readouterr() == ("::error::one ±\n::error::two\n", "")
    written: list[str] = []
    github_actions.publish("x", ["::a::", "::b::"], environ={"GITHUB_STEP_SUMMARY": str(path)},
                   write=written.append)  # fmt: skip
    assert written == ["::a::", "::b::"]
    assert capsys.readouterr().out == ""


def test_a_summary_that_github_would_drop_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "summary.md"
    for left, written in ((1, 0), (2, 2)):
        path.write_bytes(b"x" * ((1 << 20) - left))
        github_actions.publish("x", [], environ={"GITHUB_STEP_SUMMARY": str(path)})
        assert path.stat().st_size == (1 << 20) - left + written
        assert ("1 MiB that GitHub takes" in capsys.readouterr().err) is (not written)


@pytest.mark.parametrize("where", ["", "nowhere/summary.md", "."])
def test_a_summary_that_cannot_be_written_is_a_warning(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"GITHUB_STEP_SUMMARY": str(tmp_path / where)} if where else {}
    github_actions.publish("x", ["::error::y"], environ=environ)
    out, err = capsys.readouterr()
    assert out == "::error::y\n"
    assert err.startswith("warning: ")
    assert "summary" in err

"""The options of pytest and of its other plug-ins."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from gpubench.pytest_plugin.suite_runs import repeatable
from gpubench.records.reader import read
from tests.pytest_plugin.conftest import NAME, Pytest, WriteSuite, outcomes, write


@pytest.mark.parametrize(
    ("args", "kept"),
    [
        (["s.toml", "--gpubench-repeats=2"], ["s.toml", "--gpubench-repeats=2"]),
        (["s.toml", "-k", "a and b", "-m=slow"], ["s.toml", "-k", "a and b", "-m=slow"]),
        (["s.toml::x", "--gpubench-require", "onnx"], ["s.toml::x", "--gpubench-require", "onnx"]),
        (["--db", "postgres://me:pw@host/db", "s.toml"], ["s.toml"]),
        (["--token=abc", "--pat", "abc", "-p", "x"], ["-p", "x"]),
        (["s.toml::t[https://host/?sig=abc]"], ["s.toml::t"]),
        (["--benchmark-only", "--benchmark-storage=elasticsearch+https://me:pw@host"],
         ["--benchmark-only"]),
    ],
)  # fmt: skip
def test_of_pytests_words_only_what_measures_again_is_recorded(
    args: list[str], kept: list[str], tmp_path: Path
) -> None:
    (tmp_path / "s.toml").touch()
    assert repeatable(args, tmp_path) == kept


def test_compare_fails_on_a_slower_run_only(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path
) -> None:
    def measured(
        microseconds: int, *words: str, batch_size: str = "[1]"
    ) -> subprocess.CompletedProcess[str]:
        options = f"[axes.options.fake]\nlatency_us = {microseconds}"
        write_suite(batch_size=batch_size, policy={"parity_images": 4}, axes=options)
        return run_pytest("tiny.toml", *words, COLUMNS="250")

    def change(seconds: float, renamed: int, **conditions: str) -> None:
        """The saved run as it would be on a machine that is never busy."""
        content = json.loads(text.replace("latency_us=2000.0", f"latency_us={renamed}.0"))
        content["benchmarks"][0]["stats"]["median"] = seconds
        content["gpubench"]["comparable"] |= conditions
        saved.write_text(json.dumps(content))

    assert measured(2000, "--benchmark-save", "base").returncode == 0
    [saved] = tmp_path.rglob("*_base.json")
    text = saved.read_text()
    assert json.loads(text)["benchmarks"][0]["stats"]["median"] >= 0.002
    against = ("--benchmark-compare", "--benchmark-compare-fail")
    change(0.5, renamed=2000)
    done = measured(2000, *against, "median:90%")
    assert done.returncode == 0, done.stdout
    assert "a difference need not be the code's" not in done.stdout
    assert "nothing says" not in done.stdout

    change(0.002, renamed=4000, **{"cpu.model": "another", "x\x1b[2J": 1})
    done = measured(4000, *against, "median:90%", batch_size="[1, 4]")
    assert done.returncode != 0
    assert "Performance has regressed" in done.stdout + done.stderr
    assert "under other conditions (cpu.model, x\\x1b[2J)" in done.stdout
    new = f"tiny.toml::{NAME.format(4)}-latency_us=4000.0"
    words = f"1 of 2 are not in the run that is compared with, such as {new}: nothing says whether"
    assert words in done.stdout


def test_disabled_checks_answers_and_times_nothing(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path
) -> None:
    write_suite(
        axes='[axes.options.fake]\nfail = ["", "wrong"]',
        policy={"repeats": 20, "max_repeats": 20, "duration_s": 30, "warmup_s": 30},
    )
    code = """
        import pytest

        pytestmark = pytest.mark.gpubench("tiny.toml", batch_size=4)

        def test_time(gpubench):
            assert gpubench.agreement == 1
            assert gpubench.p50_ms < 0

        class TestMore:
            @pytest.mark.gpubench(options={"fake": {"fail": ""}})
            def test_answers(self, gpubench):
                assert gpubench.agreement == 1

            def test_nothing(self):
                pass
    """
    write(tmp_path / "test_mine.py", code)
    done = run_pytest(
        "tiny.toml", "test_mine.py", "-v", "-rs", "--benchmark-disable", COLUMNS="250"
    )
    right, wrong = (f"{NAME.format(4)}-fail={fail}" for fail in ("", "wrong"))
    found = outcomes(done.stdout)
    assert [found[f"tiny.toml::{name}"] for name in (right, wrong)] == ["PASSED", "FAILED"]
    assert found[f"test_mine.py::test_time[{right}]"] == "SKIPPED"
    assert found[f"test_mine.py::test_time[{wrong}]"] == "FAILED"
    assert found[f"test_mine.py::TestMore::test_answers[{right}]"] == "PASSED"
    assert found["test_mine.py::TestMore::test_nothing"] == "PASSED"
    assert "nothing is timed with --benchmark-disable" in done.stdout
    assert "repeat 2" not in done.stdout
    assert len(found) == 8


def test_selection_measures_only_what_is_selected(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path
) -> None:
    write_suite()
    code = """
        import pytest

        @pytest.mark.skipif(True, reason="not today")
        @pytest.mark.gpubench("tiny.toml", batch_size=8)
        def test_mine(gpubench):
            pass

        def test_other():
            pass
    """
    write(tmp_path / "test_mine.py", code)
    both = ("tiny.toml", "test_mine.py", "-v")
    words = ("-k", "b4 or mine", "--gpubench-repeats", "1", "--gpubench-records", "records")
    done = run_pytest(*both, *words, "--benchmark-only")
    assert outcomes(done.stdout)[f"tiny.toml::{NAME.format(4)}"] == "PASSED"
    assert (
        "PASSED" not in outcomes(done.stdout.replace(f"tiny.toml::{NAME.format(4)}", "")).values()
    )
    assert [r.cell.batch_size for r in read(tmp_path / "records" / "tiny").records] == [4]
    again = run_pytest(*both, *words)
    assert again.returncode == 4
    assert "holds a run already; name another" in again.stderr
    for words in (("--benchmark-skip",), ("--setup-plan",), ("--collect-only",)):
        done = run_pytest(*both, *words)
        assert done.returncode == 0, done.stdout
        assert "gpubench tiny:" not in done.stdout
        assert f"{NAME.format(4)}" in done.stdout


def test_beside_other_processes_of_xdist_nothing_is_measured(
    write_suite: WriteSuite, run_pytest: Pytest
) -> None:
    write_suite()
    done = run_pytest("tiny.toml", "-v", "-rs", COLUMNS="250", PYTEST_XDIST_WORKER="gw0")
    assert set(outcomes(done.stdout).values()) == {"SKIPPED"}
    assert "run it without -n, or with -n 0" in done.stdout
    must = ("--gpubench-require", "fake")
    done = run_pytest("tiny.toml", "-v", *must, COLUMNS="250", PYTEST_XDIST_WORKER="gw0")
    assert set(outcomes(done.stdout).values()) == {"FAILED"}
    assert "--gpubench-require fake: several processes of pytest-xdist" in done.stdout


AGAIN = """
    import pytest
    from _pytest.runner import runtestprotocol

    def pytest_runtest_protocol(item, nextitem):  # as pytest-rerunfailures does
        for last in (False, True) if "rerun" in item.name else (True,):
            item._initrequest()
            for report in runtestprotocol(item, nextitem=nextitem, log=False):
                if last:
                    item.ihook.pytest_runtest_logreport(report=report)
        return True

    def pytest_generate_tests(metafunc):  # as pytest-repeat does
        if "repeated" in metafunc.function.__name__:
            metafunc.fixturenames.append("__pytest_repeat_step_number")
            metafunc.parametrize("__pytest_repeat_step_number", range(2))
"""


def test_what_runs_once_more_is_measured_once_more(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path
) -> None:
    write_suite(batch_size="[1]", policy={"parity_images": 4})
    write(tmp_path / "conftest.py", AGAIN)
    code = """
        import pytest

        pytestmark = pytest.mark.gpubench("tiny.toml")
        seen = {}

        def check(gpubench, times):
            seen.setdefault(times, []).append(gpubench.rounds_s)
            assert len({tuple(rounds) for rounds in seen[times]}) == len(seen[times])

        def test_rerun(gpubench):
            check(gpubench, "rerun")

        def test_repeated(gpubench):
            check(gpubench, "repeated")

        def test_shared(gpubench):
            assert gpubench.rounds_s == seen["rerun"][0]  # the same cell is measured once

        def test_all_were():
            assert {name: len(rounds) for name, rounds in seen.items()} == {
                "rerun": 2, "repeated": 2
            }
    """
    write(tmp_path / "test_mine.py", code)
    done = run_pytest("test_mine.py", "--gpubench-records", "kept")
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "tiny", "tiny-again-1", "tiny-again-2",
    ]  # fmt: skip

"""The plug-in is in every pytest run of who has gpubench installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pytest_plugin.conftest import Pytest, WriteSuite, outcomes, write


def test_other_peoples_tests_notice_nothing(run_pytest: Pytest, tmp_path: Path) -> None:
    """No warning, no import, no section: the plug-in is in every run of who has it installed."""
    code = """
        import sys

        def test_other():
            heavy = {"numpy", "torch", "pandas", "scipy", "msgspec", "rich", "psutil", "pynvml"}
            assert not heavy & set(sys.modules)
            assert {name for name in sys.modules if name.startswith("gpubench")} == {
                "gpubench", "gpubench.pytest_plugin", "gpubench.pytest_plugin.hooks",
                "gpubench.pytest_plugin.items",
            }
    """
    write(tmp_path / "test_other.py", code)
    done = run_pytest("-p", "no:benchmark", "--strict-config")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert done.stdout.count("gpubench") == 0
    assert done.stderr == ""


def test_collecting_imports_nothing_heavy(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path
) -> None:
    suite = write_suite()  # of a network by its name: the graph of an ONNX file is looked at
    text = suite.read_text().replace('weights = "file"', 'weights = "random"')
    suite.write_text(re.sub('model = ".*"', 'model = "digits"', text))
    code = """
        import sys

        def pytest_unconfigure():
            assert "gpubench.pytest_plugin.measurements" in sys.modules
            heavy = {"numpy", "torch", "pandas", "scipy", "onnx", "onnxruntime"}
            assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    write(tmp_path / "conftest.py", code)
    done = run_pytest("tiny.toml", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point, as an installed gpubench has it."""
    info = tmp_path / "site" / "with_entry_point-1.0.dist-info"
    info.mkdir(parents=True)
    write(info / "METADATA", "Metadata-Version: 2.1\nName: with-entry-point\nVersion: 1.0\n")
    write(info / "entry_points.txt", "[pytest11]\ngpubench = gpubench.pytest_plugin.hooks\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


@pytest.mark.parametrize("words", [[], ["-p", "gpubench"], ["-p", "gpubench.pytest_plugin"]])
def test_registering_twice_is_once(
    installed: None, run_pytest: Pytest, tmp_path: Path, words: list[str]
) -> None:
    code = """
        pytest_plugins = ["gpubench.pytest_plugin"]

        def pytest_sessionstart(session):
            called_last = session.config.hook.pytest_runtest_protocol.get_hookimpls()
            names = [one.plugin_name for one in called_last]
            assert names.count("gpubench") == 1
            # measuring comes before a test's time-out begins
            assert names.index("gpubench") > names.index("timeout")
    """
    write(tmp_path / "conftest.py", code)
    write(tmp_path / "test_other.py", "def test_other(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "--gpubench-repeats", "1", "-W", "error"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_fixture_of_the_same_name_is_left_alone(run_pytest: Pytest, tmp_path: Path) -> None:
    code = """
        import pytest

        @pytest.fixture
        def gpubench():
            return 1

        def test_mine(gpubench):
            assert gpubench == 1
    """
    write(tmp_path / "test_mine.py", code)
    write(tmp_path / "test_unmarked.py", "def test_unmarked(gpubench): pass\n")
    done = run_pytest("-v")
    assert outcomes(done.stdout) == {
        "test_mine.py::test_mine": "PASSED",
        "test_unmarked.py::test_unmarked": "ERROR",
    }
    assert "needs a mark, such as @pytest.mark.gpubench(suite='ci')" in done.stdout


def test_bad_options_are_usage_errors(run_pytest: Pytest) -> None:
    done = run_pytest("--gpubench-repeats", "0")
    assert done.returncode == 4
    assert "'0': expected a whole number of at least 1" in done.stderr

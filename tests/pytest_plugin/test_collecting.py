"""What is collected, and what marks may say."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpubench.errors import SuiteError
from gpubench.pytest_plugin import marks
from tests.pytest_plugin.conftest import NAME, Pytest, WriteSuite, write


def test_only_named_or_configured_toml_files_are_collected(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path
) -> None:
    suite = write_suite()
    (tmp_path / "sub" / "suites").mkdir(parents=True)
    suite.rename(tmp_path / "sub" / "suites" / "mine.toml")
    write(tmp_path / "sub" / "pyproject.toml", "[tool.black]\n")
    write(tmp_path / "sub" / "broken.toml", "= =\n")
    write(tmp_path / "sub" / "test_other.py", "def test_other(): pass\n")
    done = run_pytest("--collect-only", "-q")
    assert done.returncode == 0, done.stdout
    assert "1 test collected" in done.stdout
    done = run_pytest("--collect-only", "-q", "-o", "gpubench_suites=suites/*.toml")
    assert "3 tests collected" in done.stdout
    assert f"sub/suites/mine.toml::{NAME.format(4)}" in done.stdout
    done = run_pytest("--collect-only", "-q", f"sub/suites/mine.toml::{NAME.format(4)}")
    assert "1 test collected" in done.stdout
    done = run_pytest("sub/pyproject.toml", "sub/broken.toml")
    assert done.returncode == 2
    assert re.search(r"^suite \S+pyproject.toml has 2 mistakes:$", done.stdout, re.MULTILINE)
    assert re.search(r"^suite \S+broken.toml: not valid TOML", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stdout
    done = run_pytest("sub/suites/mine.toml", "-p", "no:benchmark")
    assert done.returncode == 2
    assert "pip install pytest-benchmark, or leave out '-p no:benchmark'" in done.stdout


WRONG = {
    "@pytest.mark.gpubench(suite='tiny.toml', batch_sise=1)": 'did you mean "batch_size"?',
    "@pytest.mark.gpubench('tiny.toml', batch_size=0)": "gpubench(batch_size=0): expected a whole",
    "@pytest.mark.gpubench(suite='tiny.toml', backend='fale')": 'did you mean "fake"?',
    "@pytest.mark.gpubench(suite='tine.toml')": "no suite and no file called",
    "@pytest.mark.gpubench(backend='fake')": "suite is missing; expected a path relative to",
    "@pytest.mark.gpubench('tiny.toml', 'ci')": "one suite, then only keywords",
}


def test_wrong_marks_are_clear_errors(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path
) -> None:
    write_suite()
    code = "import pytest\n\n{}\ndef test_mine(gpubench): pass\n"
    for number, mark in enumerate(WRONG):
        write(tmp_path / f"test_{number}.py", code.format(mark))
    unused = "@pytest.mark.gpubench('ci')\ndef test_unused(): pass\n"
    write(tmp_path / "test_unused.py", f"import pytest\n\n{unused}")
    done = run_pytest("--collect-only")
    assert done.returncode == 2
    said = dict(re.findall(r"^(test_\w+\.py)::\w+: ((?:.+\n)+?)(?=_|=)", done.stdout, re.MULTILINE))
    for number, words in enumerate(WRONG.values()):
        assert words in said[f"test_{number}.py"]
    assert "without the argument `gpubench`" in said["test_unused.py"]
    assert "Traceback" not in done.stdout
    assert "During handling" not in done.stdout


def test_a_marked_method_of_unittest_does_not_pass_unmeasured(
    run_pytest: Pytest, tmp_path: Path
) -> None:
    code = """
        import unittest
        import pytest

        class TestMine(unittest.TestCase):
            @pytest.mark.gpubench("ci")
            def test_mine(self): pass
    """
    write(tmp_path / "test_mine.py", code)
    done = run_pytest()
    assert done.returncode == 4
    assert "test_mine.py::TestMine::test_mine: marked 'gpubench', but a unittest" in done.stderr


def test_marks_closest_wins_and_paths_are_the_tests(tmp_path: Path) -> None:
    def mark(*args: object, **kwargs: object) -> Any:
        return SimpleNamespace(args=args, kwargs=kwargs)

    outer = mark("suites/a.toml", batch_size=1, model="resnet18")
    inner = mark(batch_size=[2, 4], images="images/mine")
    suite, chosen = marks.read([inner, outer], tmp_path)
    assert suite == str(tmp_path / "suites/a.toml")
    assert chosen == {
        "batch_size": [2, 4],
        "model": "resnet18",
        "images": str(tmp_path / "images/mine"),
    }
    assert marks.read([mark("ci")], tmp_path) == ("ci", {})
    with pytest.raises(SuiteError, match="suite is 7"):
        marks.read([mark(suite=7)], tmp_path)

"""Releases of a library, as a (stubbed) uv lists and installs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gpubench.errors import InputError
from gpubench.run.bisect.releases import Releases
from gpubench.run.bisect.setup import bisection
from gpubench.suite.types import Rule

UV = f"""#!{sys.executable}
import os, re, sys
from pathlib import Path
words = sys.argv[1:]
with open(os.environ["UV_LOG"], "a") as log:
    print(*words, file=log)
known = [(1, 0), (1, 1), (1, 2), (1, 10), (2, 0)]
number = lambda text: tuple(map(int, text.split(".")))
if words[:2] == ["pip", "compile"]:
    limits = re.findall(r"([<>=]=?)([0-9.]+)", sys.stdin.read())
    test = {{"<": lambda a, b: a < b, ">": lambda a, b: a > b, "==": lambda a, b: a == b}}
    fit = [v for v in known if all(test[how](v, number(to)) for how, to in limits)]
    if not fit:
        sys.exit("  x No solution found when resolving dependencies")
    print("numpy==%d.%d" % max(fit))
elif words[0] == "venv":
    made = Path(words[-1])
    (made / "bin").mkdir(parents=True)
    (made / "lib/python3.0/site-packages").mkdir(parents=True)
    python = made / "bin/python"
    python.write_text('#!/bin/sh\\nexec "{sys.executable}" "$@"\\n')
    python.chmod(0o755)
elif "numpy==1.2" in words and "-c" in words:
    sys.exit("  x No solution found when resolving dependencies")
elif "numpy==1.10" in words:
    sys.exit("error: it does not build")
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools, found = tmp_path / "tools", tmp_path / "uv.log"
    tools.mkdir()
    (tools / "uv").write_text(UV)
    (tools / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("UV_LOG", str(found))
    return found


def calls(log: Path, word: str) -> list[str]:
    return [line for line in log.read_text().splitlines() if word in line]


def test_releases_come_in_order_and_their_environments_are_kept(log: Path, tmp_path: Path) -> None:
    row = Releases("numpy", "1.0", "2.0", tmp_path / "cache")
    assert [v.name for v in row.versions] == ["1.0", "1.1", "1.2", "1.10", "2.0"]
    assert row.versions[1].line == "numpy 1.1"
    assert all("--prerelease disallow" in line for line in calls(log, "pip compile")[3:])
    python = row.arm(1).python
    assert python
    assert python.is_relative_to(tmp_path / "cache")
    (below,) = python.parents[1].glob("lib/*/site-packages/gpubench-below.pth")
    assert all(p in below.read_text() for p in sys.path if p.endswith("site-packages"))
    assert "numpy==" not in (python.parents[1] / "constraints.txt").read_text()
    assert row.words(1, 2)[1] == str(python)
    before = len(calls(log, "pip install"))
    again = Releases("numpy", "1.1", "2.0", tmp_path / "cache")
    assert again.arm(0).python == python
    assert len(calls(log, "pip install")) == before == 1


def test_a_release_that_needs_other_versions_of_the_rest_has_them(
    log: Path, tmp_path: Path
) -> None:
    row = Releases("numpy", "1.0", "2.0", tmp_path / "cache")
    assert row.arm(2).python
    first, second = calls(log, "numpy==1.2")
    assert " -c " in first
    assert " -c " not in second


def test_a_release_that_cannot_be_installed_is_told_with_its_reason(
    log: Path, tmp_path: Path
) -> None:
    row = Releases("numpy", "1.0", "2.0", tmp_path / "cache")
    for _ in range(2):  # and nothing half made is taken for whole
        with pytest.raises(InputError, match=r"release 1\.10 failed: error: it does not build"):
            row.arm(3)


@pytest.mark.parametrize(
    ("package", "good", "bad", "told"),
    [
        ("numpy,scipy", "1.0", "2.0", "--package 'numpy,scipy': expected the name of one package"),
        ("no-such-thing", "1.0", "2.0", "'no-such-thing': is not installed here"),
        ("numpy", "main", "2.0", "--good 'main': expected a version, such as 1.20.1"),
        ("numpy", "1.0", "1.0", "--good and --bad are one release, 1.0"),
        ("numpy", "1.5", "2.0", "--good '1.5': there is no such release of numpy for this Python"),
        ("numpy", "1.0", "3.0", "--bad '3.0': there is no such release of numpy"),
        ("numpy", "1.10", "1.2", "--good '1.10' is no earlier release than --bad '1.2'"),
    ],
)
def test_bad_input(log: Path, tmp_path: Path, package: str, good: str, bad: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Releases(package, good, bad, tmp_path / "cache")


def test_a_release_that_gpubench_cannot_use_is_told_before_it_is_installed(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^--good '1\.20\.1': gpubench needs onnxruntime >=1\.\d+"
    ):
        bisection("ci", {}, ("1.20.1", "1.30.0"), "onnxruntime", Rule(), 60, tmp_path, None, False)


def test_what_uv_says_of_a_broken_index_is_passed_on(log: Path, tmp_path: Path) -> None:
    (tmp_path / "tools/uv").write_text("#!/bin/sh\necho no route to the index >&2\nexit 2\n")
    with pytest.raises(InputError, match="no route to the index"):
        Releases("numpy", "1.0", "2.0", tmp_path / "cache")

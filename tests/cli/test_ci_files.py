"""The files of `gpubench init --ci`: valid, harmless with any branch's name, and they work.

What a service would do with a file is done here: its variables, its way to run the lines.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import pytest
import yaml

from gpubench.cli.compare import VERDICT
from gpubench.cli.init import SERVICES, TEMPLATES
from gpubench.cli.main import cli
from tests import fake_uv

TARGET = "rel$(touch${IFS}pwned);`touch${IFS}pwned`&'v\"1"
"""A branch; git allows all of it."""
SCHEMAS = {"github": "github-workflows", "github-comment": "github-workflows",
           "gitlab": "gitlab-ci", "buildkite": "buildkite"}  # fmt: skip
SUITE = """
[workload]
model = "birds.onnx"
[axes]
backend = "onnxruntime"
device = "cpu"
cores = 1
scenario = "latency"
[policy]
duration_s = 0.02
warmup_s = 0.01
parity_images = 4
"""
RECORDER = """#!{python}
import json, os, sys
with open(os.environ["LOG"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
"""


def template(name: str) -> str:
    return (TEMPLATES / SERVICES[name][0]).read_text("utf-8")


def parsed(name: str) -> Any:
    return yaml.safe_load(template(name))


class Script(NamedTuple):
    """What a service runs, each in a shell of its own, and with which variables."""

    bodies: list[str]
    variables: dict[str, str]
    shell: tuple[str, ...] = ("bash", "-eo", "pipefail", "-c")


def scripts(name: str, checkout: Path) -> Script:
    """As each service makes them of its file and of a request to merge into `TARGET`."""
    place = str(checkout)
    if name == "github":
        own = parsed(name)
        bodies = [s["run"] for s in own["jobs"]["gate"]["steps"] if "run" in s]
        return Script(bodies, own["env"])
    if name == "gitlab":
        job = parsed(name)["speed"]
        told = {k: v for k, v in job["variables"].items() if "$" not in v}
        left = git(checkout, "merge-base", "HEAD", f"origin/{TARGET}")
        told |= {"CI_PROJECT_DIR": place, "CI_MERGE_REQUEST_DIFF_BASE_SHA": left}
        return Script(["\n".join(job["script"]), "\n".join(job["after_script"])], told)
    if name == "buildkite":
        own = parsed(name)
        told = own["env"] | {"BUILDKITE_PULL_REQUEST_BASE_BRANCH": TARGET}

        def replaced(found: re.Match[str]) -> str:  # what the upload of a pipeline does
            return "$" if found[0] == "$$" else told.get(found[1] or found[2], "")

        body = re.sub(r"\$\$|\$(\w+)|\$\{(\w+)\}", replaced, own["steps"][0]["command"])
        return Script([body], told)
    if name == "jenkins":
        text = template(name)
        told = dict(re.findall(r'^ +(\w+) = "([^"]*)"$', text, re.M))
        told |= {"CHANGE_TARGET": TARGET, "WORKSPACE": place}
        return Script(re.findall(r"sh '''(.*?)'''", text, re.S), told, ("sh", "-xe", "-c"))
    return Script([template(name)], {"TO": TARGET}, ("sh", "-c", 'sh -c "$1" speed "$TO"', "_"))


def git(where: Path, *words: str) -> str:
    done = subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=where,
                          capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A request to merge into `TARGET`, which has gone on since, as it is checked out whole."""
    origin = tmp_path / "origin"
    git(tmp_path, "init", "-q", "-b", TARGET, str(origin))
    (origin / "gpubench.toml").write_text(SUITE)
    (origin / "pyproject.toml").write_text("[project]\nname = 'birds'\nversion = '0'\n")
    (origin / ".gitignore").write_text(".venv\n")
    (origin / "birds.onnx").write_bytes(tiny_onnx.read_bytes())
    for branch, name in ((TARGET, "base"), ("head", "head"), (TARGET, "later")):
        git(origin, "checkout", "-q", *(["-B"] if name != "later" else []), branch)
        (origin / name).touch()
        git(origin, "add", ".")
        git(origin, "commit", "-q", "-m", name)
    git(origin, "checkout", "-q", "--detach")
    git(tmp_path, "clone", "-q", "--branch", "head", f"file://{origin}", "work")
    fake_uv.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("UV_PROJECT_ENVIRONMENT", raising=False)
    return tmp_path / "work"


def run(script: Script, number: int, at: Path, change: Callable[[str], str] = str) -> int:
    done = subprocess.run([*script.shell, change(script.bodies[number])], cwd=at, text=True,
                          env=os.environ | script.variables, capture_output=True,
                          check=False)  # fmt: skip
    print(done.stdout, done.stderr)
    assert not list(at.parent.rglob("pwned*"))
    return done.returncode


# ------------------------------------------------------------------------------ valid


@pytest.fixture(scope="module")
def checker() -> list[str]:
    command = [sys.executable, "-m", "check_jsonschema"]
    if subprocess.run([*command, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("check-jsonschema does not run here: it needs click 8.2")
    return command


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_satisfies_the_services_own_schema(name: str, checker: list[str]) -> None:
    more = ["--data-transform", "gitlab-ci"] if name == "gitlab" else []
    command = [*checker, "--builtin-schema",
               f"vendor.{SCHEMAS[name]}", *more, str(TEMPLATES / SERVICES[name][0])]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_template_is_written_by_one_service() -> None:
    assert {p.name for p in TEMPLATES.iterdir()} == {file for file, _ in SERVICES.values()}
    for name, (_, target) in SERVICES.items():
        values = re.findall(r'\b(PROJECT|SUITE)(?:: | = |=)"([^"]*)"', template(name))
        expected = {} if name == "github-comment" else {"PROJECT": ".", "SUITE": "gpubench.toml"}
        assert dict(values) == expected
        assert ("{}" in target) == ("gitlab" not in name and "jenkins" not in name)


@pytest.mark.parametrize("name", ["github", "github-comment"])
def test_no_expression_of_github_stands_in_a_script(name: str) -> None:
    workflow = parsed(name)
    assert "write" not in workflow["permissions"].values()
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 45
        for step in job["steps"]:
            assert "${{" not in step.get("run", "")


# ------------------------------------------------------------------------------ what they run


def base_of(name: str, checkout: Path) -> str:
    """The commit that a change has to be compared with; the checkout is as the service makes it."""
    origin = checkout.parent / "origin"
    if name != "github":
        return git(origin, "merge-base", "head", TARGET)
    git(origin, "merge", "-q", "--no-ff", "-m", "merge", "head")
    git(origin, "update-ref", "refs/pull/1/merge", "HEAD")
    merged = ("fetch", "-q", "--depth=2", f"file://{origin}", "refs/pull/1/merge")
    git(checkout.parent, "init", "-q", "shallow")
    git(checkout.parent / "shallow", *merged)
    git(checkout.parent / "shallow", "checkout", "-q", "FETCH_HEAD")
    checkout.rename(checkout.parent / "whole")
    (checkout.parent / "shallow").rename(checkout)
    return git(origin, "rev-parse", TARGET)


@pytest.mark.parametrize("name", [n for n in SERVICES if n != "github-comment"])
def test_a_change_is_compared_with_what_it_comes_from(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, script = base_of(name, checkout), scripts(name, checkout)
    uv, log = checkout.parent / "bin/uv", checkout.parent / "log"
    uv.write_text(RECORDER.format(python=sys.executable))
    monkeypatch.setenv("LOG", str(log))
    for number in range(len(script.bodies)):
        assert run(script, number, checkout) == 0
    ab, *exports = [json.loads(line) for line in log.read_text().splitlines()]
    for words in (ab, *exports):
        assert words[:2] == ["run", "gpubench"]
        command = cli.commands[words[2]]
        with command.make_context(words[2], list(words[3:])) as context:
            given = context.params
        if words[2] == "ab":
            asked = git(checkout, "rev-parse", given["baseline_ref"])
            assert (given["suite"], asked, given["budget"]) == ("gpubench.toml", base, "10m")
            assert given["fail_on"] == "regressed,missing"
            out = given["output"]
        else:
            assert given["paths"] == (str(out),)
            assert given["output"].parent == out
    forms = {"gitlab": ["junit", "openmetrics"], "jenkins": ["junit"]}
    assert [e[e.index("--format") + 1] for e in exports] == forms.get(name, [])


@pytest.mark.parametrize("name", ["buildkite", "jenkins", "shell"])
def test_a_shallow_clone_is_told_and_no_slowdown(
    name: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = checkout.parent / "origin"
    shallow = checkout.parent / "shallow"
    git(
        checkout.parent,
        "clone",
        "-q",
        "--depth=1",
        "--branch",
        "head",
        f"file://{origin}",
        "shallow",
    )
    assert run(scripts(name, shallow), 0, shallow) == 2  # 1 would be a confirmed slowdown
    assert "shallow" in capsys.readouterr().out


def test_merged_results_of_gitlab_are_compared_with_the_target() -> None:
    """HEAD is then a merge, and what is only the target's is nobody's change."""
    [line] = [line for line in parsed("gitlab")["speed"]["script"] if line.startswith("base=")]
    for given, base in (({}, "left"), ({"CI_MERGE_REQUEST_TARGET_BRANCH_SHA": "target"}, "target")):
        told = {"CI_MERGE_REQUEST_DIFF_BASE_SHA": "left"} | given
        done = subprocess.run(["sh", "-c", f'{line}; echo "$base"'], env=os.environ | told,
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert done.stdout.strip() == base


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_merge_request_of_gitlab_gets_its_reports(checkout: Path) -> None:
    script = scripts("gitlab", checkout)

    def shorter(body: str) -> str:
        return body.replace("--budget 10m", "--budget 90s")

    assert run(script, 0, checkout, shorter) in (0, 1)
    assert run(script, 1, checkout) == 0
    reports = parsed("gitlab")["speed"]["artifacts"]["reports"]
    suite = ET.fromstring((checkout / reports["junit"]).read_text())[0]  # noqa: S314
    assert suite.get("tests") == "1"
    lines = (checkout / reports["metrics"]).read_text().splitlines()
    sample = re.compile(r'gpubench_batch_seconds\{cell="birds.onnx cpu onnxruntime .*"\} 0\.0\d+')
    assert any(map(sample.fullmatch, lines))
    verdict = (checkout / "gpubench-out" / VERDICT).read_text()
    assert len(json.loads(verdict)["comparisons"]) == 1
    assert verdict.endswith("}\n")
    assert git(checkout, "status", "--porcelain") == "?? gpubench-out/"


# ------------------------------------------------------------------------------ the comment

GH = """#!{python}
import json, os, pathlib, sys
home = pathlib.Path(os.environ["GH"])
words = sys.argv[2:]
assert sys.argv[1] == "api" and words[0].startswith("repos/me/birds/")
path = words[0].removeprefix("repos/me/birds/")
asked = [w.partition("=")[2] for w in words if "=" in w]
body = json.load(sys.stdin)["body"] if "--input" in words else None
if path == "pulls":
    assert asked == ["open", os.environ["HEAD"]]
    print((home / "pulls").read_text())
elif path.endswith("/artifacts"):
    size = (home / "zip").stat().st_size
    print(json.dumps({{"artifacts": [{{"id": 7, "size_in_bytes": size}}]}}))
elif path == "actions/artifacts/7/zip":
    sys.stdout.buffer.write((home / "zip").read_bytes())
elif body is None:
    print((home / "before").read_text())
else:
    (home / "said").write_text(json.dumps([words[1:], path, body]))
"""
HOSTILE = "@all <img src=x> [a](http://x.example) www.x.example | `#1` \n\n# big"


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What GitHub answers; the pull request is 4, and has no comment of ours yet."""
    (tmp_path / "gh").write_text(GH.format(python=sys.executable))
    (tmp_path / "gh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    values = {"GH": tmp_path, "REPOSITORY": "me/birds", "RUN": 9, "PAGE": "https://page/9",
              "COMMIT": "abc", "HEAD": f"you:{TARGET}"}  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    others = [{"number": n, "head": {"sha": sha}} for n, sha in ((3, "old"), (4, "abc"))]
    (tmp_path / "pulls").write_text(json.dumps(others))
    (tmp_path / "before").write_text("")
    return tmp_path


def row(verdict: str, **more: Any) -> dict[str, Any]:
    return {"verdict": verdict, "label": "onnxruntime fp32 b1 x1 latency", "metric": "p50 [ns]",
            "ratio": 1.051, "low": 1.042, "high": 1.06} | more  # fmt: skip


def comment(github: Path, *rows: Any) -> tuple[int, Any]:
    """(exit code, what GitHub was told) of the second workflow."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(VERDICT, json.dumps({"comparisons": rows}))
    (github / "zip").write_bytes(made.getvalue())
    [step] = parsed("github-comment")["jobs"]["comment"]["steps"]
    assert set(step["env"]) == {"GH_TOKEN", "REPOSITORY", "RUN", "PAGE", "COMMIT", "HEAD"}
    done = subprocess.run([sys.executable, "-c", step["run"]], capture_output=True, check=False)
    said = github / "said"
    return done.returncode, json.loads(said.read_text()) if said.exists() else done.stderr.decode()


def test_the_comment_says_the_verdict_where_github_says(github: Path) -> None:
    code, (words, path, body) = comment(github, row("EQUIVALENT"), row("REGRESSED"))
    assert (code, path) == (0, "issues/4/comments")
    head, _, *table = body.splitlines()[1:]
    assert head == "**Speed: 1 REGRESSED, 1 EQUIVALENT** of `abc`; [the job](https://page/9)"
    assert table[2] == (
        "| REGRESSED | `onnxruntime fp32 b1 x1 latency` | `p50 ?ns?` | 1.051 [1.042, 1.06] |"
    )
    assert len(table) == 3
    assert "PATCH" not in words


def test_there_is_one_comment(github: Path) -> None:
    (github / "before").write_text("11\n12\n")
    words, path, _ = comment(github, row("IMPROVED"))[1]
    assert path == "issues/comments/11"
    assert words[:2] == ["-X", "PATCH"]


def test_nothing_of_what_a_pull_request_writes_acts_on_a_reader(github: Path) -> None:
    rows = [row("REGRESSED", label=HOSTILE, metric=HOSTILE, ratio=HOSTILE, low=[1], high=None),
            row(HOSTILE), row("MISSING", ratio=None, difference=float("nan"))]  # fmt: skip
    body = comment(github, *rows)[1][2]
    shown = re.sub(
        r"`[^`]*`", "", body.replace("<!-- gpubench speed -->", "").replace("(https://page/9)", "")
    )
    assert not re.search(r"[@<>#]|http|www|x\.example|big", shown)
    assert "**Speed: 1 REGRESSED, 1 MISSING**" in body
    assert "| ? [?, ?] |" in body


@pytest.mark.parametrize("broken", [["no row"], [{}], [None]])
def test_a_file_of_another_kind_is_not_shown(broken: list[Any], github: Path) -> None:
    code, said = comment(github, *broken)
    assert code == 1
    assert "Error" in said
    assert not (github / "said").exists()


def test_a_commit_that_no_pull_request_ends_in_is_not_commented(
    github: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMMIT", "gone")
    assert "0 open pull requests end in" in comment(github, row("REGRESSED"))[1]


def test_a_large_file_is_not_read(github: Path) -> None:
    rows = [row("REGRESSED", label=os.urandom(600).hex()) for _ in range(2000)]
    body = comment(github, *rows)[1][2]
    assert "**Speed: no verdict**" in body

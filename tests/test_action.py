"""The GitHub action: no input reaches a shell as code, and its commands exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import onnx.parser
import pytest
import yaml

from gpubench.cli.compare import VERDICT
from gpubench.cli.main import cli
from tests import fake_uv

PATH = Path(__file__).parent.parent / ".github/actions/gpubench/action.yml"
ACTION: dict[str, Any] = yaml.safe_load(PATH.read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
HOSTILE = "$(touch pwned); `touch pwned` && touch pwned | \"'\\ * ${IFS} %0A\n::error::x\n--json -q"
EVENT_BASE = "github.event.pull_request.base.sha || github.event.before"
STUB = """#!{python}
import json, os, sys
with open(os.environ["LOG"], "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
with open(os.environ["LOG"] + ".told", "a") as log:
    told = [os.environ.get(name, "") for name in ("GITHUB_ACTIONS", "UV_PROJECT_ENVIRONMENT")]
    log.write(" ".join([sys.argv[1], *filter(None, told)]) + "\\n")
sys.exit(int(os.environ.get("CODE", "0")))
"""


def step(name: str) -> dict[str, Any]:
    return next(s for s in STEPS if s.get("name") == name or name in s.get("uses", ""))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with one commit and its origin, stubs of gpubench and uv, and GitHub's variables."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("gpubench", "uv"):
        (binaries / name).write_text(STUB.format(python=sys.executable), encoding="utf-8")
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    for name in ("LOG", "GITHUB_OUTPUT", "GITHUB_PATH"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("GITHUB_REF", "refs/heads/main")
    monkeypatch.delenv("UV_PROJECT_ENVIRONMENT", raising=False)
    monkeypatch.setenv("RUNNER_TEMP", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git(tmp_path, "init", "-q", "-b", "main", "origin")
    for number in range(2):
        git(tmp_path / "origin", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q",
            "--allow-empty", "-m", str(number))  # fmt: skip
    git(tmp_path / "origin", "branch", "old/one", "HEAD~1")
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{tmp_path}/origin", "work")
    return tmp_path


def git(where: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run(job: Path, name: str, code: int = 0, **inputs: str) -> tuple[int, str, list[list[str]]]:
    """(exit code, stdout, commands) of a step's script with these inputs, the others default."""
    given = {f"inputs.{key}": str(value["default"]) for key, value in ACTION["inputs"].items()}
    given[EVENT_BASE] = ""  # outside a pull request
    changes = {f"inputs.{k.replace('_', '-')}": v for k, v in inputs.items() if k != "event_base"}
    assert set(changes) <= set(given)
    given |= changes | {EVENT_BASE: inputs.get("event_base", "")}
    values = {
        key: re.sub(r"\$\{\{ (.+?) \}\}", lambda m: given[m[1]], value)
        for key, value in step(name).get("env", {}).items()
    }
    values |= {"CODE": str(code)} | ({"PATH": own_path(job)} if name != "Install" else {})
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step(name)["run"]],
        cwd=job / "work" / given["inputs.working-directory"], env={**os.environ, **values},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    log = job / "LOG"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    assert not list(job.rglob("pwned"))
    return done.returncode, done.stdout, [json.loads(line) for line in lines]


def own_path(job: Path) -> str:
    """PATH with what steps before have added to it."""
    added = job / "GITHUB_PATH"
    lines = added.read_text(encoding="utf-8").splitlines() if added.exists() else []
    return os.pathsep.join([*reversed(lines), os.environ["PATH"]])


# ------------------------------------------------------------------------------ the file


def test_it_is_a_composite_action_whose_inputs_are_described() -> None:
    assert ACTION["runs"]["using"] == "composite"
    for key, value in ACTION["inputs"].items():
        assert value["description"], key
        assert isinstance(value["default"], str), key
    used = set(re.findall(r"inputs\.([\w-]+)", PATH.read_text(encoding="utf-8")))
    assert used == set(ACTION["inputs"])


def test_documents_use_the_action_as_a_path_in_ones_own_checkout() -> None:
    root = PATH.parents[3]
    workflows = re.findall(
        r"^```yaml\n(name: .*?)^```", (root / "docs/ci.md").read_text("utf-8"), re.M | re.S
    )
    jobs = [job for text in workflows for job in yaml.safe_load(text)["jobs"].values()]
    assert jobs
    for job in jobs:
        fetch, measure = job["steps"]
        assert fetch["with"]["submodules"] is True
        assert re.fullmatch(r"\./tools/gpubench/\.github/actions/gpubench", measure["uses"])
        assert (root / measure["uses"].removeprefix("./tools/gpubench/") / "action.yml").is_file()
        assert measure["with"].keys() <= ACTION["inputs"].keys()


def test_no_expression_stands_in_a_script() -> None:
    scripts = [s for s in STEPS if "run" in s]
    assert [s["name"] for s in scripts] == ["Install", "Measure"]
    for s in scripts:
        assert "${{" not in s["run"]
        assert s["shell"] == "bash"
        assert s["run"].startswith("set -euo pipefail\n")
        assert "eval" not in s["run"]


def test_only_official_actions_are_used_by_their_major_tag() -> None:
    used = [s["uses"] for s in STEPS if "uses" in s]
    assert [re.sub(r"\d+$", "N", u) for u in used] == [
        "astral-sh/setup-uv@vN", "actions/cache@vN",
        "actions/upload-artifact@vN", "actions/upload-artifact@vN",
    ]  # fmt: skip


def test_records_are_uploaded_even_when_the_job_fails() -> None:
    upload = step("actions/upload-artifact")
    assert upload["if"].startswith("always() && ")
    assert upload["with"]["path"] == "${{ steps.measure.outputs.directory }}"
    verdict = STEPS[-1]
    assert STEPS[-2] is upload
    assert verdict["if"].startswith(upload["if"])
    assert verdict["with"]["path"] == f"{upload['with']['path']}/{VERDICT}"
    assert verdict["with"]["name"] == f"{upload['with']['name']}-verdict"


def test_the_cache_leaves_environments_of_base_commits_out() -> None:
    cache = step("actions/cache")["with"]
    inside, refs = cache["path"].splitlines()
    assert (inside, refs) == ("${{ inputs.cache-path }}/*", "!${{ inputs.cache-path }}/refs")
    assert cache["key"].startswith(cache["restore-keys"])
    assert cache["restore-keys"].endswith("-${{ github.job }}-${{ inputs.artifact }}-")


# ------------------------------------------------------------------------------ measuring


@pytest.mark.parametrize("mode", ["ab", "compare", "run"])
def test_every_option_exists_in_the_command_line(mode: str, job: Path) -> None:
    (job / "work/stored").mkdir()
    code, out, commands = run(job, "Measure", mode=mode, base_ref="main", baseline="stored",
                              delta="3%", budget="5m", fail_on="regressed,missing",
                              args="--backend null\n --require  null")  # fmt: skip
    assert code == 0, out
    assert [c[1] for c in commands] == (["run", "compare"] if mode == "compare" else [mode])
    for _, name, *words in commands:
        command = cli.commands[name]
        with command.make_context(name, list(words)) as context:
            given = context.params
        if name != "compare":
            assert given["suite"] == "ci"
            assert given["backend"] == given["require"] == ["null"]
            assert str(given["cache_dir"]) == "~/.cache/gpubench"
            assert str(given["output"]).startswith(str(job / "temp"))
        # of compare's two commands only the verdict belongs into the summary
        assert given["github"] is (mode != "compare" or name == "compare")
        if name != "run":
            assert given["delta"] == "3%"
            assert "--fail-on=regressed,missing" in words
    if mode == "ab":
        assert given["budget"] == "5m"
        assert given["baseline_ref"] == git(job / "origin", "rev-parse", "main")


@pytest.mark.parametrize(("code", "commands"), [(1, ["run", "compare"]), (2, ["run"])])
def test_a_run_with_failed_cells_is_still_compared(
    code: int, commands: list[str], job: Path
) -> None:
    (job / "work/stored").mkdir()
    exited, _, ran = run(job, "Measure", code, mode="compare", baseline="stored")
    assert (exited, [words[1] for words in ran]) == (code, commands)


def test_a_comparison_alone_tells_github(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")  # implies --github
    (job / "work/stored").mkdir()
    run(job, "Measure", mode="compare", baseline="stored")
    told = (job / "LOG.told").read_text(encoding="utf-8").splitlines()
    assert told == ["run", "compare true"]


def test_empty_inputs_leave_gpubenchs_defaults(job: Path) -> None:
    code, _, ((_, *words),) = run(job, "Measure", base_ref="main")
    assert code == 0
    names = [word.partition("=")[0] for word in words]
    assert names == ["ab", "--github", "--fail-on", "--baseline-ref", "--output", "--cache-dir",
                     "--", "ci"]  # fmt: skip
    assert "--fail-on=regressed,missing" in words  # what is undecided is a warning
    directory = (job / "GITHUB_OUTPUT").read_text(encoding="utf-8").strip().partition("=")[2]
    assert f"--output={directory}" in words


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_the_exit_code_is_gpubenchs(code: int, job: Path) -> None:
    assert run(job, "Measure", code, base_ref="main")[0] == code
    assert (job / "GITHUB_OUTPUT").exists()  # so what there is will be uploaded


def test_two_uses_in_a_job_do_not_share_a_directory(job: Path) -> None:
    run(job, "Measure", mode="run")
    _, _, (first, second) = run(job, "Measure", mode="run")
    assert first[2:] != second[2:]


@pytest.mark.parametrize(
    ("ref", "expected"),
    [("main", "main"), ("old/one", "old/one"), ("HEAD^{tree}~", None), ("gone", None)],
)
def test_the_base_is_fetched_into_a_shallow_checkout(
    ref: str, expected: str | None, job: Path
) -> None:
    code, out, commands = run(job, "Measure", base_ref=ref)
    if expected is None:
        assert code == 2
        assert out.startswith("::error title=gpubench action::base-ref names no commit")
        assert commands == []
    else:
        commit = git(job / "origin", "rev-parse", expected)
        assert f"--baseline-ref={commit}" in commands[0]
        assert git(job / "work", "cat-file", "-t", commit) == "commit"


def pull_request(job: Path) -> dict[str, str]:
    """Checked out as GitHub does: the merge alone. What the event says is older than its base."""
    origin, who = job / "origin", ("-c", "user.name=a", "-c", "user.email=a@b")
    git(origin, "checkout", "-q", "-b", "feature", "old/one")
    git(origin, *who, "commit", "-q", "--allow-empty", "-m", "feature")
    git(origin, "checkout", "-q", "--detach", "main")
    message = "merge\n\nparent " + "0" * 40
    git(origin, *who, "merge", "-q", "--no-ff", "-m", message, "feature")
    git(origin, "update-ref", "refs/pull/1/merge", "HEAD")
    git(origin, "checkout", "-q", "main")
    git(job / "work", "fetch", "-q", "--depth=1", "origin", "refs/pull/1/merge")
    git(job / "work", "checkout", "-q", "--detach", "FETCH_HEAD")
    return {name: git(origin, "rev-parse", name) for name in ("main", "old/one", "feature")}


def test_the_base_of_a_pull_request_is_what_it_was_merged_into(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what the event calls its base: the merge may hold changes made since."""
    commits = pull_request(job)
    monkeypatch.setenv("GITHUB_REF", "refs/pull/1/merge")
    monkeypatch.setenv("GITHUB_SHA", git(job / "work", "rev-parse", "HEAD"))
    _, _, ((_, *words),) = run(job, "Measure", event_base=commits["old/one"])
    assert f"--baseline-ref={commits['main']}" in words
    named = run(job, "Measure", event_base=commits["old/one"], base_ref="feature")[2][1]
    assert f"--baseline-ref={commits['feature']}" in named


def test_the_base_of_another_checkout_is_the_events(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = pull_request(job)
    monkeypatch.setenv("GITHUB_REF", "refs/pull/1/merge")
    monkeypatch.setenv("GITHUB_SHA", git(job / "work", "rev-parse", "HEAD"))
    git(job / "work", "fetch", "-q", "--depth=1", "origin", "feature")
    git(job / "work", "checkout", "-q", "FETCH_HEAD")
    _, _, ((_, *words),) = run(job, "Measure", event_base=commits["old/one"])
    assert f"--baseline-ref={commits['old/one']}" in words


def test_the_base_of_a_push_is_what_the_branch_was(job: Path) -> None:
    before = git(job / "origin", "rev-parse", "old/one")
    assert f"--baseline-ref={before}" in run(job, "Measure", event_base=before)[2][0]
    code, out, commands = run(job, "Measure", event_base="0" * 40)
    assert (code, len(commands)) == (2, 1)
    assert out == "::error title=gpubench action::this push made the branch: name base-ref, for " \
                  "example main\n"  # fmt: skip


def test_a_commit_may_be_named_and_a_whole_history_stays_whole(job: Path) -> None:
    old = git(job / "origin", "rev-parse", "old/one")
    git(job / "work", "fetch", "-q", "--unshallow")
    assert f"--baseline-ref={old}" in run(job, "Measure", base_ref=old)[2][0]
    assert f"--baseline-ref={old}" in run(job, "Measure", base_ref="HEAD~1")[2][1]
    assert git(job / "work", "rev-parse", "--is-shallow-repository") == "false"
    assert git(job / "work", "rev-list", "--count", "HEAD") == "2"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"mode": ""}, "mode must be"),
        ({"mode": HOSTILE}, "mode must be"),
        ({"mode": "compare"}, "needs baseline, a stored run's directory, not ''"),
        ({"mode": "compare", "baseline": "gone\n::x"}, r"not \$'gone\\n::x'"),
        ({"base_ref": ""}, "needs base-ref"),
        ({"base_ref": "--upload-pack=touch pwned"}, "must be a commit"),
        ({"base_ref": "+main"}, "must be a commit"),
        ({"base_ref": "main:refs/heads/main"}, "must be a commit"),
        ({"base_ref": HOSTILE.replace(":", "")}, "names no commit"),
    ],
)
def test_bad_inputs_are_refused_before_anything_is_measured(
    inputs: dict[str, str], message: str, job: Path
) -> None:
    code, out, commands = run(job, "Measure", **inputs)
    assert (code, commands) == (2, [])
    assert re.fullmatch(rf"::error title=gpubench action::[^\n]*{message}[^\n]*\n", out)


@pytest.mark.parametrize("mode", ["ab", "compare", "run"])
def test_hostile_inputs_stay_words(mode: str, job: Path) -> None:
    (job / "work/file.txt").touch()  # what a glob would find
    (job / f"work/-{HOSTILE}").mkdir()
    code, _, commands = run(job, "Measure", mode=mode, base_ref="main", suite=HOSTILE,
                            baseline=f"-{HOSTILE}", delta=HOSTILE, budget=HOSTILE, fail_on=HOSTILE,
                            cache_path=HOSTILE, args=HOSTILE)  # fmt: skip
    assert code == 0
    for _, name, *words in commands:
        at = words.index("--")
        if name == "compare":
            assert words[at + 1] == f"-{HOSTILE}"
        else:
            assert words[at + 1 :] == [HOSTILE]
            assert f"--cache-dir={HOSTILE}" in words
            assert "*" in words[:at]  # split at blanks, never expanded
        if name != "run":
            assert f"--delta={HOSTILE}" in words
            assert f"--fail-on={HOSTILE}" in words


def test_a_suite_that_looks_like_an_option_is_a_suite(job: Path) -> None:
    _, _, ((_, name, *words),) = run(job, "Measure", mode="run", suite="--help")
    command = cli.commands[name]
    assert isinstance(command, click.Command)
    with command.make_context(name, [w for w in words if w != "--github"]) as context:
        assert context.params["suite"] == "--help"


# ------------------------------------------------------------------------------ installing


def environment(job: Path, *, has_gpubench: bool) -> None:
    """What the stub of uv does not make."""
    python = job / "work/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexit {0 if has_gpubench else 1}\n", encoding="utf-8")
    python.chmod(0o755)
    gpubench = python.with_name("gpubench")
    gpubench.write_text('#!/bin/sh\necho "$@" >> "$LOG.plan"\necho onnxruntime,torch\n')
    gpubench.chmod(0o755)


@pytest.mark.parametrize("has_gpubench", [True, False])
@pytest.mark.parametrize("project", [True, False])
def test_the_projects_environment_is_made_and_gpubench_added_where_it_lacks(
    project: bool, has_gpubench: bool, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTION_PATH", str(PATH.parent))
    environment(job, has_gpubench=has_gpubench)
    if project:
        (job / "work/pyproject.toml").touch()
    words = "--delta 3% --backend onnxruntime,torch-eager --device=cpu --model"
    code, out, commands = run(job, "Install", suite="-x.toml", args=words)
    assert code == 0, out
    assert commands[0] == (["uv", "sync", "--no-dev"] if project else ["uv", "venv", "--clear"])
    if has_gpubench:
        assert len(commands) == 1
    else:
        *before, core, more = commands[1:]
        assert before == ([["uv", "sync"]] if project else [])  # for developers only?
        install = ["uv", "pip", "install", "--python", ".venv/bin/python", "--editable"]
        assert core == [*install, str(PATH.parents[3])]
        assert more == [*install, f"{PATH.parents[3]}[onnxruntime,torch]"]
        asked = (job / "LOG.plan").read_text(encoding="utf-8")
        backends = "--backend=onnxruntime,torch-eager"
        assert asked == f"plan --extras {backends} --device=cpu -- -x.toml\n"
    told = (job / "LOG.told").read_text(encoding="utf-8").splitlines()[0]
    assert told.endswith(f" {job}/work/.venv")  # not beside the root of a workspace
    added = Path((job / "GITHUB_PATH").read_text(encoding="utf-8").strip())
    assert [p.name for p in added.iterdir()] == ["gpubench"]
    assert (added / "gpubench").readlink() == job / "work/.venv/bin/gpubench"


# ------------------------------------------------------------------------------ all of it

CODE = """
from torch import nn
def build():
    more = [nn.Conv2d(8, 8, 3, padding=1) for _ in range({layers})]
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), *more, nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, 10))
"""
OWN_SUITE = """
[workload]
model = "{model}"
[workload.preprocess]
size = 64
[axes]
backend = "{backend}"
device = "cpu"
cores = 1
scenario = "latency"
[policy]
duration_s = 0.1
warmup_s = 0.02
parity_images = 4
"""


def file(layers: int) -> bytes:
    """The same as an .onnx file."""
    side = ", ".join(["n", "3", "64", "64"])
    body = "\n".join(f"x{n + 1} = Conv<pads = [1, 1, 1, 1]>(x{n}, w)" for n in range(layers))
    weights = ", ".join(f"{(n % 7 - 3) / 20}" for n in range(8 * 8 * 9))
    first = ", ".join(f"{(n % 5 - 2) / 10}" for n in range(8 * 3 * 9))
    last = ", ".join(f"{n % 11 - 5}" for n in range(8 * 10))
    text = f"""<ir_version: 9, opset_import: ["": 17]>
    birds (float[{side}] images) => (float[n, 10] logits)
    <float[8, 8, 3, 3] w = {{{weights}}}, float[8, 3, 3, 3] f = {{{first}}},
     float[8, 10] l = {{{last}}}> {{
        x0 = Conv<strides = [2, 2]>(images, f)
        {body}
        pooled = GlobalAveragePool(x{layers})
        flat = Flatten(pooled)
        logits = MatMul(flat, l)
    }}"""
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("event", ["pull_request", "push"])
def test_a_slower_network_of_somebody_elses_repository_fails_its_job(
    event: str, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of theirs: own code, from a fork, checked out as GitHub does; and a file, pushed."""
    origin, who = job / "origin", ("-c", "user.name=a", "-c", "user.email=a@b")
    project = origin / "apps/birds"
    project.mkdir(parents=True)
    network = "model.py:build" if event == "pull_request" else "birds.onnx"
    backend = "torch-eager" if event == "pull_request" else "onnxruntime"
    (project / "gate.toml").write_text(OWN_SUITE.format(model=network, backend=backend))
    (project / "pyproject.toml").write_text("[project]\nname = 'birds'\nversion = '0'\n")

    def commit(layers: int) -> str:
        (project / "model.py").write_text(CODE.format(layers=layers))
        (project / "birds.onnx").write_bytes(file(layers))
        git(origin, "add", ".")
        git(origin, *who, "commit", "-qm", f"{layers} layers")
        return git(origin, "rev-parse", "HEAD")

    before = commit(1)
    git(origin, "checkout", "-q", "-b", "x$(touch${IFS}pwned);`touch${IFS}pwned`")
    after = commit(30)
    if event == "pull_request":
        git(origin, "checkout", "-q", "--detach", "main")
        git(origin, *who, "merge", "-q", "--no-ff", "-m", "merge", after)
        git(origin, "update-ref", "refs/pull/1/merge", "HEAD")
        monkeypatch.setenv("GITHUB_REF", "refs/pull/1/merge")
    checked_out = git(origin, "rev-parse", "HEAD")
    git(job / "work", "fetch", "-q", "--depth=1", "origin", checked_out)
    git(job / "work", "checkout", "-q", "--detach", checked_out)
    monkeypatch.setenv("GITHUB_SHA", checked_out)
    monkeypatch.setenv("GITHUB_ACTION_PATH", str(PATH.parent))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(job / "summary"))
    fake_uv.install(job / "uv")
    monkeypatch.setenv("PATH", f"{job / 'uv'}{os.pathsep}{os.environ['PATH']}")
    inputs = {"working_directory": "apps/birds", "suite": "gate.toml", "budget": "9m",
              "cache_path": str(job / "cache"), "event_base": before}  # fmt: skip
    assert run(job, "Install", **inputs)[0] == 0
    code, out, _ = run(job, "Measure", **inputs)
    assert code == 1, out
    assert re.search(
        r"^::error title=gpubench%3A REGRESSED|^::error title=gpubench: REG", out, re.M
    )
    assert "REGRESSED" in (job / "summary").read_text()
    where = (job / "GITHUB_OUTPUT").read_text(encoding="utf-8").strip().partition("=")[2]
    [found] = json.loads(Path(where, VERDICT).read_text())["comparisons"]
    assert found["verdict"] == "REGRESSED"
    assert found["ratio"] > 1.5
    assert git(job / "work", "status", "--porcelain", "--untracked-files=no") == ""

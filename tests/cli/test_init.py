"""`gpubench init`: a suite that measures, nothing written over, and none of it where it fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from gpubench.cli import init
from gpubench.cli.main import cli
from gpubench.errors import GpubenchError, InputError
from gpubench.run import setup

CODE = """
import os
from torch import nn
open({log!r}, "a").write(f"{{os.getpid()}}\\n")
def build(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(width, 7))
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, ["init", *map(str, words)], catch_exceptions=True)


def refused(*words: object) -> str:
    """What it says; nothing may have been written."""
    before = everything()
    error = run(*words).exception
    assert isinstance(error, GpubenchError), error
    assert everything() == before
    return str(error)


def everything() -> set[str]:
    return {str(p) for p in Path().rglob("*") if ".git/" not in str(p)}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository, the working directory."""
    subprocess.run(["git", "init", "-q", str(tmp_path / "p")], check=True)
    monkeypatch.chdir(tmp_path / "p")
    return tmp_path / "p"


@pytest.fixture
def onnx(project: Path, tiny_onnx: Path) -> Path:
    return Path(shutil.copy(tiny_onnx, project / "birds.onnx"))


def test_a_suite_for_a_file_is_what_inspect_knows(onnx: Path, cache_dir: Path) -> None:
    done = run("--ci", "github", "--cache-dir", cache_dir)  # the only model there
    assert done.exit_code == 0, done
    suite = setup.load("gpubench.toml", {})
    assert suite.workload.model == str(onnx)
    assert suite.axes.backend == ("onnxruntime", "openvino")  # no backend of PyTorch takes it
    assert (suite.axes.device, suite.axes.cores, suite.axes.batch_size) == ("cpu", 1, (1,))
    assert suite.gate == {"agreement": 1}  # what answers otherwise is told, and fails where sure
    assert suite.policy == setup.load("ci", {}).policy
    text = Path("gpubench.toml").read_text()
    assert "3 x 16 x 16, 10 logits" in text
    assert 'model = "birds.onnx"' in text  # wherever the repository lies
    said = done.stdout.splitlines()  # with click before 8.2 what goes to stderr, too
    workflow, note, cost, *steps = said[said.index("gpubench.toml") + 1 :]
    assert workflow == ".github/workflows/speed.yml"
    assert note.startswith("note: pictures: 16x16, ")
    assert "assumed" in note
    assert re.match(r"as an A/B: about \d.*; --budget 5m finds a slowdown of [\d.]+ %", cost)
    assert [step[6:].split()[:2] for step in steps] == [
        ["uv", "init"], ["uv", "add"], ["git", "add"], ["git", "commit"], ["uv", "run"],
    ] or steps[-1][6:].startswith("gpubench ab")  # fmt: skip
    assert "gpubench ab gpubench.toml --baseline-ref HEAD --budget 5m " in steps[-1]
    add = "git add gpubench.toml .github/workflows/speed.yml birds.onnx pyproject.toml uv.lock"
    assert steps[2][6:] == add  # without the model the base would lack it
    subprocess.run(["git", "add", "birds.onnx"], check=True)
    again = run("-o", "two.toml", "--cache-dir", cache_dir).stdout
    assert "git add two.toml pyproject.toml uv.lock\n" in again


def test_own_code_runs_in_workers_only(project: Path, tmp_path: Path, cache_dir: Path) -> None:
    log = tmp_path / "log"
    (project / "model.py").write_text(CODE.format(log=str(log)))
    words = ("--arguments", "width=6", "--preprocess", "size=32,32", "--preprocess", "mean=0.5")
    place = ("-o", "bench/gate.toml", "--cache-dir", cache_dir)
    assert run("model.py:build", *words, *place).exit_code == 0
    said = tomllib.loads(Path("bench/gate.toml").read_text())
    assert said["workload"]["model"] == "../model.py:build"
    assert said["workload"]["arguments"] == {"width": 6}
    assert said["workload"]["preprocess"] == {"size": [32, 32], "mean": 0.5}
    assert said["axes"]["backend"] == ["onnxruntime", "openvino", "torch-eager"]
    assert "# torch-compile takes it too" in Path("bench/gate.toml").read_text()
    assert str(os.getpid()) not in log.read_text().split()


def test_without_torch_the_words_do(onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "find_spec", lambda _: None)
    monkeypatch.setattr("gpubench.run.inspect.inspect", None)
    done = run("birds.onnx")
    assert done.exit_code == 0, done
    assert setup.load("gpubench.toml", {}).axes.backend == ("onnxruntime", "openvino")
    assert "the network was not looked at" in done.stdout
    assert run("resnet18", "--batch-size", "4", "-o", "r.toml").exit_code == 0
    assert setup.load("r.toml", {}).axes.batch_size == (4,)
    assert "torch-eager" in setup.load("r.toml", {}).axes.backend


def test_nothing_is_written_over(onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "find_spec", lambda _: None)
    Path(".gitlab-ci.yml").symlink_to("nowhere")
    said = refused("birds.onnx", "--ci", "github,gitlab")
    assert said.startswith(".gitlab-ci.yml is there already, and nothing was written; ")
    assert "-o -" in said
    assert run("birds.onnx", "--ci", "github").exit_code == 0
    assert "gpubench init gpubench.toml --ci github" in refused("birds.onnx")
    assert run("gpubench.toml", "--ci", "buildkite").exit_code == 0  # for what is there
    assert Path(".buildkite/pipeline.yml").is_file()
    assert "speed.yml is there already" in refused("gpubench.toml", "--ci", "github")


def test_it_is_all_or_nothing(onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "find_spec", lambda _: None)
    Path(".buildkite").write_text("a file where a folder has to be")
    assert "cannot be written" in refused("birds.onnx", "--ci", "github,buildkite")

    def wrong(*_: object) -> str:
        assert Path("gpubench.toml").is_file()
        raise InputError("the suite is wrong")

    monkeypatch.setattr(init, "_cost", wrong)
    assert refused("birds.onnx", "--ci", "github") == "the suite is wrong"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "which model? here are a.onnx, birds.onnx; name a file"),
        (("gone.onnx",), "there is no such file"),
        (("birds.onnx", "--ci", "travis"), "--ci 'travis': expected one of github, "),
        (("birds.onnx", "--ci", "shell", "-o", "my suite.toml"), "'my suite.toml' is written into"),
        (("birds.onnx", "--backend", "torch-egaer"), 'did you mean "torch-eager"?'),
        (("gone.toml", "--ci", "github"), "gone.toml"),
        (("a.toml",), "is a suite already"),
    ],
)
def test_bad_input(
    words: tuple[str, ...], message: str, onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "find_spec", lambda _: None)
    Path("a.onnx").touch()
    assert message in refused(*words)


def test_it_can_be_printed(onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "find_spec", lambda _: None)
    before = everything()
    printed = run("birds.onnx", "--ci", "gitlab", "-o", "-").stdout
    assert everything() == before
    suite, job = re.split(r"^#---- .*\n", printed, flags=re.M)[1:]
    assert tomllib.loads(suite)["workload"] == {"model": "birds.onnx"}
    assert job == (init.TEMPLATES / "gitlab.yml").read_text()


def test_a_folder_of_a_larger_repository_has_files_of_its_own(
    onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "find_spec", lambda _: None)
    (onnx.parent / "apps/birds").mkdir(parents=True)
    monkeypatch.chdir(onnx.parent / "apps/birds")
    assert run("../../birds.onnx", "--ci", "github,github-comment,jenkins").exit_code == 0
    made = (onnx.parent / ".github/workflows/speed-apps-birds.yml").read_text()
    template = (init.TEMPLATES / "github.yml").read_text()
    own = template.replace('PROJECT: "."', 'PROJECT: "apps/birds"')
    assert made == own.replace("speed", "speed-apps-birds")
    flow = yaml.safe_load(made)
    assert flow["concurrency"]["group"].startswith("speed-apps-birds-${{")  # cancels no other's
    comment = (onnx.parent / ".github/workflows/speed-comment-apps-birds.yml").read_text()
    told = yaml.safe_load(comment)
    assert told[True]["workflow_run"]["workflows"] == [flow["name"]]
    assert (
        told["name"] != yaml.safe_load((init.TEMPLATES / "github-comment.yml").read_text())["name"]
    )
    for words in ('MARK, MOST_BYTES, MOST_ROWS = "<!-- gpubench speed-apps-birds -->"',
                  '"**Speed-apps-birds: "'):  # fmt: skip
        assert words in comment
    assert 'PROJECT = "apps/birds"\n' in (onnx.parent / "Jenkinsfile").read_text()


def test_names_of_its_own_are_not_put_into_the_paths_of_a_project(
    onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "find_spec", lambda _: None)
    (onnx.parent / "services/speed").mkdir(parents=True)
    monkeypatch.chdir(onnx.parent / "services/speed")
    words = ("../../birds.onnx", "-o", "speed.toml", "--ci", "github,buildkite,shell")
    assert run(*words).exit_code == 0
    flow = yaml.safe_load((onnx.parent / ".github/workflows/speed-services-speed.yml").read_text())
    assert (flow["env"]["PROJECT"], flow["env"]["SUITE"]) == ("services/speed", "speed.toml")
    for place in onnx.parent.rglob("*services-speed*"):
        text = place.read_text()
        assert "services/speed" in text
        assert "services/speed-" not in text


def test_what_other_checkouts_lack_is_said(
    onnx: Path, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "find_spec", lambda _: None)
    Path(".gitignore").write_text("*.onnx\n")
    assert f"note: git ignores {onnx}: " in run("birds.onnx").stdout
    assert f"note: {tiny_onnx} is outside the" in run(tiny_onnx, "-o", "other.toml").stdout


def test_without_a_repository_there_is_no_workflow(
    tmp_path: Path, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "find_spec", lambda _: None)
    monkeypatch.setattr(init, "_repository", lambda _: None)
    monkeypatch.chdir(tmp_path)
    assert "is in no git repository; make one: git init" in refused(tiny_onnx, "--ci", "github")
    assert "gpubench run gpubench.toml" in run(tiny_onnx).stdout

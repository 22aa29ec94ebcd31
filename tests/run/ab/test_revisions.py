"""A pull request changes files: each arm has those of its own commit."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import asdict, replace

from gpubench.analysis.compare.compare import compare
from gpubench.errors import InputError, SuiteError
from gpubench.records.reader import read
from gpubench.records.record import Record
from gpubench.run.ab import arms, driver, interpreters, revisions
from gpubench.run.ab import setup as ab_setup
from gpubench.suite import gate
from gpubench.suite.types import Rule
from tests.conftest import WITHOUT_PAGE
from tests.run.ab.test_driver import Watch, wrapper
from tests.run.ab.test_interpreters import UV, git

SUITE = """
[workload]
model = "../models/net.onnx"
images = "synthetic"
[axes]
backend = ["fake"]
batch_size = [1]
scenario = ["latency"]
device = "cpu"
cores = 1
[policy]
repeats = 2
warmup_s = 0.01
duration_s = 0.04
max_relative_error = 0.001
"""


class Project:
    """A folder of a repository, and what `gpubench ab` makes of it."""

    def __init__(self, top: Path, network: Path, cache: Path) -> None:
        self.top, self.network, self.cache = top, network, cache
        self.python = wrapper(top.parent / "python", "TRUE")

    def write(self, name: str, content: str) -> Path:
        file = self.top / "app" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        return file

    def model(self, busy_us: int, name: str = "models/net.onnx") -> Path:
        """A network that the fake backend is busy with for so long."""
        network = onnx.load(self.network)
        network.doc_string = f"busy_us={busy_us}"
        file = self.write(name, "")
        onnx.save(network, file)
        return file

    def commit(self, tag: str = "") -> None:
        git(self.top, "add", ".")
        git(self.top, "commit", "-qm", "a change", "--allow-empty")
        if tag:
            git(self.top, "tag", tag)

    def revision(self, reference: str) -> revisions.Revision:
        return revisions.revision("--baseline-ref", reference, self.cache)

    def ab(
        self,
        baseline: str | None = "base",
        candidate: str | None = None,
        specs: tuple[str, str] = ("", ""),
        suite: str = "suites/gate.toml",
        chosen: dict[str, Any] | None = None,
        resume: bool = False,
        suite_from: ab_setup.SuiteFrom = "head",
    ) -> driver.ABJob:
        made = [
            interpreters.Made(**asdict(self.revision(reference)), python=self.python)
            if reference
            else None
            for reference in (baseline, candidate)
        ]
        said = [
            arms.parse(f"--{arm}", [text] if text else [])
            for arm, text in zip(("baseline", "candidate"), specs, strict=True)
        ]
        return ab_setup.comparison(
            suite, chosen or {}, (said[0], said[1]), (None, self.python), Rule(), 0.001,
            self.cache, self.top.parent / "out", resume, (), (made[0], made[1]), suite_from,
        )  # fmt: skip


@pytest.fixture
def project(
    fakes: None, tmp_path: Path, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """Its first commit is 'base'; the working directory is its folder 'app'."""
    top = tmp_path / "repository"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git(tmp_path, "init", "-q", str(top))
    found = Project(top, tiny_onnx, tmp_path / "cache")
    found.write("pyproject.toml", "")
    found.write("suites/gate.toml", SUITE)
    found.model(busy_us=300)
    found.commit("base")
    monkeypatch.chdir(top / "app")
    return found


def models(job: driver.ABJob) -> list[str]:
    return [side.header.planned[0].model for side in job.sides]


def test_a_pull_request_that_swaps_the_model_is_measured(project: Project) -> None:
    """Until now both arms had the head's file: 0.0 %, EQUIVALENT."""
    project.model(busy_us=1800)
    project.commit()
    job = project.ab()
    old, new = models(job)
    assert Path(new) == project.top / "app/suites/../models/net.onnx"
    assert Path(old).is_relative_to(project.cache)
    assert [b"busy_us=300" in Path(file).read_bytes() for file in (old, new)] == [True, False]
    files = driver.run(job, Watch())
    [before], [after] = (file.records for file in files)
    assert before.status == after.status == "ok"
    assert before.contents["model"] != after.contents["model"]
    assert after.median_ns() > 4 * before.median_ns()  # type: ignore[operator]
    [row] = compare(*files)
    assert row.label == "fake fp32 b1 x1 latency"  # the folders are no difference
    assert git(project.top, "status", "--porcelain") == ""


FILES = """
[workload]
model = "../code/net.py:build"
weights = "../w/last.pth#ema"
images = "../pictures"
labels = "../labels.csv"
calibration = "../more"
"""


def test_every_path_of_a_suite_comes_from_the_arms_own_tree(project: Project) -> None:
    for name in ("code/net.py", "w/last.pth", "pictures/a.png", "labels.csv", "more/b.png"):
        project.write(name, "")
    project.write("suites/gate.toml", FILES + SUITE[SUITE.index("[axes]") :])
    project.commit("full")
    job = project.ab("full")
    old, new = (side.header.planned[0] for side in job.sides)
    tree = project.revision("full").project
    assert (old.model, old.weights) == (f"{tree}/code/net.py:build", f"{tree}/w/last.pth#ema")
    assert (old.images, old.labels) == (f"{tree}/pictures", f"{tree}/labels.csv")
    assert old.calibration == f"{tree}/more"
    assert new.weights == f"{project.top}/app/suites/../w/last.pth#ema"
    assert job.sides[0].directory == tree  # 'pkg.models:build' is imported from there
    assert job.notes == ()
    both = project.ab("base", "full", chosen={"model": "models/net.onnx", "weights": "file",
                                              "images": "synthetic", "labels": "",
                                              "calibration": ""})  # fmt: skip
    assert [Path(m).relative_to(project.cache).parts[1][:12] for m in models(both)] == [
        git(project.top, "rev-parse", ref)[:12] for ref in ("base", "full")
    ]


def test_what_git_does_not_track_is_the_same_in_both_arms(project: Project) -> None:
    outside = project.top.parent / "elsewhere"
    outside.mkdir()
    project.write(".gitignore", "data/\n")
    project.commit()
    project.write("data/a.png", "")
    project.write("suites/gate.toml", SUITE.replace('"synthetic"', '"../data"'))
    job = project.ab(chosen={"calibration": str(outside)})
    assert {side.header.planned[0].images for side in job.sides} == {
        f"{project.top}/app/suites/../data"
    }
    assert job.notes[1:] == (
        f"the same in both arms, ignored by git: {project.top}/app/data",
        f"the same in both arms, outside of the repository: {outside}",
        "the working tree has changes that are not committed: measured as it is",
    )
    assert job.notes[0].startswith("gate.toml of the working tree is measured, and differs from "
                                   "that of base (")  # fmt: skip
    assert job.notes[0].endswith('): workload.images = "../data", there "synthetic"')


@pytest.mark.parametrize("kind", ["relative", "absolute", "ignored", "new"])
def test_what_a_link_leads_to_outside_is_the_same_in_both_arms(project: Project, kind: str) -> None:
    """As a folder of pictures on another disk. Until now a relative one led nowhere in the commit's
    tree, and of an ignored one git does not say so."""
    outside = project.top.parent / "disk"
    outside.mkdir()
    (project.top / "app/models/net.onnx").rename(outside / "net.onnx")
    link = project.top / "app/models/far"
    link.symlink_to(outside if kind == "absolute" else "../../../disk")
    project.write("suites/gate.toml", SUITE.replace("net.onnx", "far/net.onnx"))
    if kind == "ignored":
        project.write(".gitignore", "far\n")
    if kind != "new":
        project.commit("linked")
    job = project.ab("base" if kind == "new" else "linked")
    assert not job.sides[0].plan.skips
    assert {Path(file).resolve() for file in models(job)} == {outside / "net.onnx"}
    told = f"the same in both arms, outside of the repository: {outside}/net.onnx"
    assert [note for note in job.notes if "the same" in note] == [told]


def test_a_link_into_a_folder_does_not_hide_the_rest_of_it(project: Project) -> None:
    pool = project.top.parent / "pool"
    pool.mkdir()
    for name in "123":
        (pool / f"{name}.png").touch()
    data = project.top / "app/data"
    data.mkdir()
    (data / "1.png").symlink_to("../../../pool/1.png")
    (project.top / "app/pool").symlink_to("../../pool")
    project.commit("linked")
    project.ab("linked")
    [found] = {p.resolve() for p in project.cache.glob("refs/*/**/app/pool")}
    assert found == pool


def test_a_tracked_link_to_what_git_ignores_leads_there(project: Project) -> None:
    project.write(".gitignore", "built/\n")
    (project.top / "app/models/net.onnx").unlink()
    (project.top / "app/models/net.onnx").symlink_to("../built/net.onnx")
    project.commit("linked")
    with pytest.raises(SuiteError, match="a link to a file that is not there"):
        project.ab("linked")
    project.model(busy_us=1, name="built/net.onnx")
    job = project.ab("linked")
    assert {Path(file).resolve() for file in models(job)} == {project.top / "app/built/net.onnx"}
    assert "ignored by git" in "".join(job.notes)


def test_a_folder_of_which_git_ignores_the_pictures_is_the_same_in_both_arms(
    project: Project,
) -> None:
    project.write("pictures/.gitkeep", "")
    project.write(".gitignore", "*.png\n")
    project.commit("kept")
    project.write("pictures/a.png", "")
    folders = [
        s.header.planned[0].images for s in project.ab("kept", chosen={"images": "pictures"}).sides
    ]
    assert folders == [f"{project.top}/app/pictures"] * 2
    new = project.top / "app/pictures/new.jpg"  # neither tracked nor ignored: not the commit's
    new.touch()
    sides = project.ab("kept", chosen={"images": "pictures"}).sides
    assert sides[0].header.planned[0].images != folders[0]
    new.unlink()
    project.write("pictures/labels.csv", "a.png,1")
    project.commit("labelled")  # what the commits track is each one's own
    old, new = (
        s.header.planned[0].images for s in project.ab("kept", chosen={"images": "pictures"}).sides
    )
    assert Path(old).is_relative_to(project.cache)
    assert new == f"{project.top}/app/pictures"


def test_a_file_that_one_commit_lacks_is_missing_there(project: Project) -> None:
    project.model(busy_us=0, name="models/new.onnx")
    project.write("suites/gate.toml", SUITE.replace("net.onnx", "new.onnx"))
    files = driver.run(project.ab(), Watch())
    [row] = compare(*files)
    assert (row.verdict, row.code) == ("MISSING", "skipped")
    assert "'app/models/new.onnx' is in the working tree, and not in base (" in row.reason
    renamed = project.ab(specs=("model=models/net.onnx", ""))
    assert [Path(file).name for file in models(renamed)] == ["net.onnx", "new.onnx"]
    (project.top / "app/models/net.onnx").unlink()
    assert [Path(file).exists() for file in models(project.ab(specs=("model=models/net.onnx", "")))]
    with pytest.raises(SuiteError, match=r"there is no such file"):
        project.ab(chosen={"model": "models/nowhere.onnx"})


def test_the_question_is_of_one_suite(project: Project) -> None:
    changed = SUITE.replace("batch_size = [1]", "batch_size = [2]").replace("0.04", "0.05")
    project.write("suites/gate.toml", changed)
    head, base = project.ab(), project.ab(suite_from="base")
    sizes = [[s.header.planned[0].batch_size for s in job.sides] for job in (head, base)]
    assert sizes == [[2, 2], [1, 1]]
    assert "axes.batch_size = [2], there [1]; policy.duration_s = 0.05, there 0.04" in head.notes[0]
    assert base.notes[0].startswith("gate.toml of base (")
    assert [Path(m).is_relative_to(project.cache) for m in models(base)] == [True, False]
    (project.top / "app/suites/other.toml").write_text(changed)
    job = project.ab(suite="suites/other.toml")
    assert "has no other.toml; that of the working tree is measured" in job.notes[0]
    with pytest.raises(SuiteError, match=r"other.toml' is in the working tree, and not in base \("):
        project.ab(suite="suites/other.toml", suite_from="base")


@pytest.mark.parametrize("name", ["x;touch${IFS}pwned", "$(touch${IFS}pwned)", "a'b\"c&d|e`f`"])
def test_a_branchs_name_is_nothing_but_a_name(project: Project, name: str) -> None:
    git(project.top, "branch", name, "base")
    made = project.revision(name)
    assert made.name == f"{name} ({git(project.top, 'rev-parse', 'base')[:12]})"
    assert not [*project.top.rglob("pwned"), *project.cache.rglob("pwned")]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


def test_what_git_lfs_keeps_is_fetched_or_named(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project.write(".gitattributes", "*.onnx filter=lfs\n")
    project.write("models/net.onnx", POINTER)
    project.commit("large")
    own = project.model(busy_us=0).read_bytes()
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "git-lfs").write_text("#!/bin/sh\nexit 1\n")
    (tools / "git-lfs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    told = (r"'app/models/net.onnx' of large \(.* is a Git LFS pointer; 1 file of Git LFS, "
            r"the first 'app/models/net.onnx': git lfs is not installed")  # fmt: skip
    with pytest.raises(SuiteError, match=told):
        project.ab("large")
    # With the credentials of the user's clone, as actions/checkout has them: for its place alone.
    (tmp_path / "token").write_text('[http "https://host/"]\nextraheader = AUTHORIZATION: x\n')
    git(project.top, "config", f"includeIf.gitdir:{project.top}/.git.path", f"{tmp_path}/token")
    git(project.top, "config", "remote.origin.url", "https://host/birds")
    needs = '[ "$(git config http.https://host/.extraheader) $(git config remote.origin.url)" = '
    needs += "'AUTHORIZATION: x https://host/birds' ]"
    pull = f"{needs} && cp {project.network} app/models/net.onnx"
    (tools / "git-lfs").write_text(f"#!/bin/sh\n[ $1 != pull ] || {{ {pull}; }}\n")
    assert Path(models(project.ab("large"))[0]).read_bytes() == project.network.read_bytes()
    assert (project.top / "app/models/net.onnx").read_bytes() == own


def test_submodules_come_from_the_users_clone(project: Project, tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    git(tmp_path, "init", "-q", str(lib))
    for version in ("one", "two"):
        (lib / "net.py").write_text(version)
        git(lib, "add", ".")
        git(lib, "commit", "-qm", version)
        git(lib, "tag", version)
    allow = ("-c", "protocol.file.allow=always")
    git(project.top, *allow, "submodule", "add", "-q", str(lib), "app/lib")
    inner = project.top / "app/lib"
    git(inner, "checkout", "-q", "one")
    project.commit("old")
    git(inner, "checkout", "-q", "two")
    project.commit()
    made = project.revision("old")
    assert (made.project / "lib/net.py").read_text() == "one"
    assert (inner / "net.py").read_text() == "two"
    assert made.notes == ()
    half = made.project / "lib"  # as a killed start leaves it
    (half / ".git/gpubench-made").unlink()
    (half / "net.py").unlink()
    assert (project.revision("old").project / "lib/net.py").read_text() == "one"
    assert git(project.top, "status", "--porcelain") == ""
    (lib / "net.py").write_text("three")
    git(lib, "commit", "-qam", "three")
    missing = git(lib, "rev-parse", "HEAD")
    git(project.top, "update-index", "--cacheinfo", f"160000,{missing},app/lib")
    git(project.top, "commit", "-qm", "a commit that this clone has not")
    [note] = project.revision("HEAD").notes
    assert note.startswith("submodule 'app/lib' is left out, its commit")
    git(inner, "fetch", "-q", "origin", missing)
    assert project.revision("HEAD").notes == ()


def test_a_sparse_checkout_stays_one(project: Project) -> None:
    project.write("heavy/x", "")
    project.write("models/x", "")
    project.commit("all")
    git(project.top, "sparse-checkout", "set", "app/suites")
    made = project.revision("all")
    assert not (made.project / "heavy").exists()
    assert (made.project / "suites/gate.toml").exists()
    git(project.top, "sparse-checkout", "set", "app/suites", "app/models")
    (made.project / "models").rename(made.project / "gone") if (
        made.project / "models"
    ).exists() else None
    lacking = project.ab("all", specs=("", ""))
    assert "whose sparse checkout leaves it out" in lacking.sides[0].plan.skips[0].reason


def test_a_partial_clone_says_how_to_get_the_rest(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.model(busy_us=1)
    project.commit()
    git(project.top, "config", "uploadpack.allowFilter", "true")
    partial = tmp_path / "partial"
    git(tmp_path, "clone", "-q", "--filter=blob:none", f"file://{project.top}", str(partial))
    monkeypatch.chdir(partial / "app")
    with pytest.raises(InputError, match=r"lacks 1 file of .* git archive -o /dev/null"):
        project.revision("base")
    git(partial, "archive", "-o", os.devnull, "base")
    assert (project.revision("base").project / "models/net.onnx").exists()


SOURCES = """
[project]
name = "app"
[tool.uv.sources]
near = { path = "../inside" }
far = { path = "../../libs/far", editable = true }
lost = [{ path = "../../libs/lost" }]
"""


@pytest.mark.parametrize("linked", [False, True])
def test_sources_beside_the_repository_are_found(project: Project, linked: bool) -> None:
    """Also those that links of the repository lead to."""
    far = project.top.parent / "libs/far"
    far.mkdir(parents=True)
    (far / "pyproject.toml").write_text('[tool.uv.sources]\nnext = { path = "../next" }')
    (far.parent / "next").mkdir()
    project.write("pyproject.toml", SOURCES)
    for name in ("far", "lost") if linked else ():
        (project.top / "app" / name).symlink_to(f"../../libs/{name}")
    project.commit("sources")
    made = project.revision("sources")
    assert (made.project / "../../libs/far").resolve() == far
    assert (made.tree / "../libs/next").resolve() == far.parent / "next"
    [note] = made.notes
    assert note.startswith(
        f"{project.top}/app/pyproject.toml: tool.uv.sources.lost = '../../libs/lost' leads to "
        f"{far.parent}/lost, which is not there"
    )


def test_another_input_is_another_question(project: Project) -> None:
    network = onnx.load(project.top / "app/models/net.onnx")
    for axis in network.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_value *= 2
    for node in network.graph.node:
        for attribute in node.attribute if node.op_type == "AveragePool" else ():
            attribute.ints[:] = [2 * side for side in attribute.ints]
    onnx.save(network, project.top / "app/models/net.onnx")
    watch = Watch()
    files = driver.run(project.ab(), watch)
    [row] = compare(*files)
    assert (row.verdict, row.code) == ("INCOMPARABLE", "different-question")
    assert row.reason == "the network's input is 3 x 16 x 16 in the baseline, 3 x 32 x 32 here"
    assert row.reason in watch.lines
    assert [r.kind for f in files for r in f.records] == ["incomparable"] * 2


def test_a_killed_start_leaves_nothing_in_the_users_repository(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And the next one completes what it began."""

    def state() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in project.top.rglob("*") if p.is_file()}

    before, begun = state(), revisions._clone

    def killed(*words: Any) -> None:
        begun(*words)
        os._exit(9)

    monkeypatch.setattr(revisions, "_clone", killed)
    if not (child := os.fork()):
        project.revision("base")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    monkeypatch.chdir(project.top / "app")
    made = project.revision("base")
    assert (made.project / "models/net.onnx").exists()
    assert state() == before
    assert git(project.top, "worktree", "list").count("\n") == 0


def test_one_killed_while_measuring_is_gone_on_with(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is left in the repository, and nothing measured is lost."""

    class Killed(Watch):
        def recorded(self, record: Record, arm: str = "") -> None:
            super().recorded(record, arm)
            if len(self.records) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

    project.model(busy_us=300, name="models/other.onnx")
    project.commit()
    state = git(project.top, "for-each-ref"), git(project.top, "status", "--porcelain")
    if not (child := os.fork()):
        driver.run(replace(project.ab(), budget_s=60.0), Killed())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = [read(project.top.parent / "out" / arm).records for arm in ("baseline", "candidate")]
    assert sorted(map(len, before)) == [1, 2]
    files = driver.run(project.ab(resume=True), Watch())
    for file, records in zip(files, before, strict=True):
        assert file.records[0] == records[0]
    assert (git(project.top, "for-each-ref"), git(project.top, "status", "--porcelain")) == state
    assert git(project.top, "worktree", "list").count("\n") == 0


def layers(count: int, classes: int = 10) -> onnx.ModelProto:
    """As many products of 256 x 256, one after the other; then the classes."""
    make = onnx.helper.make_node
    draw = np.random.default_rng(0).standard_normal
    square = draw((256, 256)).astype(np.float32) / 16
    nodes = [make("Flatten", ["images"], ["x0"])]
    weights = {"first": draw((768, 256)).astype(np.float32), "square": square,
               "last": draw((256, classes)).astype(np.float32)}  # fmt: skip
    names = ["first", *["square"] * count, "last"]
    nodes += [make("MatMul", [f"x{n}", name], [f"x{n + 1}"]) for n, name in enumerate(names)]
    kind = onnx.TensorProto.FLOAT
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "layers", [value("images", kind, ["n", 3, 16, 16])],
        [value(f"x{len(names)}", kind, ["n", classes])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_networks_are_checked_each_against_its_own_reference(
    project: Project, tmp_path: Path
) -> None:
    """Named, or of two commits: what they answer differs, and neither is wrong."""
    for name, count in (("a", 1), ("b", 2)):
        onnx.save(layers(count), tmp_path / f"{name}.onnx")
    specs = [arms.parse(f"--{arm}", [f"model={tmp_path}/{name}.onnx"])
             for arm, name in (("baseline", "a"), ("candidate", "b"))]  # fmt: skip
    job = ab_setup.comparison(
        "suites/gate.toml", {"backend": ["onnxruntime"]}, (specs[0], specs[1]), (None, None),
        Rule(), 0.001, project.cache, tmp_path / "out", False, (),
    )  # fmt: skip
    files = driver.run(job, Watch())
    records = [record for file in files for record in file.records]
    assert [r.parity.passed for r in records if r.parity] == [True, True]
    assert len({r.contents["model"] for r in records}) == 2
    [row] = compare(*files)
    assert row.label.endswith(f"(model {tmp_path}/a.onnx -> {tmp_path}/b.onnx)")


def test_another_number_of_classes_is_compared_by_speed_alone(
    project: Project, tmp_path: Path
) -> None:
    onnx.save(layers(1), project.top / "app/models/net.onnx")
    project.commit("ten")
    onnx.save(layers(1, classes=7), project.top / "app/models/net.onnx")
    job = project.ab("ten", chosen={"backend": ["onnxruntime"]})
    rule = gate.rule({}, ["agreement"])
    sides = [replace(s, header=replace(s.header, pairing=replace(s.header.pairing, rule=rule)))
             for s in job.sides if s.header.pairing]  # fmt: skip
    watch = Watch()
    rows = compare(*driver.run(replace(job, sides=(sides[0], sides[1]), rule=rule), watch))
    assert [(r.judged, r.verdict, r.code) for r in rows] == [
        ("speed", "INCONCLUSIVE", "few-pairs"), ("agreement", "INCOMPARABLE", "other-pictures"),
    ]  # fmt: skip
    assert rows[0].ratio
    told = "10 classes in the baseline, 7 here: speed is compared, answers cannot be"
    assert watch.lines.count(told) == 1


CODE = """
import torch

def build():
    torch.manual_seed({seed})
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
"""


@pytest.mark.slow
def test_modules_of_the_project_are_each_commits_own(project: Project) -> None:
    """Also where they lie in the working directory, and are not installed."""
    named = SUITE.replace("../models/net.onnx", "own.net:build").replace("fake", "torch-eager")
    project.write("suites/gate.toml", named.replace("[axes]", "preprocess.size = 16\n[axes]"))
    project.write("own/net.py", CODE.format(seed=1))
    project.commit("one")
    project.write("own/net.py", CODE.format(seed=2))
    files = driver.run(project.ab("one"), Watch())
    assert [r.status for f in files for r in f.records] == ["ok", "ok"]
    entries = [path for path in (project.cache / "reference").iterdir() if path.is_dir()]
    assert len(entries) == 2  # one would be the head's for both


@pytest.mark.slow
def test_the_gate_is_red_for_a_slower_model(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line, in a shallow clone, with ONNX Runtime."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uv").write_text(UV)
    (tools / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("UV_LOG", str(tmp_path / "uv.log"))
    project.write("suites/gate.toml", SUITE.replace("fake", "onnxruntime"))
    for tag, count in (("fast", 20), ("slow", 120)):
        onnx.save(layers(count), project.top / "app/models/net.onnx")
        project.commit(tag)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth=2", f"file://{project.top}", str(clone))
    words = ["ab", "suites/gate.toml", "--baseline-ref", "HEAD~1", "-o", str(tmp_path / "out"),
             "--cache-dir", str(project.cache), "--budget", "2m"]  # fmt: skip
    done = subprocess.run(
        [*WITHOUT_PAGE, *words], cwd=clone / "app", capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "1 REGRESSED" in said
    assert "candidate the working tree" in said
    assert git(clone, "status", "--porcelain") == ""
    assert git(clone, "worktree", "list").count("\n") == 0

"""Interpreters for the arms: found, or made from a git commit by a (stubbed) uv."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from gpubench import __version__, plugins
from gpubench.errors import InputError
from gpubench.run import api
from gpubench.run.ab import interpreters

UV = f"""#!/bin/sh
echo "$@" >> "$UV_LOG"
while [ "$1" != --project ] && [ "$1" != --python ]; do shift; done
case "$1" in --python) exit 0;; esac
made="${{UV_PROJECT_ENVIRONMENT:-$2/../.venv}}"  # of a member of a workspace: beside it
mkdir -p "$made/bin"
printf '#!/bin/sh\\nexec "{sys.executable}" "$@"\\n' > "$made/bin/python"
chmod +x "$made/bin/python"
"""


def git(at: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", str(at), *who, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits, the first of them tagged; the working directory is its folder 'app'."""
    tools, top = tmp_path / "tools", tmp_path / "repository"
    tools.mkdir()
    (tools / "uv").write_text(UV)
    (tools / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setenv("UV_LOG", str(tmp_path / "uv.log"))
    (top / "app").mkdir(parents=True)
    git(tmp_path, "init", "-q", str(top))
    for version in ("one", "two"):
        (top / "app" / "pyproject.toml").write_text(f"# {version}")
        git(top, "add", ".")
        git(top, "commit", "-qm", version)
        git(top, "tag", version)
    monkeypatch.chdir(top / "app")
    return top


def calls(tmp_path: Path) -> list[str]:
    log = tmp_path / "uv.log"
    return log.read_text().splitlines() if log.exists() else []


def test_an_environment_is_made_once_for_a_commit(repository: Path, tmp_path: Path) -> None:
    made = interpreters.of_reference("--baseline-ref", "one", tmp_path / "cache")
    python, commit = made.python, made.commit
    assert commit == git(repository, "rev-parse", "one")
    assert (python.parents[2] / "pyproject.toml").read_text() == "# one"
    assert python.parents[2].name == "app"
    assert len(calls(tmp_path)) == 1
    assert interpreters.of_reference("--baseline-ref", commit[:10], tmp_path / "cache") == replace(
        made, reference=commit[:10]
    )
    assert len(calls(tmp_path)) == 1
    assert git(repository, "worktree", "list").count("\n") == 0
    assert git(repository, "status", "--porcelain") == ""


def test_a_gpubench_that_developers_have_locked_comes_before_another(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(commit: str, has: Callable[[str], bool]) -> list[str]:
        before = len(calls(tmp_path))
        monkeypatch.setattr(interpreters, "has_gpubench", lambda _: has(calls(tmp_path)[-1]))
        interpreters.of_reference("--baseline-ref", commit, tmp_path / "cache")
        return calls(tmp_path)[before:]

    plain, all_groups = of("one", lambda done: "--no-dev" not in done)
    assert plain.replace(" --no-dev", "") == all_groups
    *synced, last = of("two", lambda done: done.startswith("pip install"))
    assert len(synced) == 2
    assert last.endswith(f" {interpreters.own_source(plugins.extras())}")  # as much as is here


def test_an_environment_without_runtimes_is_made_with_those_of_developers(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of gpubench's own checkout, where what measures is in extras."""
    monkeypatch.setattr(interpreters, "has_gpubench", lambda _: True)
    for runtimes, syncs in ((True, 1), (False, 2)):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        monkeypatch.setattr(interpreters, "has_runtimes", lambda _, has=runtimes: has)
        before = len(calls(tmp_path))
        interpreters.of_reference("--baseline-ref", "one", tmp_path / "cache")
        made = calls(tmp_path)[before:]
        assert ["sync -q --no-dev" in call for call in made] == [True, False][:syncs]


def test_runtimes_are_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(sys.executable)
    assert interpreters.has_runtimes(here)
    monkeypatch.setattr(interpreters, "RUNTIMES", ("gpubench_fakes_of_nobody",))
    assert interpreters.has_runtimes(here)  # nobody misses what is not here
    monkeypatch.setattr(interpreters, "find_spec", lambda name: name)
    assert not interpreters.has_runtimes(here)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, f"gpubench=={__version__}"),
        (
            {"url": "file:///x/gpubench.whl", "archive_info": {}},
            "gpubench @ file:///x/gpubench.whl",
        ),
        (
            {"url": "https://host/g", "vcs_info": {"vcs": "git", "commit_id": "5319bc7"}},
            "gpubench @ git+https://host/g@5319bc7",
        ),
    ],
)
def test_another_environment_gets_gpubench_from_where_ours_came(
    told: object, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if told is None else json.dumps(told)

    monkeypatch.setattr(interpreters.gpubench, "__file__", str(tmp_path / "site/gpubench/x.py"))
    monkeypatch.setattr(interpreters, "distribution", lambda _: Installed())
    assert interpreters.own_source() == expected
    with_extras = expected.replace("gpubench", "gpubench[cpu,timm]", 1)
    assert interpreters.own_source(["cpu", "timm"]) == with_extras


def test_a_base_that_only_fetch_head_knows(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GitHub: a checkout of depth 1, the base fetched beside it."""
    base = git(repository, "rev-parse", "one")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{repository}", str(shallow))
    git(shallow, "fetch", "-q", "--no-tags", "--depth=1", "origin", base)
    git(shallow, "tag", "-f", "here")
    monkeypatch.chdir(shallow / "app")
    with pytest.raises(InputError, match=r"HEAD~1.*this clone is shallow.*fetch-depth: 0"):
        interpreters.of_reference("--baseline-ref", "HEAD~1", tmp_path / "cache")
    made = interpreters.of_reference("--baseline-ref", "FETCH_HEAD", tmp_path / "cache")
    assert made.commit == base
    tree = made.project
    assert (tree / "pyproject.toml").read_text() == "# one"
    assert git(tree, "status", "--porcelain", "--untracked-files=no") == ""
    assert git(tree, "rev-list", "--count", "HEAD") == "1"
    assert git(tree, "tag") == git(shallow, "tag")
    assert git(shallow, "rev-parse", "HEAD") == git(repository, "rev-parse", "two")


def test_a_hooks_variables_do_not_lead_into_the_users_tree(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = git(repository, "symbolic-ref", "HEAD")
    for name, value in {"GIT_DIR": ".git", "GIT_INDEX_FILE": ".git/index"}.items():
        monkeypatch.setenv(name, str(repository / value))
    python = interpreters.of_reference("--baseline-ref", "one", tmp_path / "cache").python
    for name in ("GIT_DIR", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)
    assert (python.parents[2] / "pyproject.toml").read_text() == "# one"
    assert git(repository, "symbolic-ref", "HEAD") == branch
    assert git(repository, "status", "--porcelain") == ""


def test_a_half_made_environment_is_made_again(repository: Path, tmp_path: Path) -> None:
    python = interpreters.of_reference("--baseline-ref", "one", tmp_path / "cache").python
    python.unlink()
    again = interpreters.of_reference("--baseline-ref", "one", tmp_path / "cache")
    assert again.python.exists()
    assert len(calls(tmp_path)) == 2


@pytest.mark.parametrize("reference", ["nowhere", "--all", "one; touch x", "", "^one", "one..two"])
def test_an_unknown_reference_is_bad_input(
    repository: Path, tmp_path: Path, reference: str
) -> None:
    with pytest.raises(InputError, match=f"'{re.escape(reference)}': git knows no such commit"):
        interpreters.of_reference("--baseline-ref", reference, tmp_path / "cache")


def test_no_repository_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = "--baseline-ref 'main': needs the project's git repository as current directory"
    with pytest.raises(InputError, match=told):
        interpreters.of_reference("--baseline-ref", "main", tmp_path / "cache")


def test_a_commit_without_a_project_is_bad_input(repository: Path, tmp_path: Path) -> None:
    git(repository, "rm", "-q", "app/pyproject.toml")
    (repository / "app").mkdir(exist_ok=True)
    (repository / "app" / "x").write_text("")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "three")
    remedy = r"no app/pyproject\.toml at that commit.*; name one that is there: --baseline-python"
    with pytest.raises(InputError, match=remedy):
        interpreters.of_reference("--baseline-ref", "HEAD", tmp_path / "cache")
    with pytest.raises(InputError, match=r"would make the environment$"):  # it has no such option
        interpreters.of_reference("--good", "HEAD", tmp_path / "cache")
    python = Path(sys.executable)
    made = interpreters.of_reference("--baseline-ref", "HEAD", tmp_path / "cache", python)
    assert (made.python, (made.project / "x").exists()) == (python, True)
    assert api._version("--baseline", python, "HEAD", tmp_path / "cache") == (None, made)
    assert calls(tmp_path) == []


def test_what_uv_says_is_passed_on_and_kept(repository: Path, tmp_path: Path) -> None:
    words = "echo begin; for i in $(seq 200); do echo building; done; echo no such package"
    (tmp_path / "tools" / "uv").write_text(f"#!/bin/sh\n({words}) >&2\nexit 1\n")
    told = r"^--baseline-ref 'one': uv sync failed: .*no such package \(all of it: (\S+)\)"
    with pytest.raises(InputError, match=re.compile(told, re.S)) as caught:
        interpreters.of_reference("--baseline-ref", "one", tmp_path / "cache")
    log = Path(re.search(r"all of it: (\S+)\)", str(caught.value))[1])  # type: ignore[index]
    assert log.read_text().startswith("begin\n")


def test_a_source_that_is_not_there_is_named(repository: Path, tmp_path: Path) -> None:
    """Until now uv's own words alone: distribution not found, below the cache."""
    source = '[tool.uv.sources]\nlib = { path = "../../lib" }\n'
    (repository / "app/pyproject.toml").write_text(source)
    git(repository, "commit", "-qam", "three")
    (tmp_path / "tools" / "uv").write_text("#!/bin/sh\necho not found >&2\nexit 1\n")
    lost = f"tool.uv.sources.lib = '../../lib' leads to {tmp_path}/lib, which is not there.*"
    with pytest.raises(InputError, match=f"^--baseline-ref 'HEAD'; .*{lost}: uv sync failed"):
        interpreters.of_reference("--baseline-ref", "HEAD", tmp_path / "cache")


def test_a_base_without_gpubench_is_given_ours(repository: Path, tmp_path: Path) -> None:
    bare = UV.replace('" "$@"', f'" $(cat {tmp_path}/flags) "$@"')
    uv = bare.replace("--python) exit 0;;", f"--python) echo > {tmp_path}/flags; exit 0;;")
    (tmp_path / "flags").write_text("-S")
    (tmp_path / "tools" / "uv").write_text(uv)
    made = interpreters.of_reference("--baseline-ref", "one", tmp_path / "cache")
    sync, *_, install = calls(tmp_path)
    assert sync.startswith("sync -q --no-dev --project")
    assert install.startswith(f"pip install -q --python {made.python} ")


def test_an_interpreter_that_hangs_has_no_gpubench(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", 60)

    monkeypatch.setattr(subprocess, "run", hang)
    assert not interpreters.has_gpubench(Path(sys.executable))


def test_our_own_path_does_not_lend_gpubench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(Path(interpreters.__file__).parents[3]))
    assert not interpreters.has_gpubench(bare)


def test_interpreters_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no interpreter there"):
        interpreters.existing("--baseline-python", tmp_path / "nothing")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(InputError, match="cannot import gpubench"):
        interpreters.existing("--baseline-python", bare)
    python = Path(sys.executable)
    assert interpreters.existing("--baseline-python", python) == python
    assert interpreters.existing("--baseline-python", python.parents[1]) == python

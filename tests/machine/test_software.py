"""What is recorded of the surroundings, and what of them reaches the processes that we start."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpubench.machine import software

TOKEN = "ghp_0aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1w"  # noqa: S105  # made up


@pytest.mark.parametrize(
    ("name", "value", "recorded"),
    [
        ("OMP_NUM_THREADS", "2", "2"),
        ("KMP_AFFINITY", "granularity=fine,compact,1,0", "granularity=fine,compact,1,0"),
        ("ATEN_CPU_CAPABILITY", "avx2", "avx2"),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", "AVX512_CORE_AMX"),
        ("MKL_ENABLE_INSTRUCTIONS", "AVX2", "AVX2"),
        ("MALLOC_ARENA_MAX", "1", "1"),
        ("MALLOC_CONF", "background_thread:true,thp:always", "background_thread:true,thp:always"),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=2", "glibc.malloc.hugetlb=2"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", "expandable_segments:True"),
        ("PYTHONTRACEMALLOC", "1", "1"),
        ("PYTHONDEVMODE", "1", "1"),
        ("LD_PRELOAD", "/opt/me/libjemalloc.so.2 libx.so", "libjemalloc.so.2:libx.so"),
        ("CUDA_VISIBLE_DEVICES", "", ""),
        ("NVIDIA_TF32_OVERRIDE", "0", "0"),
        ("TORCHINDUCTOR_MAX_AUTOTUNE", "1", "1"),
        ("CUDNN_LOGLEVEL_DBG", "warn", "warn"),
        # where anything might be in it, that it is set
        ("TORCH_HOME", "https://me:hidden@host/x", software.UNTOLD),
        ("ORT_MODEL_SOURCE", "https://host/blob?sv=1&sig=abc", software.UNTOLD),
        ("TRITON_WHATEVER", TOKEN, software.UNTOLD),
        ("OMP_NUM_THREADS", TOKEN, software.UNTOLD),
        ("MKL_SERVER", "postgres://me:pw@host/db", software.UNTOLD),
        # and where the name says that it is a secret, nothing
        ("NVIDIA_API_KEY", "x", None),
        ("TORCH_TOKEN", "x", None),
        ("CUDA_PAT", "x", None),
        ("ORT_CONNECTION_STRING", "x", None),
        ("TRITON_CONNSTR", "x", None),
        ("TORCH_DB_PASSPHRASE", "x", None),
        ("OMP_SAS", "x", None),
        # nothing of others
        ("HOME", "/home/me", None),
        ("MY_OMP_X", "1", None),
        ("AZURE_CREDENTIALS", "x", None),
        # what we set ourselves, and who sets it otherwise
        ("ORT_DISABLE_TELEMETRY", "1", None),
        ("ORT_DISABLE_TELEMETRY", "0", "0"),
    ],
)
def test_variables_that_change_speed_and_no_secrets(
    name: str, value: str, recorded: str | None
) -> None:
    assert software.variables({name: value}).get(name) == recorded


def test_what_a_python_that_we_start_inherits(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        software.CLUSTER_SECRET: "s" * 32, "COVERAGE_PROCESS_START": "/x/cov.rc",
        "COV_CORE_SOURCE": "x",
        "GIT_DIR": "/x/.git", "VIRTUAL_ENV": "/venv", "PYTHONPATH": "/plugins", "OMP_X": "1",
        "DO_NOT_TRACK": "0",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    found = software.environ_of_python()
    assert {name: found.get(name) for name in given} == {
        software.CLUSTER_SECRET: None, "COVERAGE_PROCESS_START": None, "COV_CORE_SOURCE": None,
        "GIT_DIR": None, "VIRTUAL_ENV": "/venv", "PYTHONPATH": "/plugins", "OMP_X": "1",
        "DO_NOT_TRACK": "0",
    }  # fmt: skip
    assert (found["PYTHONSAFEPATH"], found["ORT_DISABLE_TELEMETRY"]) == ("1", "1")
    assert not {"VIRTUAL_ENV", "PYTHONPATH"} & software.environ_of_python(other=True).keys()


def test_openvino_finds_nothing_to_report_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in software.NO_TELEMETRY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, software.OPENVINO_REPORTER, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    software.no_telemetry()
    assert {name: os.environ[name] for name in software.NO_TELEMETRY} == {
        **software.NO_TELEMETRY, "DO_NOT_TRACK": "0"
    }  # fmt: skip
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(software.OPENVINO_REPORTER)


# ------------------------------------------------------------------------------ git


Git = Callable[..., object]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Runs git in the test's folder, which is a repository."""

    def run(*words: str) -> None:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path), *words]
        subprocess.run(command, check=True, capture_output=True)

    try:
        run("init")
    except FileNotFoundError:
        pytest.skip("git is not installed: apt-get install git")
    return run


def test_commit_of_gpubench_is_not_that_of_the_project_around_it(git: Git, tmp_path: Path) -> None:
    for name in ("own", "venv/gpubench"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    git("add", "own")
    git("commit", "-m", "first", "--no-gpg-sign")
    ours = software.commit(tmp_path / "own", own=True)
    assert len(ours["commit"]) == 40
    assert ours["dirty"] is False
    installed = software.commit(tmp_path / "venv/gpubench", own=True)
    assert installed == {"commit": None, "dirty": None}
    (tmp_path / "own/__init__.py").write_text("changed")
    assert software.commit(tmp_path)["dirty"] is True


def test_no_repository(tmp_path: Path) -> None:
    assert software.commit(tmp_path) == {"commit": None, "dirty": None}


@pytest.fixture
def strange(git: Git, tmp_path: Path) -> Path:
    """A stranger's repository, whose settings name programs for git to run."""
    (tmp_path / "a").write_text("one")
    git("add", "a")
    git("commit", "-m", "x")
    (tmp_path / "a").write_text("two")
    return tmp_path


@pytest.mark.parametrize("key", ["core.fsmonitor", "filter.x.clean", "filter.x.process"])
def test_git_runs_nothing_that_a_folder_names(strange: Path, key: str) -> None:
    (strange / "hook").write_text(f"#!/bin/sh\ntouch {strange}/ran\n")
    (strange / "hook").chmod(0o755)
    (strange / ".git/info/attributes").write_text("* filter=x\n")
    subprocess.run(["git", "-C", strange, "config", key, str(strange / "hook")], check=True)
    found = software.commit(strange)
    assert len(found["commit"]) == 40
    assert found["dirty"] is (None if "filter" in key else True)
    assert not (strange / "ran").exists()
    subprocess.run(["git", "-C", strange, "status"], check=False, capture_output=True)
    assert (strange / "ran").exists(), "the trap does not work"


def test_gits_variables_do_not_lead_to_another_commit(
    strange: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(strange / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(strange))
    none = {"commit": None, "dirty": None}
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "__init__.py").touch()
    assert software.commit(elsewhere) == none
    assert software.commit(elsewhere, own=True) == none


def test_names_of_files_need_not_be_utf_8(strange: Path) -> None:
    folder = Path(os.fsdecode(bytes(strange) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "b").touch()
    for words in (["config", "core.quotePath", "false"], ["add", "."]):
        subprocess.run(["git", "-C", strange, *words], check=True)
    assert software.commit(folder)["dirty"] is True

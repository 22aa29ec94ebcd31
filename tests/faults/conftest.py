"""Faults that really happen, through the real command; and after each of them nothing is left."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpubench.records.reader import read
from gpubench.records.record import Record
from tests.conftest import FAKES, GPUBENCH, WITHOUT_PAGE

HERE = Path(__file__).parent
MARK = "GPUBENCH_TEST_MARK"
CAN_UNSHARE = shutil.which("unshare") is not None and not subprocess.call(
    ["unshare", "--mount", "true"], stderr=subprocess.DEVNULL
)
PATIENCE_S = 120.0
LEAVE_S = 30.0
"""How long what belongs to a killed driver may take to end."""
SHM = Path("/dev/shm")  # noqa: S108
_OWN_SHM = 'mount --bind "$0" /dev/shm && exec "$@"'
"""Shell code: what is left there is ours, whatever strangers do on the machine meanwhile."""
WriteSuite = Callable[..., Path]


def wait_for(what: str, condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """The first true value of ``condition``."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)
    return found


@pytest.fixture(autouse=True)
def nothing_left(
    few_objects: None, fakes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """At the end processes, shared memory, temporary files, mounts, open files are as before."""
    temporary = Path(tempfile.mkdtemp(prefix="f", dir="/tmp"))  # short: sockets
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("GPUBENCH_TEST_MADE", str(tmp_path / "made"))
    own = f"{HERE / 'fakes'}:{FAKES}"
    monkeypatch.setenv("PYTHONPATH", own)
    monkeypatch.syspath_prepend(str(HERE / "fakes"))
    shared = SHM / f"gpubench-test-{mark}"
    if CAN_UNSHARE:
        shared.mkdir()
        monkeypatch.setenv("GPUBENCH_TEST_SHM", str(shared))
    files, mounts = _open_files(), _mounts(tmp_path)
    yield
    wait_for(f"end of {_names(mark)}", lambda: not _marked(mark), LEAVE_S)
    wait_for("removal of temporary files", lambda: not list(temporary.iterdir()), LEAVE_S)
    temporary.rmdir()
    if CAN_UNSHARE:
        wait_for("removal of shared memory", lambda: not list(shared.iterdir()), LEAVE_S)
        shared.rmdir()
    assert _mounts(tmp_path) == mounts
    gc.collect()
    assert _open_files() == files


def _marked(mark: str) -> list[int]:
    """Living processes that inherited the test's mark, however they left its session."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _names(mark: str) -> list[str]:
    names = []
    for pid in _marked(mark):
        try:
            names.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return names


def _mounts(below: Path) -> list[str]:
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(below) in line]


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Cli:
    """``gpubench run SUITE -o OUT --cache-dir CACHE ...`` in a process of its own."""

    def __init__(self, suite: Path, out: Path, cache_dir: Path) -> None:
        self.suite, self.out, self.cache_dir = suite, out, cache_dir
        self.html = False

    def command(self, *more: object) -> list[str]:
        where = ["-o", str(self.out), "--cache-dir", str(self.cache_dir)]
        gpubench = GPUBENCH if self.html else WITHOUT_PAGE
        shared = os.environ.get("GPUBENCH_TEST_SHM")
        apart = ["unshare", "--mount", "sh", "-c", _OWN_SHM, shared] if shared else []
        return [*apart, *gpubench, "run", str(self.suite), *where, *map(str, more)]

    def start(self, *more: object, **options: Any) -> subprocess.Popen[str]:
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.command(*more), text=True, **(both | options))

    def __call__(self, *more: object, **options: Any) -> subprocess.CompletedProcess[str]:
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        done = subprocess.run(
            self.command(*more), text=True, timeout=PATIENCE_S, check=False, **(both | options)
        )
        assert "Traceback" not in (done.stderr or ""), done.stderr
        return done

    def records(self) -> list[Record]:
        return read(self.out).records


@pytest.fixture
def cli(write_suite: WriteSuite, tmp_path: Path, cache_dir: Path) -> Callable[..., Cli]:
    """cli(at=[...], how=..., axes of the suite) -> a command over the broken backend."""

    def make(
        at: str | list[str] = "", how: str | list[str] = "raise", cache: Path = cache_dir,
        **changes: Any,
    ) -> Cli:  # fmt: skip
        named = {"at": at, "how": how}
        each = {k: [v] if isinstance(v, str) else v for k, v in named.items()}
        lines = [f"{k} = [{', '.join(map(repr, v))}]" for k, v in each.items()]
        values = {"backend": '["broken"]', "batch_size": "[2]"} | changes
        values["policy"] = {"max_samples": 50} | values.get("policy", {})
        suite = write_suite(axes="\n".join(["[axes.options.broken]", *lines]), **values)
        return Cli(suite, tmp_path / "run", cache)

    return make


def no_root_rights() -> None:
    """For ``preexec_fn``: file modes bind root too, once it has no capability to ignore them."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """disk(bytes, *options) -> an empty file system of that size."""
    mounted: list[Path] = []

    def mount(size: int, *options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        said = ",".join([f"size={size}", "mode=700", *options])
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", said, "none", place], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no right to mount here: {done.stderr.decode().strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)

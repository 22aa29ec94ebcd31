"""The machine itself: memory that ends, clocks that jump, a GPU that falls off or gets hot."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpubench.analysis.summary import summarise
from gpubench.machine.postmortem import oom_kills
from gpubench.records.reader import read
from gpubench.report import render
from tests.faults.conftest import HERE, Cli, wait_for
from tests.faults.test_workers import told

MakeCli = Callable[..., Cli]
ROOT = HERE.parents[1]
LIMIT = 640 << 20


def test_a_limit_of_address_space(cli: MakeCli) -> None:
    """`ulimit -v`: Python says MemoryError, C++ dies of bad_alloc, and both are out of memory."""
    run = cli(at="run", how=["allocate", "allocate-natively"])
    done = run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30)))
    assert done.returncode == 1
    found = told(run.records(), "how")
    assert found["allocate"][:2] == ("failed", "out-of-memory")
    assert "Unable to allocate 64.0 GiB" in found["allocate"][2]
    assert found["allocate-natively"][:2] == ("failed", "out-of-memory")
    assert "SIGABRT" in found["allocate-natively"][2]
    assert "std::bad_alloc" in found["allocate-natively"][2]


def control_group(controller: str, one: tuple[str, str], two: tuple[str, str]) -> Iterator[Path]:
    """A control group, with the limit (file, content) of version ``one`` or ``two``."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") or not controllers:
            at = Path("/sys/fs/cgroup", controllers, path.lstrip("/"), f"test-{uuid.uuid4().hex}")
            name, content = one if controllers else two
            try:
                at.mkdir()
                (at / name).write_text(content)
            except OSError:
                if at.is_dir():
                    at.rmdir()
                continue
            yield at
            members = at / "cgroup.procs"
            wait_for("the group's end", lambda: not members.read_text(), 10)  # noqa: B023
            at.rmdir()
            return
    pytest.skip(f"no control group with a limit of {controller} can be made here")


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A control group whose members may use LIMIT bytes together."""
    limit = str(LIMIT)
    yield from control_group("memory", ("memory.limit_in_bytes", limit), ("memory.max", limit))


@pytest.mark.slow
def test_the_out_of_memory_killer(cli: MakeCli, memory_cgroup: Path) -> None:
    """The kernel counts whom it kills: that, and not the signal, says that memory ended."""
    run = cli(at=["run", ""], how="fill-memory")
    before = oom_kills()
    done = run(preexec_fn=lambda: (memory_cgroup / "cgroup.procs").write_text("0"))
    assert done.returncode == 1
    [killed] = [r for r in run.records() if r.cell.options["at"]]
    assert (killed.status, killed.kind) == ("failed", "out-of-memory"), killed.reason
    assert "SIGKILL by the kernel's out-of-memory killer" in killed.reason
    assert [r.status for r in run.records() if not r.cell.options["at"]] == ["ok", "ok"]
    assert oom_kills() == before, "nobody else's group counts it"


JUMPING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static long jump(void) { static int n; return n++ % 2 ? 6 * 3600 : -6 * 3600; }
int clock_gettime(clockid_t clock, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(clock, t);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) t->tv_sec += jump();
  return code;
}
int gettimeofday(struct timeval *t, void *zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec;
  t->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *t) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}
"""


@pytest.fixture
def jumping_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes started from here, every reading of the wall clock jumps by twelve hours."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source, library = tmp_path / "jump.c", tmp_path / "jump.so"
    source.write_text(JUMPING)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    probe = "import time; print(abs(time.time() - time.time()) > 40_000)"
    said = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"


@pytest.mark.slow
def test_a_wall_clock_that_jumps_by_hours(cli: MakeCli, jumping_clock: None) -> None:
    """Samples, waits and time-outs follow the monotonic clock."""
    run = cli(policy={"duration_s": 0.2, "max_samples": 20_000})
    begin = time.monotonic()
    assert run().returncode == 0
    wall = time.monotonic() - begin
    assert len(run.records()) == 2
    for record in run.records():
        [samples] = record.replicas
        assert 0.19e9 < samples.end_ns < wall * 1e9
        assert sum(samples.durations_ns) <= samples.end_ns - samples.start_ns
        assert min(samples.durations_ns) >= 0
        assert 0 < record.wall_s < wall


def test_a_time_out_while_the_wall_clock_jumps(cli: MakeCli, jumping_clock: None) -> None:
    run = cli(at="open", how="hang", policy={"timeout_s": 2.0})
    begin = time.monotonic()
    assert run().returncode == 1
    [hung] = run.records()
    assert hung.kind == "timeout"
    assert 2.0 <= hung.wall_s < time.monotonic() - begin


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One GPU, as NVML tells driver and agent: the directory of what it is to say."""
    state = tmp_path / "nvml"
    state.mkdir()
    monkeypatch.setenv("GPUBENCH_FAKE_NVML", str(state))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = os.pathsep.join([str(HERE / "nvml"), os.environ["PYTHONPATH"], str(ROOT)])
    monkeypatch.setenv("PYTHONPATH", path)
    return state


@pytest.mark.parametrize(
    "how", ["lose-gpu", pytest.param("lose-gpu-and-raise", marks=pytest.mark.slow)]
)
def test_a_gpu_that_falls_off_its_bus(cli: MakeCli, gpu: Path, how: str) -> None:
    """Whether its driver tells the backend or not: nothing that it measured counts."""
    run = cli(at=["run", ""], how=how, device='"cuda"')
    assert run().returncode == 1
    assert (gpu / "seen").exists()
    found = {r.cell.options["at"]: r for r in run.records() if r.status != "ok"}
    lost = found["run"]
    assert (lost.status, lost.kind) == ("failed", "gpu-lost"), lost.reason
    assert "GPU is lost" in lost.reason
    assert ("unspecified launch failure" in lost.reason) == (how != "lose-gpu")
    assert "nvidia-smi" in lost.remedy
    assert found[""].kind == "gpu-lost", "the other cell's next repeat says so too"
    again = run("--resume")
    assert again.returncode == 2, "on what is left of the machine, the run cannot go on"
    assert "another machine" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "attempts", "flagged"),
    [("stop", 1, False), ("stop-everybody", 1, False), ("stop-everybody", 9, True)],
)
def test_what_was_stopped_is_measured_again_at_most_twice(
    cli: MakeCli, tmp_path: Path, how: str, attempts: int, flagged: bool
) -> None:
    """One process by a signal, or all of them as when a container is paused."""
    (tmp_path / "stops").write_text(str(attempts))
    run = cli(at="run", how=how, policy={"repeats": 1, "max_repeats": 1})
    done = run()
    assert done.returncode == 0, done.stderr
    [record] = run.records()
    assert record.status == "ok"
    assert record.invalidated == min(attempts, 2)
    assert ("FROZEN" in record.flags) == flagged
    assert record.telemetry.get("frozen_s", 0.0) == pytest.approx(0.7 * flagged, abs=0.3)
    shown = render([read(run.out)], "md")
    assert "measured again" in shown
    assert ("FROZEN" in shown) == flagged


@pytest.fixture
def cpu_quota() -> Iterator[Path]:
    """A control group whose members have half a core together."""
    yield from control_group("cpu", ("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000"))


@pytest.mark.slow
def test_cpu_time_that_a_quota_withholds_is_flagged(cli: MakeCli, cpu_quota: Path) -> None:
    policy = {"repeats": 1, "max_repeats": 1, "duration_s": 1.0, "max_samples": 10**6}
    run = cli(at="run", how="work", policy=policy)
    done = run(preexec_fn=lambda: (cpu_quota / "cgroup.procs").write_text("0"))
    assert done.returncode == 0, done.stderr
    [record] = run.records()
    assert "CPU-WITHHELD" in record.flags
    assert "FROZEN" not in record.flags, "who is withheld its time is ready to run"
    [x] = record.replicas
    assert x.withheld_ns > 0.3 * (x.end_ns - x.start_ns)
    assert read(run.out).header.environment["limits"]["cpus"] == 0.5


@pytest.mark.parametrize(
    ("attempts", "flagged"), [pytest.param(1, False, marks=pytest.mark.slow), (9, True)]
)
def test_a_hot_gpu_is_measured_again_at_most_twice(
    cli: MakeCli, gpu: Path, attempts: int, flagged: bool
) -> None:
    (gpu / "heat").write_text(str(attempts))
    run = cli(at="open", how="heat", device='"cuda"', policy={"repeats": 1, "max_repeats": 1})
    done = run()
    assert done.returncode == 0, done.stderr
    [record] = run.records()
    assert record.status == "ok"
    assert record.invalidated == min(attempts, 2)
    assert ("THROTTLED" in record.flags) == flagged
    assert int((gpu / "heat").read_text()) == max(0, attempts - 3)
    shown = render([read(run.out)], "md")
    assert ("invalidated" in shown) == (attempts > 0)
    assert ("THROTTLED" in shown) == flagged
    [summary] = summarise([read(run.out)])
    assert summary.ranked

"""Hosts for tests: network namespaces on a switch of their own, and gpubench on them.

Nothing is added to the machine's own network. A host's cable runs to a bridge in a namespace that
stands for the switch; `Machines.cut` takes the switch's end down, as pulling the plug does.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

import pytest

from gpubench.records.reader import begun, read
from gpubench.records.record import RecordFile

PORT = 6379
TOKEN = "a-token-of-these-tests"  # noqa: S105
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
}
"""How soon a machine is given up; to be set where the head is started."""
PATIENCE = {"RAY_raylet_start_wait_time_s": "120"}
"""Of `ray start`, where others use the machine too."""
RAY = f"{Path(sys.executable).parent}/ray"


class Machines:
    """``count`` hosts, 10.77.0.1 and on."""

    def __init__(self, count: int) -> None:
        self._tag = f"gpubench{os.getpid()}"
        self._switch = f"{self._tag}-switch"
        self.names = [f"{self._tag}-{rank}" for rank in range(count)]
        self._processes: list[subprocess.Popen[str]] = []
        self._temps: list[str] = []
        self.pinned = True
        """Whether each has a core of its own, as far as there are enough."""
        self.before: dict[int, str] = {}
        """Shell commands of a host before Ray starts: what they mount, only Ray sees."""
        self.auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        self.grace_s = 60.0
        """How much longer than it may take an agent is waited for."""

    def up(self) -> None:
        for name in (self._switch, *self.names):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for rank, name in enumerate(self.names):
            peer = ("peer", "name", "eth0", "netns", name)
            _ip("-n", self._switch, "link", "add", f"port{rank}", "type", "veth", *peer)
            _ip("-n", self._switch, "link", "set", f"port{rank}", "master", "br0", "up")
            _ip("-n", name, "address", "add", f"{self.address(rank)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def address(self, rank: int) -> str:
        return f"10.77.0.{rank + 1}"

    def cut(self, rank: int) -> None:
        _ip("-n", self._switch, "link", "set", f"port{rank}", "down")

    def mend(self, rank: int) -> None:
        _ip("-n", self._switch, "link", "set", f"port{rank}", "up")

    def start(self, rank: int, *command: object, **environ: str) -> subprocess.Popen[str]:
        """A process on that host; it outlives no test."""
        inside = ["ip", "netns", "exec", self.names[rank], *map(str, command)]
        process = subprocess.Popen(
            inside, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | environ, start_new_session=True,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def ray(self, rank: int, **environ: str) -> subprocess.Popen[str]:
        """Start Ray there, with one core; the first is the head. It ends with its process."""
        # A Unix socket's path has 107 bytes, and Ray adds most of them.
        self._temps.append(mkdtemp(dir="/tmp", prefix="ray-"))
        address = f"{self.address(0)}:{PORT}"
        head = ("--head", "--port", PORT, "--no-monitor", "--include-dashboard", "false")
        cores = sorted(os.sched_getaffinity(0))
        pin = ("taskset", "-c", cores[rank % len(cores)]) if self.pinned else ()
        before = self.before.get(rank, ":") + '; exec "$@"'
        return self.start(
            rank, "sh", "-ec", before, "sh", *pin, RAY, "start", "--block",
            *(head if rank == 0 else ("--address", address)),
            "--node-ip-address", self.address(rank), "--num-cpus", 1,
            "--temp-dir", self._temps[-1], "--object-store-memory", 100_000_000,
            "--disable-usage-stats", **self.auth | HEALTH | PATIENCE | environ,
        )  # fmt: skip

    def gpubench(self, rank: int, *words: object, **environ: str) -> subprocess.Popen[str]:
        """A command there."""
        script = (  # the page takes longer than all the rest of a run on the fake backend
            "from gpubench import report; report.render = lambda *_: 'no report'; "
            "from gpubench.run.cluster import ray_cluster; ray_cluster.JOIN_S = 600; "
            "import functools, ray; "  # the machines share a disk: Ray would take another's raylet
            f"ray.init = functools.partial(ray.init, _node_ip_address={self.address(rank)!r}); "
            "from gpubench.run.agent import client; "
            f"ray_cluster.GRACE_S = client.GRACE_S = {self.grace_s}; "
            "from gpubench.cli.main import main; main()"
        )
        return self.start(rank, sys.executable, "-c", script, *words, **self.auth | environ)

    def run(self, suite: Path, *words: object, **environ: str) -> subprocess.Popen[str]:
        """``gpubench run`` on all of them, from the head."""
        address = f"--ray={self.address(0)}:{PORT}"
        return self.gpubench(0, "run", suite, address, *words, **environ)

    def pids(self, rank: int) -> list[int]:
        """Every process on that host."""
        return [int(pid) for pid in _ip("netns", "pids", self.names[rank]).split()]

    def processes(self, rank: int) -> dict[int, str]:
        """What runs on that host: the command by PID."""
        found = {}
        for pid in self.pids(rank):
            with suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        return found

    def signal(self, rank: int, number: int, of: str = "") -> None:
        """Send it to every process there whose command holds ``of``."""
        for pid, command in self.processes(rank).items():
            if of in command:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def down(self) -> None:
        """Nothing is left, whatever the test has done."""
        for name in (*self.names, self._switch):
            with suppress(subprocess.CalledProcessError):
                for pid in _ip("netns", "pids", name).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                _ip("netns", "delete", name)
        for process in self._processes:  # now nobody holds its pipes
            process.kill()
            process.communicate()
        self._processes.clear()
        for temp in self._temps:
            shutil.rmtree(temp, ignore_errors=True)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout


@contextmanager
def machines(count: int) -> Iterator[Machines]:
    """So many hosts; the test is skipped where there can be none."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip`: apt-get install iproute2")
    hosts = Machines(count)
    try:
        try:
            hosts.up()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces, run as root: {error.stderr.strip()}")
        yield hosts
    finally:
        hosts.down()


def until(
    true: Callable[[], bool], of: subprocess.Popen[str] | None = None, limit_s: float = 150.0
) -> None:
    """Wait for a condition; ``of``: the process that is to make it true: its words tell why not."""
    end = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > end or (of is not None and of.poll() is not None):
            said = ""
            if of is not None:
                of.terminate()
                said = "\n".join(of.communicate(timeout=30))
            raise AssertionError(f"it did not become true: {said}")
        time.sleep(0.05)


def outcome(process: subprocess.Popen[str], limit_s: float = 150.0) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = process.communicate(timeout=limit_s)
    return process.returncode, out, err


class Cluster:
    """Ray on the hosts of ``hosts``."""

    def __init__(self, hosts: Machines, count: int = 0, **environ: str) -> None:
        """``count``: of those that start, without which all do."""
        self.hosts, self._environ = hosts, environ
        for rank in range(count or len(hosts.names)):
            self.start(rank)

    def start(self, rank: int) -> None:
        """Ray there; returns when it has joined."""
        process = self.hosts.ray(rank, **self._environ)
        assert process.stdout is not None
        if not any("Ray runtime started" in line for line in process.stdout):
            raise AssertionError(process.communicate()[1])

    def kill(self, rank: int) -> None:
        """As a machine that loses its power."""
        self.hosts.signal(rank, signal.SIGKILL)


def finished(file: RecordFile, replicas: int) -> list[str]:
    return [r.status for r in file.records if r.cell.replicas == replicas]


def running(out: Path, replicas: int) -> bool:
    """Whether a cell of so many replicas has been measured."""
    return begun(out) and "ok" in finished(read(out), replicas)


def ours(hosts: Machines) -> list[str]:
    """Processes of gpubench on any host."""
    found = [hosts.processes(rank) for rank in range(len(hosts.names))]
    return [text for host in found for text in host.values()
            if "gpubench.run" in text or "NodeActor" in text]  # fmt: skip

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

GPUBENCH = """
import os
os.sched_setaffinity(0, {{{core}}})
from gpubench.cli.main import main
main()
"""
"""On a host that looks as if it had one core."""
PORT = 29_517
SECRET = "a secret of these tests"  # noqa: S105


class Machines:
    """``count`` hosts, 10.77.0.1 and on."""

    def __init__(self, count: int) -> None:
        self._tag = f"gpubench{os.getpid()}"
        self._switch = f"{self._tag}-switch"
        self.names = [f"{self._tag}-{rank}" for rank in range(count)]
        self._processes: list[subprocess.Popen[str]] = []

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

    def gpubench(self, rank: int, *words: object, **environ: str) -> subprocess.Popen[str]:
        """A command there."""
        cores = sorted(os.sched_getaffinity(0))
        script = GPUBENCH.format(core=cores[rank % len(cores)])
        return self.start(rank, sys.executable, "-c", script, *words, **environ)

    def run(self, suite: Path, rank: int, *words: object, **environ: str) -> subprocess.Popen[str]:
        """``gpubench run`` as node ``rank`` of all."""
        return self.gpubench(
            rank, "run", suite, "--nnodes", len(self.names), "--node-rank", rank,
            "--rdzv-endpoint", f"{self.address(0)}:{PORT}", *words,
            **{"GPUBENCH_SECRET": SECRET} | environ,
        )  # fmt: skip

    def listening(self, rank: int) -> list[str]:
        """Addresses and ports that anything on that host listens on: '10.77.0.1:29517'."""
        found = []
        for table in ("tcp", "tcp6"):
            inside = ("netns", "exec", self.names[rank], "cat", f"/proc/net/{table}")
            for line in _ip(*inside).splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                address, port = local.split(":")
                if state == "0A" and table == "tcp":
                    host = ".".join(str(byte) for byte in bytes.fromhex(address)[::-1])
                    found.append(f"{host}:{int(port, 16)}")
                elif state == "0A":
                    found.append(f"[{address}]:{int(port, 16)}")
        return found

    def pids(self, rank: int) -> list[int]:
        """Every process on that host."""
        return [int(pid) for pid in _ip("netns", "pids", self.names[rank]).split()]

    def down(self) -> None:
        """Nothing is left, whatever the test has done."""
        for process in self._processes:
            process.kill()
            process.communicate()
        for name in (*self.names, self._switch):
            with suppress(subprocess.CalledProcessError):
                for pid in _ip("netns", "pids", name).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                _ip("netns", "delete", name)


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


def until(true: object, limit_s: float = 150.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + limit_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)


def outcome(process: subprocess.Popen[str], limit_s: float = 150.0) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = process.communicate(timeout=limit_s)
    return process.returncode, out, err

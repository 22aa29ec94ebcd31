"""torch.distributed's TCPStore as the nodes use it: queues, by keys of our own.

Queues, because nobody who adds to one can replace what others have put there, and what is read is
gone.

The only module of the driver's side that imports torch, and only where there are several nodes. The
store has no authentication: `gpubench.run.cluster.channel` seals what goes through it. Nothing of
torch.distributed that pickles is used; there is no process group.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

from gpubench.errors import GpubenchError, InputError
from gpubench.run.cluster.rendezvous import Membership, addresses

PREFIX = "gpubench/1"
"""Of every key; torchrun's store holds its own ones too."""
RETRY_S = 0.5
ATTEMPT_S = 2.0


class StoreLost(GpubenchError):
    """The connection to the store is broken."""


class Store:
    """One connection. While one thread waits in `pop`, others wait for it.

    Methods raise StoreLost; on a cut link they may never return.

    Only such calls are used as let other threads run meanwhile. ``queue_len`` and ``list_keys`` of
    torch 2.15 keep the interpreter's lock while they wait for the network, and nobody would be
    left to notice that the link is cut.
    """

    def __init__(self, tcp: Any) -> None:
        self._tcp = tcp
        self._timeout_s = 0.0

    def push(self, queue: str, value: bytes) -> None:
        """Append to a queue."""
        with _translated():
            self._tcp.queue_push(f"{PREFIX}/{queue}", value)

    def pop(self, queue: str, timeout_s: float) -> bytes | None:
        """Take the first of a queue; None when there was none for so long."""
        from torch.distributed import DistNetworkError, DistStoreError

        if timeout_s not in (0, self._timeout_s):
            self._tcp.set_timeout(timedelta(seconds=timeout_s))
            self._timeout_s = timeout_s
        try:
            return bytes(self._tcp.queue_pop(f"{PREFIX}/{queue}", block=timeout_s > 0))
        except DistNetworkError as error:
            raise StoreLost(_first_line(error)) from error
        except DistStoreError:  # nothing came
            return None

    def holds(self, queue: str) -> bool:
        """Whether there is anything in a queue."""
        with _translated():
            return bool(self._tcp.check([f"{PREFIX}/{queue}"]))


@contextmanager
def _translated() -> Iterator[None]:
    """torch's errors as StoreLost."""
    from torch.distributed import DistError

    try:
        yield
    except DistError as error:
        raise StoreLost(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def connector(member: Membership, limit_s: float) -> Callable[[], Store]:
    """Connects to the run's store; rank 0's first connection keeps it, unless torchrun does."""
    keeps = [member.rank == 0 and not member.hosted]

    def connect() -> Store:
        if not (keeps and keeps.pop()):
            return reach(member, limit_s)
        listening = _listen(member)
        address = listening.getsockname()[0]
        return Store(_tcp(member, address, master=listening.detach()))

    return connect


def _listen(member: Membership) -> socket.socket:
    """On the endpoint's address and nowhere else; TCPStore by itself would on all addresses.

    Raises InputError where the address is not this machine's, or its port is taken.
    """
    address = addresses(member)[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, member.port), family=family, backlog=128)
    except OSError as error:
        hints = {
            errno.EADDRINUSE: "another process has that port; choose another one",
            errno.EADDRNOTAVAIL: "that is not an address of this machine, which is rank 0; "
            "give one of its own, the same on every node",
        }
        code = error.errno or 0
        why = hints.get(code, os.strerror(code))
        raise InputError(f"--rdzv-endpoint {member.endpoint}: {why}") from error


def reach(member: Membership, limit_s: float) -> Store:
    """A connection to the store that another process keeps. Raises InputError after ``limit_s``.

    Tried with plain sockets first: TCPStore's own attempts cannot be interrupted.
    """
    end = monotonic() + limit_s
    while True:
        try:
            with socket.create_connection((member.host, member.port), ATTEMPT_S) as tried:
                address = tried.getpeername()[0]
            return Store(_tcp(member, address))
        except OSError as error:
            if monotonic() > end:
                raise InputError(
                    f"{member.endpoint}: nothing answers there for {limit_s:g} s "
                    f"({error.strerror or error}); start rank 0, or correct --rdzv-endpoint"
                ) from error
        sleep(RETRY_S)


def _tcp(member: Membership, address: str, master: int | None = None) -> Any:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed import DistError, TCPStore

    try:
        return TCPStore(
            address,
            member.port,
            is_master=master is not None,
            timeout=timedelta(seconds=30),
            wait_for_workers=False,
            master_listen_fd=master,
        )
    except DistError as error:
        if master is not None:
            with suppress(OSError):
                os.close(master)
        raise InputError(f"{member.endpoint}: no store there: {_first_line(error)}") from error

"""Where the store listens, and how it is reached; the store itself is in test_machines."""

from __future__ import annotations

import socket

import pytest

from gpubench.errors import InputError
from gpubench.run.cluster.rendezvous import Membership
from gpubench.run.cluster.transport import _listen, reach


@pytest.fixture
def taken() -> socket.socket:
    """Something that listens on 127.0.0.1."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    return listening


def test_it_listens_on_the_address_given_only() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with _listen(Membership(2, 0, "127.0.0.1", port)) as listening:
        assert listening.getsockname() == ("127.0.0.1", port)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), 5)


def test_a_port_that_is_taken_is_bad_input(taken: socket.socket) -> None:
    with taken, pytest.raises(InputError, match="another process has that port"):
        _listen(Membership(2, 0, "127.0.0.1", taken.getsockname()[1]))


def test_an_address_of_another_machine_is_bad_input() -> None:
    with pytest.raises(InputError, match="not an address of this machine"):
        _listen(Membership(2, 0, "192.0.2.1", 29500))  # reserved for documentation


def test_a_store_that_is_not_there_is_bad_input(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    taken.close()
    with pytest.raises(InputError, match=r"nothing answers there for 0\.1 s"):
        reach(Membership(2, 1, "127.0.0.1", port), 0.1)

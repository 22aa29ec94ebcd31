"""What a third party's class leaves out is filled in, once, and nothing of its own is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubench import plugins
from gpubench.backends import base
from tests.backends import tiny
from tests.backends.test_contract_can_fail import Honest


class Plain:
    """The least that a backend may be."""

    name = summary = "plain"
    options = preload = ()

    def probe(self) -> dict[str, str]:
        return {}

    def unsupported(self, cell: Any) -> None:
        return None

    def prepare(self, cell: Any, model: Any, cache: Any) -> Path:
        return Path()

    def open(self, cell: Any, artefact: Path, device: Any) -> Any:
        return Honest()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> base.Backend:
    monkeypatch.setattr(plugins, "get", lambda group, name: Plain())
    return base.get("plain")


def test_a_backend_that_says_little(plain: base.Backend, tmp_path: Path) -> None:
    assert (plain.name, plain.computes, plain.roofline) == ("plain", True, True)
    assert plain.in_flight(tiny.cell("plain"), 8) == 1
    (tmp_path / "net.bin").write_bytes(b"1")
    copied = plain.export(tmp_path / "net.bin", tmp_path / "out")
    assert copied == tmp_path / "out/net.bin"
    assert copied.read_bytes() == b"1"


def test_a_session_that_says_little(plain: base.Backend) -> None:
    with base.open_session(plain, tiny.cell("plain"), Path(), base.Device("cpu")) as session:
        assert session.in_flight == 0
        assert session.device_input is None
        assert session.counters() == {}
        assert not session.attach([np.zeros((4, 3, tiny.CROP, tiny.CROP), np.float32)])
        images = tiny.images(4, 1)
        session.copy_in(images)
        session.run()
        ticket = session.enqueue_out()
        assert np.allclose(session.collect(ticket), tiny.reference(images), rtol=1e-4, atol=1e-4)
        session.close()


class Full(Honest):
    """Has more, and sets some of it only when it is entered."""

    def __enter__(self) -> Full:
        self.facts = {"really": "entered"}
        return self

    def __exit__(self, *reason: object) -> None:
        self.left = reason

    def counters(self) -> dict[str, int]:
        return {"recompilations": 3}

    def enqueue_out(self) -> str:
        return "ticket"

    def collect(self, ticket: str) -> str:
        return f"answer to {ticket}"


def test_what_a_session_has_of_its_own_is_used() -> None:
    own = Full()
    assert base.complete(own).in_flight == 1, "as many as before that could be said"
    with base.complete(own) as session:
        assert session.facts == {"really": "entered"}
        assert session.counters() == {"recompilations": 3}
        assert session.collect(session.enqueue_out()) == "answer to ticket"
        assert session.run == own.run, "bound: a call is not one through another"
        own.facts = {"really": "ran"}
        assert session.facts == {"really": "ran"}, "what ran may show only when it has run"
    assert own.left == (None, None, None)


def test_a_number_without_the_methods_means_nothing() -> None:
    own = Honest()
    own.in_flight = 3  # type: ignore[attr-defined]
    assert base.complete(own).in_flight == 0


def test_what_inherits_is_left_as_it_is() -> None:
    from gpubench.backends.null import NullSession

    session = NullSession((1, 2))
    assert base.complete(session) is session

"""The fake backends behave: the harness's own tests lean on them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubench.backends import base
from gpubench.errors import CellFailed, Unavailable
from tests.backends import tiny

FAKES = Path(__file__).parents[1] / "fakes"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> base.Backend:
    monkeypatch.syspath_prepend(FAKES)
    return base.get("fake")


def _open(fake: base.Backend, **options: Any) -> base.Session:
    return fake.open(tiny.cell("fake", options=options), Path(), base.Device("cpu", 0, (0,)))


def _answer(session: base.Session) -> Any:
    session.copy_in(tiny.images(4))
    session.run()
    session.sync()
    return session.copy_out()


def test_registered_only_on_request(fake: base.Backend) -> None:
    assert {"fake", "fake-missing"} <= set(base.names())
    with pytest.raises(Unavailable) as caught:
        base.get("fake-missing").probe()
    assert caught.value.remedy
    code = "from gpubench.backends import base; print(base.names())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fake" not in done.stdout


def test_answers_are_honest_and_tell_images_apart(fake: base.Backend) -> None:
    logits = sys.modules["gpubench_fakes"].logits
    got = _answer(_open(fake))
    assert (got == logits(tiny.images(4))).all()
    assert not np.allclose(got[0], got[1])
    assert len(set(logits(tiny.images(64)).argmax(1))) > 4


@pytest.mark.parametrize("where", ["copy_in", "run", "sync", "copy_out"])
def test_it_breaks_where_told(fake: base.Backend, where: str) -> None:
    with pytest.raises(RuntimeError, match=f"told to fail in {where}"):
        _answer(_open(fake, fail=where))


@pytest.mark.parametrize(("fail", "error"), [("open", RuntimeError), ("fallback", CellFailed)])
def test_it_breaks_when_opened(fake: base.Backend, fail: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        _open(fake, fail=fail)


def test_it_breaks_before_it_is_opened(fake: base.Backend) -> None:
    model, cache = tiny.Model(Path()), None
    assert fake.unsupported(tiny.cell("fake", options={"fail": "unsupported"}))
    for fail, error in (("prepare", RuntimeError), ("unavailable-prepare", Unavailable)):
        with pytest.raises(error):
            fake.prepare(tiny.cell("fake", options={"fail": fail}), model, cache)  # type: ignore[arg-type]
    assert fake.prepare(tiny.cell("fake"), model, cache).exists()  # type: ignore[arg-type]


def test_it_answers_wrongly_where_told(fake: base.Backend) -> None:
    right = _answer(_open(fake))
    assert (_answer(_open(fake, fail="wrong")) != right).all()
    wrong_rows = (_answer(_open(fake, fail="wrong-slot")) != right).any(1)
    assert wrong_rows.tolist() == [False, False, False, True]


def test_it_runs_out_of_memory_and_counts(fake: base.Backend) -> None:
    with pytest.raises(MemoryError):
        _answer(_open(fake, fail="oom"))
    session: Any = _open(fake, fail="recompile")
    before = session.counters()["recompilations"]
    session.run()
    assert session.counters()["recompilations"] > before


def test_it_takes_its_time(fake: base.Backend) -> None:
    session = _open(fake, latency_us=2000.0)
    start = time.perf_counter()
    session.run()
    assert time.perf_counter() - start >= 2e-3


@pytest.mark.parametrize(("fail", "code"), [("sigkill", -9), ("sigsegv", -11)])
def test_it_dies_by_signal(fail: str, code: int) -> None:
    script = (
        "from gpubench.backends import base; from tests.backends import tiny; from pathlib import "
        f"Path; base.get('fake').open(tiny.cell('fake', options={{'fail': {fail!r}}}), Path(), "
        "base.Device('cpu')).run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": f"{FAKES}:{FAKES.parents[1]}"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code

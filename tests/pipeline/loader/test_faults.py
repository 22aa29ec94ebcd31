"""Workers that raise, die or hang, and closing in every state; `nothing_left` looks after each."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from gpubench.errors import CellFailed
from gpubench.pipeline.loader import Loader
from tests.pipeline.loader.conftest import KINDS, Open

each_kind = pytest.mark.parametrize("kind", KINDS)


def use(one: Loader, batches: int) -> None:
    for _ in range(batches):
        one.release(one.next())


@each_kind
def test_what_a_decoder_raises_comes_out_of_next_with_the_pictures_name(
    open_numbers: Open, kind: str
) -> None:
    def fail(index: int) -> None:
        if index == 5:
            raise KeyError("no table")

    one = open_numbers(8, 2, before=fail, kind=kind)
    with pytest.raises(CellFailed, match=r"numbers broke at 'picture-5.jpg': KeyError") as caught:
        use(one, 5)
    assert caught.value.kind == "error"
    with pytest.raises(CellFailed, match=r"picture-5.jpg"):  # and again: nothing hangs later
        one.next()


@each_kind
def test_no_memory_is_told_apart(open_numbers: Open, kind: str) -> None:
    def fail(index: int) -> None:
        raise MemoryError

    with pytest.raises(CellFailed) as caught:
        open_numbers(8, 2, before=fail, kind=kind).next()
    assert caught.value.kind == "out-of-memory"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_is_a_crash_at_that_picture(
    open_numbers: Open, how: signal.Signals
) -> None:
    def die(index: int) -> None:
        if index == 5:
            signal.signal(how, signal.SIG_DFL) if how != signal.SIGKILL else None
            os.kill(os.getpid(), how)

    one = open_numbers(8, 2, before=die, kind="processes")
    with pytest.raises(CellFailed, match=rf"{how.name}.*'picture-5.jpg'") as caught:
        use(one, 5)
    assert caught.value.kind == "crash"


@each_kind
@pytest.mark.parametrize("batches", [0, 1, 7])
def test_closing_early_midway_and_twice(open_numbers: Open, kind: str, batches: int) -> None:
    one = open_numbers(30, 4, kind=kind)
    use(one, batches)
    one.close()
    one.close()
    with pytest.raises(ValueError, match="closed"):
        one.next()


@each_kind
def test_closing_when_all_slots_are_full_or_held(open_numbers: Open, kind: str) -> None:
    one = open_numbers(30, 4, kind=kind, depth=2)
    held = [one.next(), one.next()]
    one.close()
    assert (held[0].images == held[0].images).all()  # memory lives as long as who reads it


def test_closing_while_processes_hang(open_numbers: Open) -> None:
    with open_numbers(30, 4, before=lambda _: time.sleep(1000), kind="processes"):
        pass


def test_closing_while_threads_are_busy(open_numbers: Open) -> None:
    with open_numbers(30, 4, before=lambda _: time.sleep(0.1)):
        pass


def test_processes_die_with_the_one_that_loads(open_numbers: Open) -> None:
    """Forked, so that it can be killed as the agent kills a worker."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        try:
            one = open_numbers(30, 4, before=lambda _: time.sleep(1000), kind="processes")
            os.write(writer, b" ".join(b"%d" % child for child in one._pool._children.values()))
            time.sleep(1000)
        finally:
            os._exit(1)
    os.close(writer)
    children = [int(word) for word in os.read(reader, 1000).split()]
    os.close(reader)
    assert len(children) == 2
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    end = time.monotonic() + 30
    while any(_lives(child) for child in children):
        assert time.monotonic() < end
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

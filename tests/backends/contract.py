"""What every session must do; one function, used on CPU and on CUDA alike."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import numpy as np

from gpubench.backends.base import Backend, Session, complete
from gpubench.pipeline.loader.ring_buffer import Ring
from tests.backends import tiny

TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 1e-2, "bf16": 5e-2, "amp": 5e-2, "int8": 0.2}


def answer(session: Session, images: Any) -> Any:
    """Logits of one batch."""
    session.copy_in(images)
    session.run()
    session.sync()
    return session.copy_out()


def same(got: Any, expected: Any, tolerance: float) -> bool:
    """Whether every image's logits are within ``tolerance``, relative to their norm."""
    error = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return bool((error < tolerance).all())  # not-a-number is False


def check_shapes(session: Session, batch: int) -> None:
    """Shape, type, ownership; facts are JSON."""
    images = tiny.images(batch)
    untouched = images.copy()
    session.copy_in(images)
    session.sync()  # before the first run, as the worker does
    first = answer(session, images)
    assert first.shape == (batch, tiny.CLASSES)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    assert (images == untouched).all()
    kept = first.copy()
    second = answer(session, tiny.images(batch, seed=7))
    assert not np.shares_memory(first, second)
    assert (first == kept).all()
    assert session.facts
    json.dumps(session.facts)


def check_answers(session: Session, batch: int, precision: str) -> None:
    """Right at every slot, for whatever was copied in last, however often it is run."""
    tolerance = TOLERANCE[precision]
    one, two = tiny.images(batch, seed=1), tiny.images(batch, seed=2)
    right_one, right_two = tiny.reference(one), tiny.reference(two)
    assert not same(right_one, right_two, tolerance), "the test cannot tell the two apart"

    got_one = answer(session, one)
    assert same(got_one, right_one, tolerance)
    assert same(answer(session, two), right_two, tolerance)
    assert same(answer(session, one[::-1].copy()), right_one[::-1], tolerance)
    session.run()
    session.run()
    session.sync()
    assert same(session.copy_out(), right_one[::-1], tolerance)

    mixed = one.copy()
    mixed[-1] = two[-1]
    got = answer(session, mixed)
    assert same(got[:-1], right_one[:-1], tolerance)
    assert same(got[-1:], right_two[-1:], tolerance)


def check_pipelining(session: Session, batch: int, precision: str) -> None:
    """Batches in flight do not disturb each other, and the caller may reuse its array."""
    buffer = np.empty_like(tiny.images(batch))
    for seed in range(7):
        buffer[...] = tiny.images(batch, seed)
        session.copy_in(buffer)
        session.run()
        buffer[...] = np.nan
        if seed % 3 == 2:
            expected = tiny.reference(tiny.images(batch, seed))
            assert same(session.copy_out(), expected, TOLERANCE[precision])
    session.sync()
    expected = tiny.reference(tiny.images(batch, 6))
    assert same(session.copy_out(), expected, TOLERANCE[precision])


def slots(batch: int, count: int = 3) -> list[Any]:
    """Arrays as the loader's: page-aligned, in memory that processes share."""
    return Ring(count, batch, tiny.SPEC, 1, encoded=False).slots


def check_attached(session: Session, arrays: list[Any], batch: int, precision: str) -> None:
    """Right answers from attached arrays in turn, mixed with others; or `attach` says no."""
    tolerance = TOLERANCE[precision]
    assert not session.attach([np.zeros((batch + 1, 3, tiny.CROP, tiny.CROP), np.float32)])
    taken = session.attach(arrays)
    for seed in range(9):
        array = arrays[seed % len(arrays)] if seed % 4 else np.empty_like(arrays[0])
        array[...] = tiny.images(batch, seed)
        assert same(answer(session, array), tiny.reference(array), tolerance)
    if not taken or session.facts.get("cuda"):
        return
    session.copy_in(arrays[0])
    arrays[0][...] = tiny.images(batch, seed=20)  # nothing was copied: the run reads this
    session.run()
    session.sync()
    assert same(session.copy_out(), tiny.reference(arrays[0]), tolerance)


def check_fetching(session: Session, batch: int, precision: str) -> None:
    """Logits of a batch are collected while the next ones run."""
    tickets: deque[tuple[int, Any]] = deque()

    def collect() -> None:
        seed, ticket = tickets.popleft()
        expected = tiny.reference(tiny.images(batch, seed))
        assert same(session.collect(ticket), expected, TOLERANCE[precision])

    for seed in range(9):
        session.copy_in(tiny.images(batch, seed))
        session.run()
        tickets.append((seed, session.enqueue_out()))
        if len(tickets) > session.in_flight:
            collect()
    while tickets:
        collect()


def check(backend: Backend, session: Session, batch: int, precision: str) -> None:
    """Everything above; answers only where the backend computes any."""
    session = complete(session)
    check_shapes(session, batch)
    if backend.computes:
        check_answers(session, batch, precision)
        check_pipelining(session, batch, precision)
        check_attached(session, slots(batch), batch, precision)
        check_fetching(session, batch, precision)

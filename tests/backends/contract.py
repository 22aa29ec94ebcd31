"""What every session must do; one function, used on CPU and on CUDA alike."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gpubench.backends.base import Backend, Session
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


def check(backend: Backend, session: Session, batch: int, precision: str) -> None:
    """Everything above; answers only where the backend computes any."""
    check_shapes(session, batch)
    if getattr(backend, "computes", True):
        check_answers(session, batch, precision)
        check_pipelining(session, batch, precision)

"""Batches: their order, wrap-around, back-pressure, and pictures that are no use."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubench.errors import CellFailed, InputError, Unsupported
from gpubench.pipeline import loader
from gpubench.pipeline.loader.loader import better
from gpubench.pipeline.loader.ring_buffer import Ring
from gpubench.workload.data import preprocess
from tests.pipeline.loader.conftest import CROP, KINDS, Decoder, Open

each_kind = pytest.mark.parametrize("kind", KINDS)


def take(one: loader.Loader, batches: int) -> list[tuple[int, ...]]:
    """The next batches' indices; every row holds what its index says."""
    found = []
    for _ in range(batches):
        slot = one.next()
        assert slot.images.dtype == np.float32
        assert slot.images.shape[1:] == (3, CROP, CROP)
        assert (slot.images == np.array(slot.indices)[:, None, None, None]).all()
        found.append(slot.indices)
        one.release(slot)
    return found


@each_kind
def test_batches_come_in_order_and_wrap_around(open_numbers: Open, kind: str) -> None:
    one = open_numbers(10, 4, kind=kind, seed=3)
    flat = [index for batch in take(one, 25) for index in batch]
    assert sorted(flat[:10]) == list(range(10))
    assert flat == flat[:10] * 10
    assert flat[:10] != list(range(10))
    other = open_numbers(10, 4, kind=kind, seed=3)
    assert take(other, 1) == [tuple(flat[:4])]


@each_kind
def test_rewound_it_shows_the_same_again(open_numbers: Open, kind: str) -> None:
    one = open_numbers(48, 3, kind=kind, seed=3, depth=4)
    shown = take(one, 11)
    held = one.rewind(6, [one.next() for _ in range(4)])
    for slot in held:
        one.release(slot)
    again = take(one, 11)
    assert again[:4] == shown[7:], "about six batches, in whole rounds of slots"
    held = one.rewind(10**6, [one.next() for _ in range(4)])
    told = one.pictures(1, 3)
    for slot in held:
        one.release(slot)
    again = take(one, 4)
    assert [index for batch in again[1:] for index in batch] == told
    assert again == shown[2:6], "in the first round"


@each_kind
def test_a_batch_larger_than_the_data_set(open_numbers: Open, kind: str) -> None:
    for indices in take(open_numbers(3, 200, kind=kind), 5):
        assert len(indices) == 200
        assert set(indices) == {0, 1, 2}


def test_slots_are_the_arrays_of_batches_page_aligned(open_numbers: Open) -> None:
    one = open_numbers(10, 3, depth=2)
    addresses = [array.ctypes.data for array in one.slots]
    assert all(address % 4096 == 0 for address in addresses)
    spec = preprocess.assumed((7, 9), layout="NHWC", dtype="uint8")
    bytes_ = Ring(2, 5, spec, 1, encoded=False)
    assert [(slot.shape, str(slot.dtype)) for slot in bytes_.slots] == [((5, 7, 9, 3), "uint8")] * 2
    assert bytes_.stride == 4096
    for number in range(5):
        slot = one.next()
        assert slot.number == number
        assert slot.images is one.slots[number % 2]
        one.release(slot)


@each_kind
def test_workers_stop_when_all_slots_are_full(
    open_numbers: Open, kind: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def count(_: int) -> None:
        with log.open("ab") as file:
            file.write(b".")

    def begun() -> int:
        return log.stat().st_size if log.exists() else 0

    one = open_numbers(100, 4, before=count, kind=kind, depth=3)
    full = 12
    assert settled(begun, full)
    slot = one.next()
    assert settled(begun, full)
    one.release(slot)
    assert settled(begun, full + 4)


def settled(value: Callable[[], int], wanted: int) -> bool:
    """Whether the value comes to be the wanted one, and then stays so for a while."""
    end = time.monotonic() + 30
    while value() != wanted and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    return value() == wanted


def test_asking_for_more_than_the_slots_is_a_mistake_not_a_wait(open_numbers: Open) -> None:
    one = open_numbers(10, 4, depth=2)
    held = [one.next(), one.next()]
    with pytest.raises(ValueError, match="all 2 slots"):
        one.next()
    one.release(held[1])
    with pytest.raises(ValueError, match="all 2 slots"):
        one.next()
    one.release(held[0])
    assert one.next().number == 2


@each_kind
def test_unusable_pictures_are_skipped_and_counted_by_reason(open_numbers: Open, kind: str) -> None:
    bad = {2: "truncated", 3: "truncated", 7: "damaged"}
    one = open_numbers(9, 4, bad=bad, kind=kind)
    flat = [index for batch in take(one, 9) for index in batch]
    assert set(flat) == set(range(9)) - set(bad)
    assert flat[:9] == flat[9:18]
    assert one.facts["skipped"] == {"truncated": 2, "damaged": 1}
    again = open_numbers(9, 4, bad=bad, kind=kind, cores=one.facts["cores"][:1])
    assert [index for batch in take(again, 9) for index in batch] == flat


@each_kind
def test_what_a_decoder_cannot_do_is_unsupported_wherever_it_is_found(
    open_numbers: Open, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def refuse(*_: object) -> None:
        raise Unsupported("decoder 'numbers' decodes in colour")

    monkeypatch.setattr(Decoder, "open", refuse)
    with pytest.raises(Unsupported, match="in colour"):
        open_numbers(3, 1, kind=kind).next()


@each_kind
def test_nothing_usable_is_an_error_with_the_reasons(open_numbers: Open, kind: str) -> None:
    bad = {i: "not an image" if i else "empty" for i in range(5)}
    one = open_numbers(5, 4, bad=bad, kind=kind)
    with pytest.raises(InputError, match=r"no usable picture among 5 .*4 not an image, 1 empty"):
        one.next()
    with pytest.raises(InputError, match="no usable picture"):
        open_numbers(0, 4, kind=kind)
    with pytest.raises(InputError, match="no usable picture"):
        open_numbers(5, 4, bad=bad, kind="auto")


def test_auto_tries_both_and_keeps_the_better(open_numbers: Open) -> None:
    one = open_numbers(10, 4, kind="auto")
    rates: dict[str, Any] = one.facts["images_per_s"]
    assert set(rates) == set(KINDS)
    assert min(rates.values()) > 0
    assert one.facts["kind"] == better(rates)
    assert take(one, 25) == take(open_numbers(10, 4), 25)


def test_threads_must_be_clearly_faster() -> None:
    """Else chance would decide anew in every repeat."""
    assert better({"threads": 1267, "processes": 1203}) == "processes"
    assert better({"threads": 1400, "processes": 1203}) == "threads"
    assert better({"threads": 1000, "processes": 1203}) == "processes"


def test_for_a_decoder_on_the_device_workers_only_read(open_numbers: Open) -> None:
    def never(_: int) -> None:
        raise AssertionError("decoded on the host")

    one = open_numbers(10, 4, before=never, on_device=True, kind="auto")
    for _ in range(6):
        slot = one.next()
        assert slot.images.shape == (0, 3, CROP, CROP)
        assert slot.encoded == [str(index).encode() for index in slot.indices]
        one.release(slot)
    assert one.facts["kind"] == "threads"
    assert one.facts["mean_encoded_bytes"] == 1
    with pytest.raises(CellFailed, match=r"processes.*on the GPU"):
        open_numbers(10, 4, on_device=True, kind="processes")

"""The data stages in the session's process, on pictures that are numbers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from gpubench.errors import CellFailed
from gpubench.pipeline.decoders import base
from gpubench.pipeline.readers import DeviceReader, Reader
from gpubench.workload.data.image_file import Unusable
from gpubench.workload.data.preprocess import Spec
from tests.pipeline.loader.conftest import Numbers

SPEC = Spec(size=(4, 4), resize=4)


class Decoder:
    """Fills a row with the number; refuses 7, and breaks at 13."""

    on_device = False

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"numbers": 1}

    def open(self, spec: Spec, index: int | None = None) -> Decoder:
        return self

    def decode(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self.decode(one) for one in data]
        if int(data) == 7:
            raise Unusable("unlucky")
        return int(data)

    def transform(self, pixels: Any, out: Any) -> None:
        if pixels == 13:
            raise ZeroDivisionError("thirteen")
        for row, value in enumerate(pixels) if isinstance(pixels, list) else [(..., pixels)]:
            out[row] = value


class Fed:
    """A session that keeps what it is fed."""

    device_input: Any = None

    def copy_in(self, images: Any) -> None:
        self.got = images[:, 0, 0, 0].tolist()


@pytest.fixture(autouse=True)
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "get", lambda name: Decoder())


def reader(data: Numbers, cores: tuple[int, ...], batch: int = 3, start: int = 0) -> Any:
    found = Reader(data, "numbers", SPEC, batch, cores, start)
    found.serve(Fed())  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("several", [False, True])
def test_batches_follow_one_another_and_leave_out_what_is_unusable(several: bool) -> None:
    own = tuple(os.sched_getaffinity(0))
    one = reader(Numbers(10, bad={1: "gone"}), own * 2 if several else own[:1], start=0)
    seen: list[float] = []
    for _ in range(4):
        one.load()
        seen += one.images[:, 0, 0, 0].tolist()
    one.close()
    expected = [0, 0, 2, 3, 4, 5, 6, 8, 9]  # of a batch, threads fill places in any order
    assert sorted(seen[:9]) == expected, "each once, then all over again"
    assert one.positions.unusable == {1: "gone", 7: "unlucky"}


def test_the_stages_one_by_one_do_the_same() -> None:
    one = reader(Numbers(6), (), start=5)
    for stage in one.parts().values():
        stage()
    assert list(one.parts()) == ["read", "decode", "transform"]
    one.hand_over()
    assert one._session.got == [5, 0, 1]


def test_pictures_are_shown_again_from_where_they_were_or_as_told() -> None:
    one = reader(Numbers(10, bad={1: "gone"}), (), start=0)
    for _ in range(4):
        one.load()
    seen = one.images[:, 0, 0, 0].tolist()
    for pictures in (3, 3 + 8 * 1000):
        one.positions.rewind(pictures)
        one.load()
        assert one.images[:, 0, 0, 0].tolist() == seen
    one.positions.follow([9, 1, 4])
    one.load()
    assert one.images[:2, 0, 0, 0].tolist() == [9, 4], "1 is known to be no use"


def test_a_set_without_a_usable_picture_says_so() -> None:
    with pytest.raises(CellFailed, match=r"no usable picture \(gone\)"):
        reader(Numbers(2, bad={0: "gone", 1: "gone"}), ()).load()


def test_what_a_decoder_raises_is_told_with_the_picture() -> None:
    with pytest.raises(CellFailed, match=r"numbers broke at 'picture-13.jpg': ZeroDivisionError"):
        reader(Numbers(20), (), start=12).load()


@pytest.mark.parametrize("exposed", [False, True])
def test_a_decoder_on_the_device_hands_over_there(exposed: bool) -> None:
    """On torch's CPU device: what differs on CUDA is torch's."""
    torch = pytest.importorskip("torch")
    session: Any = Fed()
    if exposed:
        session.device_input = torch.zeros((3, 3, 4, 4))
    one = DeviceReader(Numbers(6), "numbers", SPEC, 3, 0, 4, kind="cpu")
    one.serve(session)
    one.load()
    one.hand_over()
    got = session.device_input[:, 0, 0, 0].tolist() if exposed else session.got
    assert got == [4, 5, 0]
    assert one.host()[:, 0, 0, 0].tolist() == got
    slot = type("Slot", (), {"encoded": [b"3", b"2", b"1"], "indices": (3, 2, 1)})
    one.give(slot)
    assert one.host()[:, 0, 0, 0].tolist() == [3, 2, 1]
    assert one.facts == {"numbers": 1}
    assert np.isfinite(one.host()).all()


def test_a_decoder_on_the_device_leaves_out_what_is_unusable() -> None:
    pytest.importorskip("torch")
    session: Any = Fed()
    one = DeviceReader(Numbers(10, bad={1: "gone"}), "numbers", SPEC, 3, 0, 6, kind="cpu")
    one.serve(session)
    one.load()
    one.hand_over()
    assert session.got == [6, 9, 8], "9 stands for 7"
    assert one.positions.unusable == one.refused == {7: "unlucky"}
    slot = type("Slot", (), {"encoded": [b"7", b"2", b"7"], "indices": np.array((7, 2, 7))})
    one.give(slot)
    assert session.got == [0, 2, 2], "1 cannot be read"
    assert slot.encoded == [b"7", b"2", b"7"], "the loader's own are left alone"
    assert one.positions.unusable == {7: "unlucky", 1: "gone"}
    assert one.refused == {7: "unlucky"}


class Ahead(Decoder):
    """Decodes a batch ahead; finds out late that 5 is damaged, and has then lost all it had."""

    ahead, threads = 1, 0

    def __init__(self) -> None:
        super().__init__()
        self._damaged: set[bytes] = set()
        self.waited = 0

    def check(self, data: bytes) -> int:
        if int(data) == 7 or data in self._damaged:
            raise Unusable("unlucky")
        return int(data)

    def decode(self, data: list[bytes]) -> Any:
        return [self.check(one) for one in data]

    def settle(self, pixels: list[int]) -> None:
        self.waited += 1
        if 5 in pixels:
            self._damaged.add(b"5")
            raise base.Again

    def transform(self, pixels: list[int], out: Any) -> None:
        self.settle(pixels)
        super().transform(pixels, out)


def test_a_decoder_that_works_ahead_gives_the_batch_before(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    decoder, session = Ahead(), Fed()
    monkeypatch.setattr(base, "get", lambda name: decoder)
    one = DeviceReader(Numbers(20), "numbers", SPEC, 2, 0, 10, kind="cpu", threads=3)
    one.serve(session)  # type: ignore[arg-type]
    assert (decoder.threads, one.lanes) == (3, 3)

    def slot(*numbers: int) -> Any:
        encoded = [b"%d" % n for n in numbers]
        return type("Slot", (), {"encoded": encoded, "indices": numbers})

    assert one.give(slot(1, 2)) is None
    assert (one.give(slot(3, 7)), session.got) == ([1, 2], [1, 2])
    assert (one.give(slot(5, 6)), session.got) == ([3, 10], [3, 10]), "10 stands for 7"
    assert (one.give(slot(8, 9)), session.got) == ([11, 6], [11, 6]), "it had to decode again"
    assert (one.flush(), session.got) == ([8, 9], [8, 9])
    assert one.refused == {7: "unlucky", 5: "unlucky"}
    for stage in one.parts().values():
        before = decoder.waited
        stage()
        if stage == one._decode_and_wait:
            assert decoder.waited == before + 1, "a stage alone is waited for"
    one.hand_over()
    assert session.got == [12, 13]


def test_a_batch_that_is_refused_for_no_single_picture_is_told() -> None:
    pytest.importorskip("torch")
    one = DeviceReader(Numbers(10), "numbers", SPEC, 3, 0, 0, kind="cpu")
    one.serve(Fed())  # type: ignore[arg-type]
    decode = one._decoder.decode

    def whole(data: list[bytes]) -> Any:
        if len(data) > 1:
            raise Unusable("as a whole")
        return decode(data)

    one._decoder.decode = whole  # type: ignore[method-assign]
    with pytest.raises(Unusable, match="as a whole"):
        one.load()


def test_a_set_of_which_the_device_can_decode_nothing_says_so() -> None:
    pytest.importorskip("torch")

    class Sevens(Numbers):
        def read(self, index: int) -> bytes:
            return b"7"

    one = DeviceReader(Sevens(3), "numbers", SPEC, 2, 0, 0, kind="cpu")
    one.serve(Fed())  # type: ignore[arg-type]
    with pytest.raises(CellFailed, match=r"no usable picture \(unlucky\)"):
        one.load()

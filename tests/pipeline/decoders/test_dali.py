"""DALI's pipelines on the host, where DALI is installed, and what is said where it is not."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gpubench.errors import Unavailable
from gpubench.pipeline.check import difference
from gpubench.pipeline.decoders import base, dali, jpeg_fallback
from gpubench.workload.data.image_file import Unusable
from gpubench.workload.data.preprocess import Spec
from tests.hostile.test_pictures import USED
from tests.pipeline.decoders import samples

HERE = importlib.util.find_spec("nvidia.dali") is not None
SPECS = [Spec(size=(224, 224), resize=256), Spec(size=(96, 96), resize=80), *samples.ARRANGED[:-1]]


needs_dali = pytest.mark.skipif(not HERE, reason="needs: pip install 'gpubench[dali]'")


def made(one: Any, data: list[bytes], out: Any) -> None:
    """Decode and transform a batch; once more where it is told so."""
    for _ in range(2):
        with suppress(base.Again):
            return one.transform(one.decode(data), out)
    raise AssertionError("it was told twice")


@needs_dali
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_pipeline_keeps_the_references_geometry_a_batch_ahead(spec: Spec) -> None:
    """On the host; plain JPEGs in between what only the reference reads."""
    one, reference = dali.DaliPreprocessor(spec, None, {}), base.get("pil").open(spec)
    plain = [samples.jpeg(shape) for shape in samples.SHAPES]
    batches = [plain[:2], [*plain, USED["clear.png"]], plain[2:]]  # it grows, and shrinks
    begun = [one.decode(data) for data in batches]
    for data, pixels in zip(batches, begun, strict=True):
        out = torch.zeros((len(data), *spec.shape), dtype=getattr(torch, spec.dtype))
        one.transform(pixels, out)
        right = []
        for picture in data:
            right.append(np.empty(spec.shape, spec.dtype))
            reference.transform(reference.decode(picture), right[-1])  # type: ignore[arg-type]
        largest, mean = difference(spec, out.numpy(), np.stack(right))
        assert largest < 20
        assert mean < 0.3
    assert not one._made
    assert one.facts["threads"] == 1


@needs_dali
def test_after_a_damaged_picture_the_reference_decides_and_the_rest_goes_on() -> None:
    spec = SPECS[1]
    one = dali.DaliPreprocessor(spec, None, {})
    whole = samples.jpeg((90, 60))
    table = whole.index(b"\xff\xc4") + 5  # Huffman's: so many codes there cannot be
    dead = whole[:table] + b"\xff" * 16 + whole[table + 16 :]
    assert jpeg_fallback.size(dead), "its header is plain"
    out = torch.zeros((2, *spec.shape))
    with pytest.raises(Unusable):
        made(one, [whole, dead], out)
    with pytest.raises(Unusable):
        one.check(dead)
    made(one, [whole, whole], out)
    assert torch.isfinite(out).all()
    assert out.abs().sum() > 0


class Fake:
    """A pipeline that ends with a batch that ``fails`` (of its files), a batch ahead."""

    def __init__(self, spec: Spec, fails: Any) -> None:
        self._shape, self._fails = spec.shape, fails
        self._fed: list[list[bytes]] = []
        self._ahead: list[list[bytes]] = []
        self._prefetched = False

    def feed_input(self, name: str, value: Any) -> None:
        if name == "encoded":
            self._fed.append([file.tobytes() for file in value])

    def schedule_run(self) -> None:
        for _ in range(1 if self._prefetched else dali.Dali.ahead + 1):
            self._ahead.append(self._fed.pop(0))
        self._prefetched = True

    def outputs(self, stream: object = None) -> Any:
        self.stream = stream
        files = self._ahead.pop(0)
        if words := self._fails([files, *self._ahead]):
            raise RuntimeError(words)
        made = [torch.full(self._shape, float(len(file))) for file in files]
        return (SimpleNamespace(as_tensor=lambda: torch.stack(made)),)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """(a decoder, its faults so far) of which batches at hand, as functions of them, fail."""

    def make(fails: Any) -> Any:
        spec = SPECS[1]
        monkeypatch.setattr(dali, "pipeline", lambda *_: Fake(spec, fails))
        return dali.DaliPreprocessor(spec, None, {})

    return make


PLAIN = [samples.jpeg(shape) for shape in samples.SHAPES][:4]


@pytest.mark.parametrize("ahead", [False, True])
def test_of_a_batch_that_fails_the_damaged_picture_alone_is_the_references(
    faked: Any, ahead: bool
) -> None:
    """Whether DALI tells of it when it is asked for that batch, or for the one before."""
    dead = PLAIN[2]
    seen = slice(None) if ahead else slice(1)
    one = faked(lambda at_hand: any(dead in files for files in at_hand[seen]) and "broken")
    out = torch.zeros((4, *SPECS[1].shape))
    first, second = PLAIN[:2], PLAIN[2:]
    begun = [one.decode(first), one.decode(second)]
    if not ahead:
        one.transform(begun.pop(0), out[:2])
    with pytest.raises(base.Again):
        one.transform(begun[0], out[:2])
    assert one._damaged == {dead}
    made(one, second, out[2:])
    assert [int(row.flatten()[0]) for row in out[2:]] == [len(one.check(p)[0]) for p in second]
    assert one.check(dead)[0].startswith(b"P6"), "Pillow has read it"


@pytest.mark.parametrize("words", ["CUDA error: launch failure", "out of memory", "no nvJPEG here"])
def test_what_is_no_pictures_fault_is_an_error_and_not_pillow_under_another_name(
    faked: Any, words: str
) -> None:
    told: list[str] = []

    def fails(at_hand: list[list[bytes]]) -> str:
        every = words == "no nvJPEG here" and any(f[:2] != b"P6" for f in at_hand[0])
        if told and not every:
            return ""
        told.append(words)
        return words

    one = faked(fails)
    with pytest.raises(RuntimeError, match=words):
        one.transform(one.decode(PLAIN), torch.zeros((4, *SPECS[1].shape)))
    assert not one._damaged


def test_on_a_gpu_what_it_makes_is_bound_to_the_stream_that_reads_it(
    faked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DALI orders its own work before that stream's, and the reuse of the memory behind it."""
    one = faked(lambda _: "")
    one._index = 0
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the session's")
    one.transform(one.decode(PLAIN), torch.zeros((4, *SPECS[1].shape)))
    assert one._pipeline.stream == "the session's"
    assert not one._made, "it is let go once the copy of it is enqueued"


@pytest.mark.skipif(HERE, reason="DALI is installed")
def test_its_absence_has_a_remedy() -> None:
    with pytest.raises(Unavailable) as caught:
        base.get("dali").open(SPECS[0])
    assert "gpubench[dali]" in caught.value.remedy


def test_places_are_rows_first() -> None:
    size, start = dali.places(SPECS[0], [(500, 375), (375, 500)])
    assert [list(pair) for pair in size] == [[256, 341], [341, 256]]
    assert [list(pair) for pair in start] == [[16, 58], [58, 16]]

"""nvJPEG's decoder with torchvision's host decoder in its place."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from gpubench.errors import Unavailable, Unsupported
from gpubench.pipeline.check import difference
from gpubench.pipeline.decoders import _torchvision_ops, base, jpeg_fallback
from gpubench.pipeline.decoders.nvjpeg import NvJpeg, NvJpegPreprocessor, averaged
from gpubench.workload.data.image_file import Unusable
from gpubench.workload.data.preprocess import Spec
from tests.cuda_races import Gpu, Race, Stream, Tensor
from tests.hostile.test_pictures import SKIPPED, USED
from tests.pipeline.decoders import samples

SPEC = Spec(size=(64, 64), resize=80)


class FakeNvJpeg:
    """A batch at a time; it fails as a whole, as nvJPEG does."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self._decode = _torchvision_ops.operator("decode_jpeg")

    def __call__(self, data: list[torch.Tensor], mode: int, device: Any) -> list[torch.Tensor]:
        self.batches.append(len(data))
        return [self._decode(picture, mode, False) for picture in data]


@pytest.fixture
def fake() -> FakeNvJpeg:
    return FakeNvJpeg()


@pytest.fixture
def preprocessor(fake: FakeNvJpeg, monkeypatch: pytest.MonkeyPatch) -> NvJpegPreprocessor:
    monkeypatch.setattr(_torchvision_ops, "operator", lambda name: fake)
    made = NvJpeg().open(SPEC)
    monkeypatch.setattr(made, "_device", torch.device("cpu"))
    monkeypatch.setattr(made, "_ordered", lambda encoded: fake(encoded, 3, None))
    return made


def check(preprocessor: NvJpegPreprocessor, data: list[bytes]) -> None:
    out = torch.full((len(data), *SPEC.shape), 9.0)
    preprocessor.transform(preprocessor.decode(data), out)
    right, reference = np.empty(out.shape, np.float32), base.get("pil").open(SPEC)
    for picture, place in zip(data, right, strict=True):
        reference.transform(reference.decode(picture), place)  # type: ignore[arg-type]
    largest, mean = difference(SPEC, out.numpy(), right)
    assert largest < 1.5
    assert mean < 0.05


def test_a_batch_is_decoded_at_once_in_its_order(
    preprocessor: NvJpegPreprocessor, fake: FakeNvJpeg
) -> None:
    check(preprocessor, [samples.jpeg(shape) for shape in samples.SHAPES])
    assert fake.batches == [len(samples.SHAPES)]


def test_what_is_no_plain_jpeg_is_the_references(
    preprocessor: NvJpegPreprocessor, fake: FakeNvJpeg
) -> None:
    check(preprocessor, [USED["clear.png"], samples.jpeg((90, 60)), USED["cmyk.jpg"]])
    assert fake.batches == [1]


def test_one_damaged_picture_does_not_spoil_its_batch(
    preprocessor: NvJpegPreprocessor, fake: FakeNvJpeg
) -> None:
    whole = samples.jpeg((90, 60))
    cut = whole[: len(whole) // 2] + b"\xff\xd9"  # the host decoder takes that, with a warning
    dead = whole[:300] + b"\xff\xd9"
    with pytest.raises(Unusable):
        preprocessor.decode([whole, dead, cut])
    assert fake.batches[0] == len([d for d in (whole, dead, cut) if jpeg_fallback.size(d)])
    check(preprocessor, [whole, samples.jpeg((80, 60))])


@pytest.mark.parametrize(
    "words", ["torchvision not compiled with nvJPEG support", "CUDA out of memory"]
)
def test_a_decoder_that_can_read_nothing_is_not_the_reference_under_another_name(
    preprocessor: NvJpegPreprocessor, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    def broken(encoded: Any) -> Any:
        raise RuntimeError(words)

    host = base.get("torchvision").open(SPEC)
    monkeypatch.setattr(preprocessor, "_ordered", broken)
    monkeypatch.setattr(host, "_planes", broken)
    with pytest.raises(RuntimeError, match=words):
        preprocessor.decode([samples.jpeg((90, 60)), samples.jpeg((80, 60))])
    with pytest.raises(RuntimeError, match=words):
        host.decode(samples.jpeg((90, 60)))  # type: ignore[arg-type]


@pytest.mark.parametrize("file", SKIPPED)
def test_what_is_no_use_is_refused(preprocessor: NvJpegPreprocessor, file: str) -> None:
    with pytest.raises(Unusable):
        preprocessor.decode([samples.jpeg((90, 60)), SKIPPED[file][0]])


def _timed(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, *, ordered: bool) -> list[int]:
    """Three batches of a picture, enqueued before the first is done, by torchvision's own order."""
    own, theirs = gpu.current, Stream(gpu, "nvJPEG's")

    def decode(encoded: list[int], *_: object) -> list[Tensor]:
        picture = Tensor(gpu, encoded[0])  # of the current stream's memory
        theirs.work([], [picture.memory])
        gpu.current.wait_stream(theirs)
        return [picture]

    found = []
    with monkeypatch.context() as patch:
        patch.setattr(_torchvision_ops, "operator", lambda name: decode)
        made: Any = NvJpeg().open(SPEC)
        patch.setitem(sys.modules, "torch", gpu)  # type: ignore[arg-type]
        for number in range(3):
            [picture] = made._ordered([number]) if ordered else decode([number])
            found.append(picture.value)
            own.work([picture.memory], [])  # the resize, still to come when it is let go
            del picture
    return found


def test_nvjpeg_writes_only_what_nobody_reads_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _timed(monkeypatch, Gpu(), ordered=True) == [0, 1, 2]
    with pytest.raises(Race, match="nvJPEG's and network"):
        _timed(monkeypatch, Gpu(), ordered=False)
    waits = Gpu()
    _timed(monkeypatch, waits, ordered=True)
    for missing in range(len(waits.edges)):
        with pytest.raises(Race):
            _timed(monkeypatch, Gpu(missing), ordered=True)


def test_averaging_is_the_references() -> None:
    pixels = np.array(samples.photo((2101, 1999)))
    ours = averaged(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    right = jpeg_fallback.averaged(pixels)
    assert ours.shape == right.shape
    assert np.abs(ours.astype(int) - right).max() <= 1


def test_a_torchvision_without_it_and_a_resize_it_has_not() -> None:
    with pytest.raises(Unavailable, match="without decode_nothing"):
        _torchvision_ops.operator("decode_nothing")
    with pytest.raises(Unsupported, match="lanczos"):
        NvJpeg().open(Spec(size=(64, 64), resize=64, interpolation="lanczos"))

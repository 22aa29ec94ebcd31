"""Whole sessions and pipelines, of torch's own operators, under the race detector: no GPU.

Every path is run once, and once more for each of its waits, without that one: a race, or the wait
is named here as one that another makes needless.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace as Bag
from typing import Any

import numpy as np
import pytest

from gpubench.backends import onnxruntime as ort
from gpubench.backends._trt_session import TrtSession
from gpubench.backends.base import Device
from gpubench.backends.torch_eager import TorchEager
from gpubench.measure.in_flight import Transfers
from gpubench.pipeline.decoders import _torchvision_ops, jpeg_fallback
from gpubench.pipeline.iteration import Overlapped
from gpubench.pipeline.readers import DeviceReader
from tests.backends import tiny
from tests.backends.fake_tensorrt import FakeTrt
from tests.cuda_races import Race, Stream, Watched

pytestmark = pytest.mark.usefixtures("small_network")
BATCH, GPU = 2, Device("cuda", 0)
BATCHES = [tiny.images(BATCH, seed) for seed in range(5)]
RIGHT = [tiny.reference(images) for images in BATCHES]


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpubench.backends._trt_session.ALIGNMENT", 1)  # the host's is less
    monkeypatch.setattr("gpubench.workload.models.builder.load_module", lambda _: tiny.module())


class Open:
    """Sessions of each kind on a ``gpu``, and what they answer."""

    def __init__(self, gpu: Watched, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.gpu, self._patch, self._folder = gpu, monkeypatch, folder

    def torch(self, **options: Any) -> Any:
        cell = tiny.cell("torch-eager", device="cuda", batch_size=BATCH, options=options)
        return self._opened(TorchEager().open(cell, tiny.Model(self._folder).state(), GPU))

    def graph(self) -> Any:
        return self.torch(cuda_graph=True)

    def onnxruntime(self, streams: int = 1) -> Any:
        """Its own part is the library's: by address, on the stream that it was given."""
        gpu = self.gpu

        def made(*given: Any) -> Any:
            bound: dict[str, int] = {}

            def bind(name: str, *rest: Any) -> None:
                bound[name] = rest[-1]

            def run(*_: object) -> None:
                stream = gpu.by_handle(int(given[5]["user_compute_stream"]))
                stream.work([gpu.memory(bound["images"])], [gpu.memory(bound["logits"])])
                seen = gpu.view(bound["images"])
                answers = [r for b, r in zip(BATCHES, RIGHT, strict=True) if (b == seen).all()]
                gpu.view(bound["logits"])[...] = answers[0] if answers else 0

            shapes = {"images": BATCHES[0].shape, "logits": (BATCH, tiny.CLASSES)}
            nodes = {n: [Bag(name=n, shape=[*s], type="tensor(float)")] for n, s in shapes.items()}
            return Bag(
                get_inputs=lambda: nodes["images"], get_outputs=lambda: nodes["logits"],
                io_binding=lambda: Bag(bind_input=bind, bind_output=bind), run_with_iobinding=run,
            )  # fmt: skip

        self._patch.setattr(ort, "_session", made)
        self._patch.setattr(ort, "_facts", lambda *_: {"provider_options": {}})
        cell = tiny.cell("onnxruntime", device="cuda", batch_size=BATCH,
                         options={"streams": streams})  # fmt: skip
        return self._opened(ort.OnnxRuntime().open(cell, self._folder, GPU))

    def tensorrt(self) -> Any:
        trt = _Trt(self.gpu)
        return self._opened(TrtSession(trt, "tensorrt", b"a plan", BATCH, GPU, graph=False))

    def _opened(self, session: Any) -> Any:
        self.gpu.begin()
        return session


class _Trt(FakeTrt):
    def __init__(self, gpu: Watched) -> None:
        views = type("Views", (), {"__getitem__": lambda _, at: Bag(array=gpu.view(at), at=at)})()
        super().__init__(Bag(memory=views, capturing=None))  # type: ignore[arg-type]
        self._gpu = gpu

    def say(self, name: str, default: Any, *given: Any) -> Any:
        if name == "execute_async_v3":
            tensors = self.context._tensors
            images, logits = (self._gpu.memory(tensors[n].at) for n in ("images", "logits"))
            self._gpu.by_handle(given[0]).work([images], [logits])
        return super().say(name, default, *given)


def of_fake_engine(images: Any) -> Any:
    return images.mean(axis=(1, 2, 3))[:, None] * np.arange(1, 5)


INPUTS = {"torch": BATCHES, "graph": BATCHES, "onnxruntime": BATCHES} | {
    "tensorrt": [np.ascontiguousarray(images[..., :2, :2]) for images in BATCHES]
}
OUTPUTS = {"torch": RIGHT, "graph": RIGHT, "onnxruntime": RIGHT} | {
    "tensorrt": [of_fake_engine(images) for images in INPUTS["tensorrt"]]
}
KINDS = [*INPUTS]


class Feed:
    """A loader of four slots, each filled anew as soon as it is released."""

    def __init__(self, gpu: Watched) -> None:
        self._gpu, self._number = gpu, 0
        self.slots = [np.zeros_like(BATCHES[0]) for _ in range(4)]
        for number, slot in enumerate(self.slots):
            gpu.lock(slot)
            gpu.host_writes(slot, BATCHES[number])

    def next(self) -> Any:
        self._number += 1
        at = self._number - 1
        return Bag(images=self.slots[at % 4], indices=[at], number=at,
                   encoded=[bytes([40 + at])] * BATCH)  # fmt: skip

    def release(self, slot: Any) -> None:
        self._gpu.host_writes(slot.images, BATCHES[(slot.number + 4) % len(BATCHES)])


NEEDLESS = {
    "stream 3 waits for nothing",  # which copies in: a buffer is free at first
    "the host waits for an event of nothing",  # and so is page-locked memory
    "stream 3 waits for stream 1",  # the host has waited for the batch that was there before
}
"""tests/backends/test_double_buffering.py has the last, where the host does not."""


def check(path: Callable[[Watched], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as it is; then without each of its waits in turn, which is a race."""

    def run(missing: int | None) -> list[str]:
        gpu = Watched(missing)
        with monkeypatch.context() as patch, gpu.torch(patch):
            path(gpu)
        return gpu.edges

    left = []
    for missing, edge in enumerate(edges := run(None)):
        try:
            run(missing)
        except Race:
            continue
        left.append(edge)
    assert {*left} <= NEEDLESS
    assert len(left) <= len(edges) / 3


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_transfers_of_every_session(
    kind: str, attach: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def path(gpu: Watched) -> None:
        with getattr(Open(gpu, monkeypatch, tmp_path), kind)() as session:
            transfers = Transfers(session, INPUTS[kind], attach=attach)
            for _ in BATCHES:
                transfers.enqueue()
            transfers.finish()
            for number, answers in transfers._running.last:
                np.testing.assert_allclose(answers, OUTPUTS[kind][number], rtol=0, atol=1e-4)

    check(path, monkeypatch)


def overlap(gpu: Watched, session: Any, give: Any, data: Any, right: Any) -> None:
    """A pipeline of six batches."""
    feed: Any = Feed(gpu) if data else give.feed
    path = Overlapped(feed, give, session, data)
    for _ in range(6):
        path.enqueue()
    path.finish()
    assert len(path.running.last) == 6
    for indices, logits in path.running.last:
        np.testing.assert_allclose(logits, right(indices[0]), rtol=0, atol=1e-4)


def test_a_loaders_slots_are_read_before_they_are_filled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def path(gpu: Watched) -> None:
        with Open(gpu, monkeypatch, tmp_path).torch() as session:
            feed = Feed(gpu)
            assert session.attach(feed.slots)

            def give(slot: Any) -> Any:
                session.copy_in(slot.images)
                return slot.indices

            give.feed = feed  # type: ignore[attr-defined]
            overlap(gpu, session, give, None, lambda n: RIGHT[n % len(BATCHES)])

    check(path, monkeypatch)


def test_pictures_that_nvjpeg_decodes_and_no_wait_of_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By torchvision's own order: on a stream of nvJPEG's, of the current one's memory."""
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in tiny.SPEC.normalisation)
    shape = BATCHES[0].shape
    colours = [(np.float32((40 + n) / 255) - mean) / std for n in range(6)]
    right = [tiny.reference(np.broadcast_to(colour, shape).copy()) for colour in colours]

    def path(gpu: Watched) -> None:
        import torch

        theirs = Stream(gpu, "nvJPEG's")

        def decode(encoded: Any, *_: object) -> Any:
            found = [torch.empty((3, 40, 40), dtype=torch.uint8, device="cuda") for _ in encoded]
            for pixels, data in zip(found, encoded, strict=True):
                theirs.work([], [gpu.memory(pixels.data_ptr())])
                ctypes.memset(pixels.data_ptr(), int(data[0]), 3 * 40 * 40)
            gpu.current.wait_stream(theirs)
            return found

        monkeypatch.setattr(_torchvision_ops, "operator", lambda _: decode)
        monkeypatch.setattr(jpeg_fallback, "size", lambda _: (40, 40))
        _torchvision_ops._normalisation.cache_clear()
        with Open(gpu, monkeypatch, tmp_path).torch() as session:
            data: Any = Bag(name=str)
            reader = DeviceReader(data, "nvjpeg", tiny.SPEC, BATCH, 0, 0)
            reader.serve(session)
            before = len(gpu.waits)
            overlap(gpu, session, reader.give, reader, right.__getitem__)
            assert gpu.waits[before:] == ["aten::lift_fresh"] * 2, "once, of mean and deviation"
        _torchvision_ops._normalisation.cache_clear()

    check(path, monkeypatch)


@pytest.mark.parametrize("own", [True, False])
def test_streams_take_batches_in_turn_and_copies_go_to_each(
    own: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = Watched()
    with (
        gpu.torch(monkeypatch),
        Open(gpu, monkeypatch, tmp_path).onnxruntime(streams=2) as session,
        nullcontext() if own else pytest.raises(Race),
    ):
        if not own:
            session._on = lambda _: nullcontext()
        for number, images in enumerate(BATCHES):
            session.copy_in(images)
            for _ in range(3):
                session.run()
            session.sync()
            np.testing.assert_allclose(session.copy_out(), RIGHT[number], rtol=0, atol=1e-4)

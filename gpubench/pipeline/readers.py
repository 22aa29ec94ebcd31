"""The data stages in the session's own process: a batch from encoded bytes to input, waited for."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from gpubench.errors import CellFailed
from gpubench.machine.cores import Cores, pin
from gpubench.measure.stages import Parts
from gpubench.pipeline.decoders import base as decoders
from gpubench.pipeline.decoders.base import told
from gpubench.workload.data.image_file import Unusable

if TYPE_CHECKING:
    from gpubench.backends.base import Session
    from gpubench.workload.data.dataset_index import Pictures
    from gpubench.workload.data.preprocess import Inputs, Spec


class Positions:
    """Where the next picture lies: through the data set from ``start`` on, over and over.

    What is no usable picture is left out from then on. Threads may share it.
    """

    def __init__(self, data: Pictures, start: int) -> None:
        self.unusable: dict[int, str] = {}
        """Position in the data set -> reason."""
        self._data, self._at = data, start
        self._ahead: deque[int] = deque()
        self._lock = threading.Lock()

    def rewind(self, pictures: int) -> None:
        """Go back to where so many usable ones were still to come."""
        with self._lock:
            usable = len(self._data) - len(self.unusable)
            pictures %= usable or 1  # once round is where it is
            while pictures:
                self._at = (self._at - 1) % len(self._data)
                pictures -= self._at not in self.unusable

    def follow(self, positions: Iterable[int]) -> None:
        """Take these first."""
        with self._lock:
            self._ahead = deque(positions)

    def take(self) -> int:
        """The next position that is not known to be unusable."""
        with self._lock:
            while self._ahead:
                if (index := self._ahead.popleft()) not in self.unusable:
                    return index
            for _ in range(len(self._data)):
                index = self._at % len(self._data)
                self._at = index + 1
                if index not in self.unusable:
                    return index
        some = next(iter(self.unusable.values()), "it is empty")
        raise CellFailed("error", f"the data set has no usable picture ({some})")

    def read(self) -> tuple[int, bytes]:
        """The next picture that can be read, and its position."""
        while True:
            index = self.take()
            try:
                return index, self._data.read(index)
            except Unusable as error:
                self.unusable[index] = str(error)


class Reader:
    """Decodes on the host: images of a batch side by side, with a thread on each of ``cores``."""

    _session: Session

    def __init__(
        self, data: Pictures, decoder: str, spec: Spec, batch: int, cores: Cores, start: int
    ) -> None:
        import numpy as np

        self.positions = Positions(data, start)
        self._data, self._name, self._batch = data, decoder, batch
        self.lanes = lanes = max(1, min(len(cores), batch))
        """Pictures that are decoded at the same time."""
        made = decoders.get(decoder)
        self._lanes = [cast("decoders.Preprocessor", made.open(spec)) for _ in range(lanes)]
        self.facts = dict(self._lanes[0].facts)
        self._threads: ThreadPoolExecutor | None = None
        if (cores and set(cores) != os.sched_getaffinity(0)) or lanes > 1:
            self._threads = ThreadPoolExecutor(lanes, "lane", _pin, (cores,))
        self.images: Inputs = np.zeros((batch, *spec.shape), spec.dtype)
        self._indices, self._pixels = [0] * batch, [None] * batch
        self._encoded = [b""] * batch

    def close(self) -> None:
        """End its threads."""
        if self._threads:
            self._threads.shutdown()

    def serve(self, session: Session) -> None:
        """``session`` is what is fed."""
        self._session = session

    def load(self) -> None:
        """The next batch, into ``images``."""
        self._each(self._whole)

    def parts(self) -> Parts:
        """Its three stages, each of a whole batch, to be called in this order."""
        return {
            "read": lambda: self._each(self._read),
            "decode": lambda: self._each(self._decode),
            "transform": lambda: self._each(self._transform),
        }

    def put(self, encoded: list[bytes], names: list[str]) -> None:
        """Make these pictures, a whole batch, what is handed over next."""
        for row, (data, name) in enumerate(zip(encoded, names, strict=True)):
            with told(self._name, name):
                self._lanes[0].transform(self._lanes[0].decode(data), self.images[row])

    def hand_over(self) -> None:
        """``images`` -> the session."""
        self._session.copy_in(self.images)

    def give(self, slot: Any) -> Sequence[int] | None:
        """A batch of the loader -> the session; where its pictures are in the data set.

        Of a decoder that works ahead it is a batch that was given before, None at first: then
        `flush` gives the last ones.
        """
        self._session.copy_in(slot.images)
        indices: Sequence[int] = slot.indices
        return indices

    def flush(self) -> Sequence[int]:
        """Nothing is ever held back: see `give`."""
        raise AssertionError

    def host(self) -> Inputs:
        """What is handed over next, (batch, *spec.shape)."""
        return self.images

    def _each(self, work: Callable[[int, decoders.Preprocessor], None]) -> None:
        """``work(row, preprocessor)`` for every row of the batch."""

        def lane(number: int) -> None:
            for row in range(number, self._batch, len(self._lanes)):
                work(row, self._lanes[number])

        if self._threads is None:
            lane(0)
        else:
            list(self._threads.map(lane, range(len(self._lanes))))  # the list: to hear of errors

    def _whole(self, row: int, lane: decoders.Preprocessor) -> None:
        self._read(row, lane)
        self._decode(row, lane)
        self._transform(row, lane)

    def _read(self, row: int, _: object = None) -> None:
        self._indices[row], self._encoded[row] = self.positions.read()

    def _decode(self, row: int, lane: decoders.Preprocessor) -> None:
        while True:
            index = self._indices[row]
            try:
                with told(self._name, self._data.name(index)):
                    self._pixels[row] = lane.decode(self._encoded[row])
                    return
            except Unusable as error:
                self.positions.unusable[index] = str(error)
                self._read(row)

    def _transform(self, row: int, lane: decoders.Preprocessor) -> None:
        with told(self._name, self._data.name(self._indices[row])):
            lane.transform(self._pixels[row], self.images[row])


class DeviceReader:
    """The same where the decoder works on the session's GPU, on the stream that is current."""

    _session: Session
    lanes = 1

    def __init__(
        self, data: Pictures, decoder: str, spec: Spec, batch: int, index: int, start: int,
        kind: str = "cuda", threads: int = 1,
    ) -> None:  # fmt: skip
        """``kind``: of device ``index``, as torch calls it. ``threads``: of the decoder's own."""
        self.positions = Positions(data, start)
        self._device = f"{kind}:{index}"
        self._data, self._name, self._batch, self._index = data, decoder, batch, index
        self._spec, self._threads = spec, threads
        self._indices, self._encoded = [0] * batch, [b""] * batch
        self._begun: deque[tuple[list[bytes], list[int], Any]] = deque()
        """Batches that are decoded and not transformed yet, with their positions."""
        self.refused: dict[int, str] = {}
        """Of ``positions.unusable``, what could be read and not decoded."""

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self._decoder.facts)

    def close(self) -> None:
        """Nothing of it runs by itself."""

    def serve(self, session: Session) -> None:
        """``session``, which is open, is what is fed: its stream is current from now on."""
        import torch

        decoder = decoders.get(self._name)
        self._ahead = getattr(decoder, "ahead", 0)
        made = decoder.open(self._spec, self._index)
        self._decoder = cast("decoders.DevicePreprocessor", made)
        if hasattr(made, "threads"):
            self.lanes = made.threads = self._threads
        shape, dtype = (self._batch, *self._spec.shape), getattr(torch, self._spec.dtype)
        self._images = torch.zeros(shape, dtype=dtype, device=self._device)
        self._session = session

    def load(self) -> None:
        """The next batch, into device memory."""
        self._read()
        self._decode()
        self._transform()

    def parts(self) -> Parts:
        return {"read": self._read, "decode": self._decode_and_wait, "transform": self._transform}

    def put(self, encoded: list[bytes], names: list[str]) -> None:
        with told(self._name, f"{names[0]} .. {names[-1]}"):
            while True:
                try:
                    self._decoder.transform(self._decoder.decode(encoded), self._images)
                except decoders.Again:
                    continue
                return

    def hand_over(self) -> None:
        """Within device memory where the session has its input there, else through the host."""
        if self._session.device_input is not None:
            self._session.device_input.copy_(self._images)
        else:
            self._session.copy_in(self.host())

    def give(self, slot: Any) -> Sequence[int] | None:
        """A batch of encoded pictures -> the session; where those are that were used."""
        self._encoded, self._indices = [*slot.encoded], [*map(int, slot.indices)]
        self._decode()
        return self.flush() if len(self._begun) > self._ahead else None

    def flush(self) -> Sequence[int]:
        """The oldest batch that was given, and is not in the session's input yet, goes there."""
        indices = self._transform()
        self.hand_over()
        return indices

    def host(self) -> Inputs:
        """What is handed over next, (batch, *spec.shape), copied from the device."""
        found: Inputs = self._images.cpu().numpy()
        return found

    def _read(self) -> None:
        for row in range(self._batch):
            self._indices[row], self._encoded[row] = self.positions.read()

    def _decode(self) -> None:
        """The next usable picture stands for each that turns out to be none."""
        while True:
            for row, index in enumerate(self._indices):
                if index in self.refused:
                    self._indices[row], self._encoded[row] = self.positions.read()
            with self._told():
                try:
                    pixels = self._decoder.decode(self._encoded)
                except Unusable:
                    if not self._refuse():
                        raise
                else:
                    self._begun.append(([*self._encoded], [*self._indices], pixels))
                    return

    def _decode_and_wait(self) -> None:
        self._decode()
        if settle := getattr(self._decoder, "settle", None):
            self._again(lambda: settle(self._begun[0][2]))

    def _refuse(self) -> bool:
        """Whether there are pictures that cannot be decoded, each alone."""
        before = len(self.refused)
        decode = self._decoder.decode
        check = getattr(self._decoder, "check", lambda data: decode([data]))
        for index, data in zip(self._indices, self._encoded, strict=True):
            try:
                check(data)
            except Unusable as error:
                self.refused[index] = self.positions.unusable[index] = str(error)
        return len(self.refused) > before

    def _transform(self) -> list[int]:
        """The oldest batch; where its pictures are in the data set."""
        self._again(lambda: self._decoder.transform(self._begun[0][2], self._images))
        return self._begun.popleft()[1]

    def _again(self, step: Callable[[], object]) -> None:
        """Do it; where all that was decoded is lost, decode it once more first."""
        while True:
            try:
                with self._told():
                    step()
            except decoders.Again:
                lost, self._begun = self._begun, deque()
                for self._encoded, self._indices, _ in lost:
                    self._decode()
                continue
            return

    @contextmanager
    def _told(self) -> Iterator[None]:
        names = [self._data.name(index) for index in self._indices]
        with told(self._name, f"{names[0]} .. {names[-1]}"):
            yield


def _pin(cores: Cores) -> None:
    """This thread; torch, if it is there, must not call more threads to the same cores."""
    pin(cores)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)

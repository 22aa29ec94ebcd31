"""A cell's pipeline put together: decoder, data set, loader, session, and who has which cores."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import msgspec

from gpubench.backends import base as backends
from gpubench.errors import CellFailed
from gpubench.machine.cores import Cores
from gpubench.measure.protocol import Pipeline
from gpubench.pipeline import loader as loading
from gpubench.pipeline.check import difference, judge
from gpubench.pipeline.core_split import StageTimes
from gpubench.pipeline.decoders import base as decoders
from gpubench.pipeline.iteration import Overlapped, Serial
from gpubench.pipeline.readers import DeviceReader, Reader
from gpubench.records.parity import PipelineCheck
from gpubench.workload.data.image_file import Unusable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gpubench.backends.base import Session
    from gpubench.measure.in_flight import InFlight
    from gpubench.suite.types import Cell, Policy
    from gpubench.workload.data.preprocess import Inputs
    from gpubench.workload.reference import Reference


class ReplicaPipeline:
    """The pipeline of one replica. Open it before the session: its loader may fork processes."""

    def __init__(
        self,
        cell: Cell,
        reference: Reference,
        cores: tuple[Cores, Cores],
        *,
        number: int,
        seed: int,
        index: int,
        times: StageTimes | None,
    ) -> None:
        """``cores``: those that prefetch, and the session's, as `core_split.split` gave them, by
        ``times``. ``number``: of all the cell's replicas; ``index``: the CUDA device.

        Raises what the loader and the decoder raise.
        """
        self._cell, self._reference, self._times = cell, reference, times
        self._loading, self.session_cores = cores
        decoder, data, spec = decoders.get(cell.decoder), reference.dataset(), reference.spec
        start = number * len(data) // cell.replicas
        self._loader: loading.Loader | None = None
        self._timed: InFlight | None = None
        self._zero_copy = False
        self._stack = ExitStack()
        with self._stack:
            if cell.scenario == "throughput":
                # of the session, which is not open yet
                running = backends.get(cell.backend).in_flight(cell, len(self.session_cores))
                self._loader = self._stack.enter_context(
                    loading.Loader(
                        reference.path, cell.decoder, spec, cell.batch_size, kind=cell.loader,
                        cores=self._loading, more=running - 1 + getattr(decoder, "ahead", 0),
                        pin=cell.device == "cuda",
                        seed=seed + number,
                    )
                )  # fmt: skip
            common = (data, cell.decoder, spec, cell.batch_size)
            self._reader: Reader | DeviceReader
            if decoder.on_device:
                threads = max(1, len(self._loading))
                self._reader = DeviceReader(*common, index, start, threads=threads)
            else:
                self._reader = Reader(*common, self._loading, start)
            self._stack.callback(self._reader.close)
            self._stack = self._stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def lead_to(self, session: Session) -> Pipeline:
        """The pipeline that ends in ``session``, which is open."""
        reader = self._reader
        reader.serve(session)
        if isinstance(reader, Reader):
            self._zero_copy = bool(session.attach(self._arrays(reader)))
        if self._loader is None:
            return Serial(reader, session, self._cell.batch_size, self._reference.output)
        found = Overlapped(self._loader, reader.give, session, reader, self._reference.output)
        self._timed = found.running
        return found

    def _arrays(self, reader: Reader) -> list[Inputs]:
        """What a session may take without a copy; of CUDA only what is page-locked."""
        if self._loader is None:
            return [reader.images]
        if self._cell.device == "cpu":
            return [*self._loader.slots, reader.images]
        self._loader.release(self._loader.next())  # slots are locked when the first one is asked
        return self._loader.slots

    @property
    def facts(self) -> dict[str, Any]:
        """`gpubench.records.record.Record.facts`["pipeline"]."""
        found: dict[str, Any] = {
            "decoder": self._cell.decoder,
            "on_device": isinstance(self._reader, DeviceReader),
            "versions": self._reader.facts,
            "lanes": self._reader.lanes,
            "loader_cores": len(self._loading),
            "session_cores": len(self.session_cores),
            "zero_copy": self._zero_copy,
            "skipped": dict(Counter(self._reader.positions.unusable.values())),
        }
        if self._loader:
            found["loader"] = self._loader.facts
            refused = self._reader.refused if isinstance(self._reader, DeviceReader) else {}
            found["skipped"] = dict(Counter(refused.values()) + Counter(found["loader"]["skipped"]))
        if self._times:
            found["core_split"] = msgspec.structs.asdict(self._times)
        return found

    def check(
        self, session: Session, slots: list[NDArray[np.intp]], policy: Policy
    ) -> PipelineCheck:
        """The pictures of the parity check, encoded, through decoder and session as timed.

        Compared with the reference's inputs and answers. Raises CellFailed("parity") where answers
        that were timed are not those that the same pictures get in a batch alone, from a copy.
        """
        import numpy as np

        if self._timed:
            self._timed.check(lambda indices: self._again(session, indices))
        reference, batch = self._reference, self._cell.batch_size
        asked = np.unique(np.concatenate(slots))
        answers, differences = [], []
        for begin in range(0, len(asked), batch):
            rows = np.resize(asked[begin : begin + batch], batch)  # the last one may repeat
            new = min(batch, len(asked) - begin)
            names = [reference.names[i] for i in rows]
            try:
                self._reader.put([reference.encoded(int(i)) for i in rows], names)
            except Unusable as error:
                raise CellFailed(
                    "parity",
                    f"decoder {self._cell.decoder} cannot use a picture that the reference can: "
                    f"{error}, among {', '.join(map(repr, dict.fromkeys(names[:new])))}",
                ) from error
            self._reader.hand_over()
            inputs = self._reader.host()
            found = difference(reference.spec, inputs[:new], reference.images[rows[:new]])
            differences += [found] * new
            answers.append(_answers(session)[:new])
        return judge(self._cell.decoder, reference, asked, np.concatenate(answers), differences,
                     policy)  # fmt: skip

    def _again(self, session: Session, indices: Sequence[int]) -> NDArray[np.float32]:
        """Answers to these pictures of the data set, one step after the other."""
        data = self._reference.dataset()
        self._reader.put([data.read(i) for i in indices], [data.name(i) for i in indices])
        if isinstance(self._reader, Reader):
            session.copy_in(self._reader.host().copy())  # into the session's own memory
        else:
            self._reader.hand_over()
        return _answers(session)


def _answers(session: Session) -> NDArray[np.float32]:
    session.run()
    session.sync()
    return session.copy_out()

"""A cell's whole path put together: decoder, data set, loader, session, and who has which cores."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from gpubench import loader as loading
from gpubench.answers import PathCheck
from gpubench.backends import base as backends
from gpubench.decoders import base as decoders
from gpubench.decoders.difference import difference
from gpubench.errors import CellFailed
from gpubench.measure.path import Overlapped, Serial
from gpubench.measure.protocol import Path
from gpubench.run.reader import Cores, DeviceReader, Reader
from gpubench.workload.pictures import Unusable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.backends.base import Session
    from gpubench.run.messages import Measure, Shared
    from gpubench.suite import Policy
    from gpubench.workload.reference import Reference


def share(cores: int, shared: Shared | None) -> int:
    """How many of a replica's ``cores`` prefetch; 0: all of them do both.

    In proportion to the core-time that a batch needs: that of its data stages, and that of the
    session, which held all of the cores while it was timed. Where the data stages need less than
    half a core, one of their own would idle and be missed. Half of them where nothing was timed.
    """
    if cores < 2:
        return 0
    if shared is None:
        return cores // 2
    data, session = shared.data_ns, shared.session_ns * cores
    return min(cores - 1, round(cores * data / max(1, data + session)))


def asks_to_share(request: Measure) -> bool:
    """Whether there is more than one way to share out its cores, and nobody has said which."""
    cell = request.cell
    overlaps = cell.boundary == "pipeline" and cell.scenario == "throughput"
    cores = len(request.cores[0])
    return overlaps and cell.device == "cpu" and not cell.loader_cores and cores > 1


def divide(request: Measure, replica: int) -> tuple[Cores, Cores]:
    """(cores that prefetch, cores that compute) of a replica.

    Latency does one after the other, on all of them. On CUDA the replicas whose GPUs have the same
    cores next to them share those out, and each keeps one to feed its GPU.
    """
    cell, own = request.cell, request.cores[replica]
    if cell.device != "cpu":
        mine = _fair(tuple(own) or tuple(sorted(os.sched_getaffinity(0))), request.cores, replica)
        return (mine[1:] or mine) if cell.scenario == "throughput" else mine, ()
    if cell.scenario == "latency":
        return own, own
    k = cell.loader_cores or share(len(own), request.shared)
    return (own[-k:], own[:-k]) if k else (own, own)


def _fair(cores: Cores, sets: Sequence[Cores], replica: int) -> Cores:
    """The replica's part of ``cores``, which others have as well; all where they are too few."""
    same = [i for i, other in enumerate(sets) if other == sets[replica]]
    each = len(cores) // len(same)
    at = same.index(replica) * each
    return cores[at : at + each] if each else cores


class Route:
    """The path of one replica. Open it before the session: its loader may fork processes."""

    def __init__(self, request: Measure, replica: int, reference: Reference, index: int) -> None:
        """``index``: the CUDA device. Raises what the loader and the decoder raise."""
        cell = request.cell
        self._cell, self._reference, self._request = cell, reference, request
        self._loading, self.session_cores = divide(request, replica)
        decoder, data, spec = decoders.get(cell.decoder), reference.dataset(), reference.spec
        number = request.first + replica
        start = number * len(data) // cell.replicas
        self._loader: loading.Loader | None = None
        self._zero_copy = False
        self._stack = ExitStack()
        with self._stack:
            if cell.scenario == "throughput":
                # of the session, which is not open yet
                running = backends.get(cell.backend).in_flight(cell, len(self.session_cores))
                self._loader = self._stack.enter_context(
                    loading.Loader(
                        reference.path, cell.decoder, spec, cell.batch_size, kind=cell.loader,
                        cores=self._loading, more=running - 1,
                        pin=cell.device == "cuda",
                        seed=request.policy.seed + number,
                    )
                )  # fmt: skip
            common = (data, cell.decoder, spec, cell.batch_size)
            self._reader: Reader | DeviceReader
            if decoder.on_device:
                self._reader = DeviceReader(*common, index, start)
            else:
                self._reader = Reader(*common, self._loading, start)
            self._stack.callback(self._reader.close)
            self._stack = self._stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def lead_to(self, session: Session) -> Path:
        """The path that ends in ``session``, which is open."""
        reader = self._reader
        reader.serve(session)
        if isinstance(reader, Reader):
            self._zero_copy = bool(session.attach(self._arrays(reader)))
        if self._loader is None:
            return Serial(reader, session)
        return Overlapped(self._loader, reader.give, session, reader)

    def _arrays(self, reader: Reader) -> list[NDArray[np.float32]]:
        """What a session may take without a copy; of CUDA only what is page-locked."""
        if self._loader is None:
            return [reader.images]
        if self._cell.device == "cpu":
            return [*self._loader.slots, reader.images]
        self._loader.release(self._loader.next())  # slots are locked when the first one is asked
        return self._loader.slots

    @property
    def facts(self) -> dict[str, Any]:
        """`gpubench.record.Record.facts`["path"]."""
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
        if self._request.shared:
            found["core_split"] = {
                "data_ns": self._request.shared.data_ns,
                "session_ns": self._request.shared.session_ns,
            }
        return found

    def check(self, session: Session, slots: list[NDArray[np.intp]], policy: Policy) -> PathCheck:
        """The pictures of the parity check, encoded, through decoder and session as timed.

        Compared with the reference's inputs and answers. Raises CellFailed("parity") where a
        session that takes the loader's arrays without a copy answers otherwise than with one.
        """
        import numpy as np

        self._check_slots(session)
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

    def _check_slots(self, session: Session) -> None:
        import numpy as np

        if self._loader is None or not self._zero_copy:
            return
        slot = self._loader.next()
        self._reader.give(slot)
        bare = _answers(session)
        session.copy_in(np.array(slot.images))
        copied = _answers(session)
        self._loader.release(slot)
        if not np.allclose(bare, copied, rtol=1e-3, atol=1e-3 * float(np.abs(copied).max())):
            raise CellFailed(
                "parity",
                "answers to what lies in the loader's memory differ from answers to a copy of it: "
                "the session reads something else",
            )


def _answers(session: Session) -> NDArray[np.float32]:
    session.run()
    session.sync()
    return session.copy_out()


def judge(
    decoder: str,
    reference: Reference,
    asked: NDArray[np.intp],
    logits: NDArray[np.float32],
    differences: list[tuple[float, float]],
    policy: Policy,
) -> PathCheck:
    """``logits`` (n, classes) and input ``differences`` of the pool's images ``asked``, (n,)."""
    import numpy as np

    if not np.isfinite(differences).all():
        raise CellFailed("parity", f"decoder {decoder} gives values that are not finite")
    labels, least = reference.labels[asked], policy.min_path_agreement
    known = labels >= 0
    ranks = (logits > np.take_along_axis(logits, np.maximum(labels, 0)[:, None], 1)).sum(axis=1)
    top1 = logits.argmax(axis=1)
    agreement = float(np.mean(top1 == reference.logits[asked].argmax(axis=1)))
    few = logits.shape[1] < 6
    return PathCheck(
        decoder=decoder,
        images=len(asked),
        max_difference=max(most for most, _ in differences),
        mean_difference=float(np.mean([mean for _, mean in differences])),
        top1_agreement=agreement,
        min_top1_agreement=least,
        passed=agreement >= least and bool(np.isfinite(logits).all()),
        labelled=int(known.sum()),
        correct=int((top1 == labels)[known].sum()),
        correct5=0 if few else int((ranks < 5)[known].sum()),
    )

"""Images in, labels out, as fast as the cell that was deployed."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, overload

from msgspec import Struct
from msgspec.structs import replace

from gpubench.errors import GpubenchError, InputError, check_text
from gpubench.run.serving import compatibility, manifest
from gpubench.run.serving.inputs import Preprocessing, each
from gpubench.run.serving.replica import Local, Remote, Setup
from gpubench.run.serving.replica_pool import Pool
from gpubench.workload.models import outputs

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray

    from gpubench.run.serving.inputs import Picture, Pictures
    from gpubench.run.serving.replica_pool import Answer
    from gpubench.workload.data.preprocess import Inputs

    Logits = NDArray[np.float32]
    _Batch = tuple[list[int], Inputs]
    """Positions of its pictures among those that were given, and what they have become."""

LONGEST_S = 86_400


class Prediction(Struct, frozen=True):
    """What is on one image."""

    label: str
    """The class's name, or its number where names are not known."""
    index: int
    score: float
    """The class's probability: softmax of the logits, or what the network itself says."""
    top: tuple[Prediction, ...] = ()
    """The ``top`` best, best first, where more than one was asked for."""


def load(
    directory: str | PathLike[str], *, pin: bool = True, timeout_s: float = 60.0
) -> Classifier:
    """The classifier that `gpubench deploy` wrote to ``directory``, ready to answer.

    ``pin``: run on the cores that were measured, or as many others, which no other classifier on
    this machine is pinned to. ``timeout_s``: the longest that a batch may take; a replica that
    takes longer is given up.

    Raises InputError for a folder that is damaged or does not fit this machine, Unavailable for
    what is missing here; warns (`compatibility.DeploymentWarning`) where it works but is not what
    was checked, or slower.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise InputError(f"timeout_s = {timeout_s!r}: expected a number of seconds")
    if not 0 < timeout_s <= LONGEST_S:
        raise InputError(f"timeout_s = {timeout_s}: expected above 0, at most {LONGEST_S:,}")
    root = Path(directory).absolute()
    check_text(root)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as it was measured
    made = manifest.read(root)
    manifest.verify(root, made)
    compatibility.check(made, compatibility.machine(made.cell, made.decoder))
    cores, claims = compatibility.places(made, pin)
    try:
        return Classifier(root, made, cores, claims, timeout_s)
    except BaseException:
        claims.close()
        raise


class Classifier:
    """Callable from any thread. One replica runs in a thread, several in a process each.

    What torch.compile or Torch-TensorRT compiles has a process of its own: opening it resets what
    the process has compiled.

    Batches have the cell's size: what is left over is filled up with zeros, and takes as long.
    """

    def __init__(
        self,
        root: Path,
        made: manifest.Manifest,
        cores: list[tuple[int, ...]],
        claims: ExitStack,
        timeout_s: float,
    ) -> None:
        """``cores``: per replica, and ``claims`` to them: see `compatibility.places`."""
        self.manifest = made
        self._preprocessing = Preprocessing(made.decoder, made.preprocessing)
        cell, artefact = made.cell, root / manifest.inside(root, made.artefact)
        setups = [
            Setup(
                cell=cell, artefact=str(artefact), spec=made.preprocessing,
                outputs=made.outputs, replica=replica, cores=own, timeout_s=timeout_s,
            )
            for replica, own in enumerate(cores)
        ]  # fmt: skip
        self._setup = setups[0]
        apart = cell.replicas > 1 or cell.backend in ("torch-compile", "torch-tensorrt")
        self._pool = Pool([partial(Remote if apart else Local, s) for s in setups], timeout_s)
        claims.callback(self._pool.close)
        # also when it is forgotten, or the interpreter ends
        self.close = weakref.finalize(self, claims.close)
        """End all replicas, once what was asked for is answered, or has taken too long."""

    @property
    def classes(self) -> list[str]:
        """Names by number; [] where they are not known."""
        return self.manifest.classes

    @property
    def facts(self) -> list[dict[str, object]]:
        """Of each replica, what its backend says of what really runs."""
        return self._pool.facts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def __call__(self, images: Pictures, top: int = 1) -> list[Prediction]: ...
    @overload
    def __call__(
        self, images: Pictures, top: int = 1, *, on_error: Literal["raise", "return"]
    ) -> list[Prediction | GpubenchError]: ...
    def __call__(
        self, images: Pictures, top: int = 1, *, on_error: Literal["raise", "return"] = "raise"
    ) -> Sequence[Prediction | GpubenchError]:
        """One prediction for each image, in their order.

        ``images``: one, or many (a list, a tuple, an iterator, an array (N, H, W, 3)), each of
        them encoded bytes, a path, a file open for reading bytes, a PIL image, or pixels of uint8,
        (H, W, 3) RGB or (H, W) grey.

        Raises InputError for one that is no usable picture, naming its position and the reason;
        with ``on_error`` 'return' the error stands in its place, and the others are answered.
        """
        if isinstance(top, bool) or not hasattr(top, "__index__"):
            raise InputError(f"top = {top!r}: expected a whole number")
        if not 1 <= top <= self.manifest.outputs:
            raise InputError(f"top = {top}: expected 1 to {self.manifest.outputs} (the classes)")
        if on_error not in ("raise", "return"):
            raise InputError(f"on_error = {on_error!r}: expected 'raise' or 'return'")
        found: dict[int, Prediction | GpubenchError] = {}
        unusable = found if on_error == "return" else None
        for positions, logits in self._in_order(self._batches(each(images), unusable)):
            for at, one in zip(positions, self._predictions(logits, top), strict=True):
                if one is None and unusable is None:
                    raise GpubenchError(f"image {at}: logits are not finite")
                found[at] = one or GpubenchError(f"image {at}: logits are not finite")
        return [found[at] for at in sorted(found)]

    def logits(self, batch: Inputs) -> NDArray[np.float32]:
        """Preprocessed images, any number, as the network takes them -> logits (N, classes)."""
        import numpy as np

        size, *shape = self._setup.shape
        fits = isinstance(batch, np.ndarray) and list(batch.shape[1:]) == shape
        dtype = self.manifest.preprocessing.dtype
        if not fits or batch.dtype != dtype:
            what = f"{np.shape(batch)} of {getattr(batch, 'dtype', type(batch).__name__)}"
            raise InputError(
                f"a batch {what}: expected (N, {shape[0]}, {shape[1]}, {shape[2]}) of {dtype}"
            )
        batch = np.ascontiguousarray(batch)
        parts: Iterator[_Batch] = (([], batch[at : at + size]) for at in range(0, len(batch), size))
        found = [logits for _, logits in self._in_order(parts)]
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty((0, self.manifest.outputs), np.float32)

    def _batches(
        self, images: Iterator[Picture], unusable: dict[int, Prediction | GpubenchError] | None
    ) -> Iterator[_Batch]:
        """Pictures as they become inputs, a batch at a time, while batches before are computed.

        ``unusable``: takes the errors, by position; None: they are raised.
        """
        import numpy as np

        size, positions = self._setup.shape[0], list[int]()
        rows = np.empty(self._setup.shape, self.manifest.preprocessing.dtype)
        for at, picture in enumerate(images):
            try:
                self._preprocessing.fill(picture, rows[len(positions)], at)
            except InputError as error:
                if unusable is None:
                    raise
                unusable[at] = error
                continue
            positions.append(at)
            if len(positions) == size:
                yield positions, rows
                positions, rows = [], np.empty_like(rows)
        if positions:
            yield positions, rows[: len(positions)]

    def _in_order(self, batches: Iterator[_Batch]) -> Iterator[tuple[list[int], Logits]]:
        """The logits of each; one more batch than there are replicas is in hand at a time."""
        asked: deque[tuple[list[int], Answer]] = deque()
        for positions, rows in batches:
            asked.append((positions, self._pool.submit(rows)))
            if len(asked) > self.manifest.cell.replicas:
                first, answer = asked.popleft()
                yield first, self._pool.wait(answer)
        for positions, answer in asked:
            yield positions, self._pool.wait(answer)

    def _predictions(self, logits: Logits, top: int) -> Iterator[Prediction | None]:
        """None: they are not finite."""
        import numpy as np

        finite = np.all(np.isfinite(logits), axis=1).tolist()
        with np.errstate(invalid="ignore"):
            scores = outputs.scores(logits.astype(np.float64), self.manifest.answers)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        names = self.classes
        for usable, row, indices in zip(finite, scores, best.tolist(), strict=True):
            if not usable:
                yield None
                continue
            listed = tuple(
                Prediction(names[i] if names else str(i), i, float(row[i])) for i in indices
            )
            yield replace(listed[0], top=listed) if top > 1 else listed[0]

"""Images in, labels out, as fast as the cell that was deployed."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from gpubench.errors import GpubenchError, InputError, check_text
from gpubench.run.serving import compatibility, manifest
from gpubench.run.serving.engine import Local, Setup
from gpubench.run.serving.inputs import Preprocessing, each
from gpubench.run.serving.replica_pool import Pool
from gpubench.run.serving.replica_process import Remote

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray

    from gpubench.run.serving.inputs import Picture, Pictures
    from gpubench.run.serving.replica_pool import Answer


class Prediction(Struct, frozen=True):
    """What is on one image."""

    label: str
    """The class's name, or its number where names are not known."""
    index: int
    score: float
    """Softmax of the logits."""
    top: tuple[Prediction, ...] = ()
    """The ``top`` best, best first, where more than one was asked for."""


def load(directory: str | PathLike[str], *, pin: bool = True) -> Classifier:
    """The classifier that `gpubench deploy` wrote to ``directory``, ready to answer.

    ``pin``: run on the cores that were measured, or as many others. Raises InputError for a folder
    that is damaged or does not fit this machine, Unavailable for what is missing here; warns
    (`compatibility.DeploymentWarning`) where it works but is not what was checked.
    """
    root = Path(directory).absolute()
    check_text(root)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as it was measured
    made = manifest.read(root)
    manifest.verify(root, made)
    compatibility.check(made, compatibility.machine(made.cell, made.decoder))
    return Classifier(root, made, compatibility.places(made, pin))


class Classifier:
    """Callable from any thread. One replica runs in a thread, several in a process each.

    torch-compile has a process of its own: opening it resets what the process has compiled.

    Batches have the cell's size: what is left over is filled up with zeros, and takes as long.
    """

    def __init__(self, root: Path, made: manifest.Manifest, cores: list[tuple[int, ...]]) -> None:
        """``cores``: per replica, see `compatibility.places`."""
        self.manifest = made
        self._preprocessing = Preprocessing(made.decoder, made.preprocessing)
        cell, artefact = made.cell, root / manifest.inside(root, made.artefact)
        setups = [
            Setup(
                cell=cell, artefact=str(artefact), crop=made.preprocessing.crop,
                outputs=made.outputs, replica=replica, cores=own,
            )
            for replica, own in enumerate(cores)
        ]  # fmt: skip
        self._setup = setups[0]
        apart = cell.replicas > 1 or cell.backend == "torch-compile"
        self._pool = Pool([partial(Remote if apart else Local, s) for s in setups])
        # also when it is forgotten, or the interpreter ends
        self.close = weakref.finalize(self, self._pool.close)
        """End all replicas, once what was asked for is answered."""

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

    def __call__(self, images: Pictures, top: int = 1) -> list[Prediction]:
        """One prediction for each image, in their order.

        ``images``: one, or any number (an iterator will do), each of them encoded bytes, a path, a
        PIL image, or pixels (H, W, 3) uint8 RGB. Raises InputError for one that is no usable
        picture, naming its position and the reason.
        """
        if not 1 <= top <= self.manifest.outputs:
            raise InputError(f"top = {top}: expected 1 to {self.manifest.outputs} (the classes)")
        found: list[Prediction] = []
        for logits in self._in_order(self._batches(each(images))):
            found += self._predictions(logits, top, len(found))
        return found

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Preprocessed images (N, 3, H, W) float32, any N -> logits (N, classes) float32."""
        import numpy as np

        size, shape = self._setup.shape[0], self._setup.shape[1:]
        fits = isinstance(batch, np.ndarray) and batch.ndim == 4 and batch.shape[1:] == shape
        if not fits or batch.dtype != np.float32:
            what = f"{np.shape(batch)} of {getattr(batch, 'dtype', type(batch).__name__)}"
            raise InputError(
                f"a batch {what}: expected (N, {shape[0]}, {shape[1]}, {shape[2]}) of float32"
            )
        batch = np.ascontiguousarray(batch)
        if 0 < len(batch) <= size:
            return next(self._in_order(iter([batch])))
        parts = (batch[at : at + size] for at in range(0, len(batch), size))
        found = list(self._in_order(parts))
        return np.concatenate(found) if found else np.empty((0, self.manifest.outputs), np.float32)

    def _batches(self, images: Iterator[Picture]) -> Iterator[NDArray[np.float32]]:
        """Pictures as they become inputs, a batch at a time, while batches before are computed."""
        import numpy as np

        size, at = self._setup.shape[0], 0
        while some := list(islice(images, size)):
            rows = np.empty((len(some), *self._setup.shape[1:]), np.float32)
            for row, picture in zip(rows, some, strict=True):
                self._preprocessing.fill(picture, row, at)
                at += 1
            yield rows

    def _in_order(self, batches: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """The logits of each; one more batch than there are replicas is in hand at a time."""
        asked: deque[Answer] = deque()
        for rows in batches:
            asked.append(self._pool.submit(rows))
            if len(asked) > self.manifest.cell.replicas:
                yield asked.popleft().result()
        while asked:
            yield asked.popleft().result()

    def _predictions(
        self, logits: NDArray[np.float32], top: int, first: int
    ) -> Iterator[Prediction]:
        import numpy as np

        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise GpubenchError(f"image {first + int(finite.argmin())}: logits are not finite")
        powers = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
        scores = powers / powers.sum(axis=1, keepdims=True)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        names = self.classes
        for row, indices in zip(scores, best.tolist(), strict=True):
            listed = tuple(
                Prediction(names[i] if names else str(i), i, float(row[i])) for i in indices
            )
            one = listed[0]
            yield Prediction(one.label, one.index, one.score, listed) if top > 1 else one

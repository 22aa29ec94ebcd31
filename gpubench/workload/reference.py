"""The right answers: images as the network takes them, their labels, and what it says of them.

Every backend is fed the same preprocessed images; its logits are compared with those of fp32
eager PyTorch on the CPU (ONNX Runtime for a model that is an ONNX file). `batches` puts different
images into every slot of successive batches, so that a stale buffer, a wrong slot or a batch
computed only in part shows.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from gpubench.cache import recipe_of
from gpubench.errors import ChangedError, InputError
from gpubench.workload.data import dataset_index, datasets, preprocess
from gpubench.workload.data.image_file import Unusable
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models.registry import is_file, resolve

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.cache import Cache
    from gpubench.suite.types import Policy, Workload
    from gpubench.workload.data.dataset_index import About, Pictures
    from gpubench.workload.data.datasets import Pool
    from gpubench.workload.data.preprocess import Inputs
    from gpubench.workload.models.base import Model

FORMAT = 3
"""Raised whenever `build` would make something else of the same recipe."""
_DATASET = "dataset"
_WNID = re.compile(r"n[0-9]{8}")
_IMAGENET = 1000
"""Classes of the only data set whose names of classes torchvision has."""


class _About(Struct, frozen=True, kw_only=True):
    engine: str
    names: list[str]
    places: list[int] = []
    """Where in the data set the pictures are."""
    spec: Spec
    """How ``images`` were made of the encoded pictures."""
    classes: tuple[str, ...] = ()
    """Names of the network's classes by number; (): it has none that are known."""
    skipped: str = ""
    """What of a data set was left out, and why: see `gpubench.workload.data.datasets.Pool`."""
    taken: str = ""
    """What of a file of weights was taken: see `gpubench.workload.models.base.Model`."""


class Reference(_About, frozen=True, kw_only=True):
    """Images as the network takes them, and what it answers."""

    images: Inputs
    """(N, *spec.shape), mapped from disk."""
    labels: NDArray[np.int64]
    """(N,); -1: no label that means anything to this network."""
    logits: NDArray[np.float32]
    """(N, classes)"""
    path: Path

    def encoded(self, index: int) -> bytes:
        """The encoded picture that ``images[index]`` was made of."""
        import numpy as np

        ends = np.load(self.path / "ends.npy", mmap_mode="r")
        blob = np.load(self.path / "encoded.npy", mmap_mode="r")
        return dataset_index.piece(blob, ends, index)

    def dataset(self) -> Pictures:
        """The whole data set that the images were drawn from; cheap, needs numpy only."""
        return dataset_index.load(self.path / _DATASET)

    def check_dataset(self) -> None:
        """Raises ChangedError where a picture of the first POOL is no longer what it was."""
        dataset = self.dataset()
        for place, index in enumerate(self.places[: datasets.POOL]):
            try:
                same = dataset.read(index) == self.encoded(place)
            except Unusable:
                same = False
            if not same:
                raise ChangedError(
                    f"images {str(dataset.root)!r}: {self.names[place]!r} is not what it was when "
                    "the run began; put it back and go on with --resume, or start a new run"
                )


def build(workload: Workload, policy: Policy, cache: Cache) -> Path:
    """Make (or find in the cache) the workload's reference; returns what `load` takes.

    Slow and heavy (it imports torch): for a worker process. Raises InputError for images, models
    or weights that do not exist.
    """
    model = resolve(workload, cache)
    count = max(policy.parity_images, policy.accuracy_images, datasets.POOL)
    pool = datasets.draw(datasets.find(workload, cache, count), count, policy.seed)
    labelled = meaningful(pool.dataset.about, model, workload.labels)
    known = labelled and any(pool.dataset.label(i) >= 0 for i in pool.indices)
    _needs_labels(workload, policy, model.num_classes, known)
    recipe = {
        "format": FORMAT,
        "network": model.identity,
        "images": pool.fingerprint,
        "root": _root(pool),
        "spec": msgspec.to_builtins(model.spec),
        "labelled": labelled,
        "engine": model.engine,
    } | ({"skipped": pool.skipped} if pool.skipped else {})
    return cache.get_or_make("reference", recipe, lambda at: _make(at, pool, model, labelled))


def contents(workload: Workload, path: Path) -> dict[str, str]:
    """SHA-256 of what the paths of ``workload`` held when `build` made ``path``, by part."""
    made = recipe_of(path)
    found = {"model": made["network"]} if is_file(workload) else {}
    if workload.model.endswith(".onnx"):  # a file beside it may say it
        found["preprocessing"] = sha256(msgspec.json.encode(made["spec"])).hexdigest()
    return found | ({"images": made["images"]} if datasets.is_path(workload.images) else {})


def _needs_labels(workload: Workload, policy: Policy, classes: int, labelled: bool) -> None:
    """Raises InputError where an accuracy floor is set and no image has a label that counts."""
    floors = {"min_accuracy": policy.min_accuracy, "max_accuracy_drop": policy.max_accuracy_drop}
    name = next((name for name, value in floors.items() if value is not None), None)
    if name and not labelled:
        raise InputError(
            f"policy.{name} = {floors[name]:g}: images {workload.images!r} have no labels that "
            f"number the {classes} classes of {workload.model} ({workload.weights}); give a folder "
            f"with one sub-folder for each of its classes or a file of labels, images = 'digits' "
            "with weights = 'probe', or leave the floor out"
        )


def meaningful(about: About, model: Model, label_file: str) -> bool:
    """Whether the labels of a data set number the classes of this network.

    Digits do for a network of digits only; those of a folder do for any other when there are as
    many classes as the network has, as the folders of ImageNet's validation set. Classes that are
    numbers already are the network's own, and all of them need not occur. Raises InputError where
    ``label_file`` was given to no use.
    """
    classes, wanted = len(about.classes), model.num_classes
    fits = classes <= wanted if about.numbered and classes else classes == wanted
    if label_file and not (fits and model.label_source == about.kind):
        known = "none that files can label" if model.label_source != about.kind else f"{wanted}"
        raise InputError(
            f"labels {label_file!r}: {classes} classes, but the network has {known} "
            f"({model.name}, weights {model.weights!r}); numbers count from 0, names must be of "
            "all its classes. Give labels and weights that belong together, or leave labels out"
        )
    return fits and model.label_source == about.kind


def class_names(own: tuple[str, ...], model: Model) -> tuple[str, ...]:
    """Names of the network's classes: those of its data set, or of ImageNet where they say more.

    (): they have none that is known.
    """
    said = any(not (name.isdigit() or _WNID.fullmatch(name)) for name in own)
    if said or model.is_onnx or model.label_source != "folder" or model.num_classes != _IMAGENET:
        return own if len(own) == model.num_classes else ()  # numbers may be fewer
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)


def _make(at: Path, pool: Pool, model: Model, labelled: bool) -> None:
    """One picture at a time, so that memory does not grow with the pool."""
    import numpy as np

    dataset, spec, count = pool.dataset, model.spec, len(pool.indices)
    inputs = np.lib.format.open_memmap(at / "images.npy", "w+", spec.dtype, (count, *spec.shape))
    ends = np.cumsum(pool.sizes)
    with (at / "encoded.npy").open("wb") as blob:
        header = {"descr": "|u1", "fortran_order": False, "shape": (int(ends[-1]),)}
        np.lib.format.write_array_header_1_0(blob, header)
        for place in range(count):
            data = pool.read(place)
            blob.write(data)
            inputs[place] = preprocess.apply(spec, pool.decoded(place, data))
    inputs.flush()
    np.save(at / "ends.npy", ends)
    labels = [dataset.label(i) if labelled else -1 for i in pool.indices]
    np.save(at / "labels.npy", np.array(labels, np.int64))
    np.save(at / "logits.npy", model.answers(np.asarray(inputs)))
    dataset.save(at / _DATASET, _root(pool))
    about = _About(
        engine=model.engine,
        names=[dataset.name(i) for i in pool.indices],
        places=pool.indices,
        spec=spec,
        classes=class_names(dataset.classes if labelled else (), model),
        skipped=pool.skipped,
        taken=model.taken,
    )
    (at / "about.json").write_bytes(msgspec.json.encode(about))


def _root(pool: Pool) -> str:
    """Where the data set lies; within the cache relative to the entry, whichever folder it is."""
    root = pool.dataset.root
    if pool.dataset.about.kind == "folder":
        return str(root.absolute())
    return str(Path("..", "..", "..", *root.parts[-2:]))


def load(path: Path) -> Reference:
    """The reference that `build` left at ``path``; needs numpy only."""
    import numpy as np

    about = msgspec.json.decode((path / "about.json").read_bytes(), type=_About)
    return Reference(
        images=np.load(path / "images.npy", mmap_mode="r"),
        labels=np.load(path / "labels.npy"),
        logits=np.load(path / "logits.npy"),
        path=path,
        **msgspec.structs.asdict(about),
    )


def batches(batch_size: int, pool: int, at_least: int) -> list[NDArray[np.intp]]:
    """Which images of a pool make up each batch: index arrays of ``batch_size``.

    At least two batches and ``at_least`` images in all. Every slot sees a different image in the
    next batch; neighbours differ; where the pool is smaller than the batch it is shifted at every
    turn (a pool of 2 cannot be), so that no block of the batch repeats the one before it.
    """
    import numpy as np

    if pool < 2:
        raise ValueError(f"parity needs a pool of at least 2 images, not {pool}")
    slots = np.arange(batch_size)
    if pool > 2:
        slots = slots + slots // pool
    step = batch_size if batch_size % pool else 1
    return [(slots + i * step) % pool for i in range(turns(batch_size, at_least))]


def turns(batch_size: int, at_least: int) -> int:
    """How many `batches` there are."""
    return max(2, -(-at_least // batch_size))


def asked(policy: Policy, repeat: int) -> int:
    """Images that a repeat's check takes: accuracy over many is measured once, in the first."""
    return max(policy.parity_images, 0 if repeat else policy.accuracy_images)

"""The right answers, and the check of a backend's answers against them.

Every backend is fed the same preprocessed images; its logits are compared with those of fp32
eager PyTorch on the CPU (ONNX Runtime for a model that is an ONNX file). `batches` puts different
images into every slot of successive batches, so that a stale buffer, a wrong slot or a batch
computed only in part shows.
"""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from gpubench.answers import MOST_SHOWN, Disagreement, Parity
from gpubench.errors import CellFailed, InputError
from gpubench.workload import classes, datasets, judging, listing, preprocess
from gpubench.workload.models import Model, resolve
from gpubench.workload.preprocess import Spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.suite import Policy, Workload
    from gpubench.workload.cache import Cache
    from gpubench.workload.datasets import Dataset, Pool

FORMAT = 2
"""Raised whenever `build` would make something else of the same recipe."""
_DATASET = "dataset"

TOLERANCES = {
    "fp32": (2e-3, 0.95),
    "tf32": (0.1, 0.9),
    "fp16": (0.1, 0.9),
    "bf16": (0.5, 0.8),
    "amp": (0.5, 0.8),
    "int8": (1.5, 0.8),
}
"""Precision -> largest relative error of an image, least top-1 agreement.

What the ResNet-18 probe shows on digits: fp32 1e-5 (ONNX Runtime against eager), fp16 0.021, bf16
0.18, all at full agreement. Errors follow the rounding unit: the network multiplies it by about
100 at the worst image, because what tells two images apart is small beside what they share. The
limits leave room for deeper networks and yet fail a wrong answer, whose error is about 1, and a
precision one step coarser than the cell says: TF32 (as fp16: 0.02) in fp32, bf16 in fp16. Agreement
leaves room for images between two classes, which honest rounding may tip over.

int8 is judged against fp32, and what its 256 steps cost depends on the network. Seen on 64 digits,
largest error / agreement, with the recipes for CPUs and for TensorRT: model `digits` 0.05 / 0.98
and 0.03 / 0.98; ResNet-18 probe 0.59 / 0.95 and 0.86 / 0.89; ResNet-50 probe 0.60 / 0.94 and 0.84 /
0.95 (the worst of 128 images 1.4). Calibrated on pictures of too little contrast the three give 4.7
to 12 and 0.05 to 0.22; on black ones, with the recipe for CPUs, 1.5 to 4.9 and 0.09 to 0.48; on
noise, which spans more than digits do, 0.03 to 1.8 and 0.98 to 0.67.

An int8 file with Q/DQ nodes of its own is its own reference, computed in fp32 as its nodes say.
Other orders of rounding tip values to the next step of a quantiser: 0.15 on ResNet-18 quantised,
in exact integer arithmetic as well as with its fp32 operators fused, at full agreement. Integer
kernels that saturate (x86 without VNNI) give 1.8 and fail.
"""


class _About(Struct, frozen=True):
    engine: str
    names: list[str]
    spec: Spec
    classes: tuple[str, ...] = ()
    skipped: str = ""


class Reference(Struct, frozen=True):
    """Images as the network takes them, and what it answers."""

    images: NDArray[np.float32]
    """(N, 3, H, W), mapped from disk."""
    labels: NDArray[np.int64]
    """(N,); -1: no label that means anything to this network."""
    names: list[str]
    logits: NDArray[np.float32]
    """(N, classes)"""
    engine: str
    path: Path
    spec: Spec
    """How ``images`` were made of the encoded pictures."""
    classes: tuple[str, ...] = ()
    """Names of the network's classes by number; (): it has none that are known."""
    skipped: str = ""
    """What of a data set was left out, and why: see `gpubench.workload.datasets.Pool`."""

    def encoded(self, index: int) -> bytes:
        """The encoded picture that ``images[index]`` was made of."""
        import numpy as np

        ends = np.load(self.path / "ends.npy", mmap_mode="r")
        blob = np.load(self.path / "encoded.npy", mmap_mode="r")
        found: bytes = blob[ends[index - 1] if index else 0 : ends[index]].tobytes()
        return found

    def dataset(self) -> Dataset:
        """The whole data set that the images were drawn from; cheap, needs numpy only."""
        return listing.load(self.path / _DATASET)


def build(workload: Workload, policy: Policy, cache: Cache) -> Path:
    """Make (or find in the cache) the workload's reference; returns what `load` takes.

    Slow and heavy (it imports torch): for a worker process. Raises InputError for images, models
    or weights that do not exist.
    """
    model = resolve(workload, cache)
    count = max(policy.parity_images, policy.accuracy_images, datasets.POOL)
    pool = datasets.draw(datasets.find(workload, cache, count), count, policy.seed)
    labelled = classes.meaningful(pool.dataset.about, model, workload.labels)
    known = labelled and any(pool.dataset.label(i) >= 0 for i in pool.indices)
    judging.needs_labels(workload, policy, model.num_classes, known)
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


def _make(at: Path, pool: Pool, model: Model, labelled: bool) -> None:
    """One picture at a time, so that memory does not grow with the pool."""
    import numpy as np

    dataset, spec, count = pool.dataset, model.spec, len(pool.indices)
    inputs = np.lib.format.open_memmap(
        at / "images.npy", "w+", np.float32, (count, *model.input_shape)
    )
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
    named = classes.names(dataset.classes if labelled else (), model)
    names = [dataset.name(i) for i in pool.indices]
    about = _About(model.engine, names, spec, named, pool.skipped)
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
        names=about.names,
        logits=np.load(path / "logits.npy"),
        engine=about.engine,
        path=path,
        spec=about.spec,
        classes=about.classes,
        skipped=about.skipped,
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


def check(
    reference: Reference,
    batches: list[NDArray[np.intp]],
    outputs: list[NDArray[np.float32]],
    precision: str,
    policy: Policy,
) -> Parity:
    """Judge the logits (batch, classes) that a backend gave for each of ``batches``.

    The relative error of an image is ||(z - mean z) - (r - mean r)|| / ||r - mean r||, because a
    common offset of all logits changes no answer. Logits that are not finite fail. An image with
    a label counts once for accuracy, and as correct when it was right every time it was asked: a
    batch larger than the pool asks several times, which is no more evidence. The floors of accuracy
    are judged where as many images were asked about as ``policy.accuracy_images`` says. Of those
    beyond ``policy.parity_images`` the relative error is left out, but that it is finite: the worst
    of a thousand is larger than that of the few that TOLERANCES are for (bf16, ResNet-18 probe:
    0.6 of 640 images). Raises CellFailed("parity") for logits of the wrong number or shape.
    """
    import numpy as np

    expected = [(len(batch), reference.logits.shape[1]) for batch in batches]
    found = [np.shape(output) for output in outputs]
    if found != expected:
        both = zip(found, expected, strict=False)
        what = next((f"{f}, not {e}" for f, e in both if f != e), f"{len(found)} batches")
        raise CellFailed("parity", f"logits are {what}, expected {len(expected)} batches")
    compared = [_compare(reference, *pair) for pair in zip(batches, outputs, strict=True)]
    answers, errors, ranks = (np.stack(each) for each in zip(*compared, strict=True))
    further = errors[turns(len(batches[0]), policy.parity_images) :]
    further[np.isfinite(further)] = 0.0
    picked = np.stack(batches)
    wrong = answers != reference.logits.argmax(axis=1)[picked]
    largest, least = _tolerance(precision, policy)
    error, agreement = float(errors.max()), float(1 - wrong.mean())
    counts = judging.count(reference, picked, ranks)
    whole = len(np.unique(picked)) >= min(policy.accuracy_images, len(reference.labels))
    disagreeing, shown = judging.disagreements(reference, picked, wrong, outputs)
    return Parity(
        images=picked.size,
        relative_error=error if error < inf else None,
        top1_agreement=agreement,
        worst_slot=int(errors.max(axis=0).argmax()),
        max_relative_error=largest,
        min_top1_agreement=least,
        passed=error <= largest and agreement >= least,
        reference=reference.engine,
        min_accuracy=policy.min_accuracy if whole else None,
        max_accuracy_drop=policy.max_accuracy_drop if whole else None,
        accurate=judging.accurate(counts, policy) if whole else True,
        disagreeing=disagreeing,
        disagreements=shown,
        **msgspec.structs.asdict(counts),
    )


def _compare(
    reference: Reference, batch: NDArray[np.intp], output: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]:
    """Of each image: the answer (-1: not finite), its relative error, its label's rank."""
    import numpy as np

    right, z = reference.logits[batch].astype(np.float64), output.astype(np.float64)
    finite = np.asarray(np.isfinite(z).all(axis=1))
    z = np.where(finite[:, None], z, 0.0)
    errors = _norm(_centred(z) - _centred(right)) / np.maximum(_norm(_centred(right)), 1e-30)
    ranks = judging.ranks(z, reference.labels[batch])
    return (
        np.where(finite, z.argmax(axis=1), -1),
        np.where(finite, errors, inf),
        np.where(finite, ranks, z.shape[1]),
    )


def merge(parities: list[Parity]) -> Parity:
    """One verdict over replicas: the worst error; passed, and accurate, when every one was.

    Answers are pooled. Images with labels are not, because all replicas are asked the same ones:
    of those that were correct, the worst replica's count. Disagreements are those of all, each
    image once; ``disagreeing`` is the most of one replica, or as many as are shown.
    """
    worst = max(parities, key=lambda p: inf if p.relative_error is None else p.relative_error)
    total = sum(p.images for p in parities)
    shown: dict[str, Disagreement] = {}
    for each in (d for p in parities for d in p.disagreements):
        shown.setdefault(each.name, each)
    return msgspec.structs.replace(
        worst,
        images=total,
        top1_agreement=sum(p.top1_agreement * p.images for p in parities) / total,
        passed=all(p.passed for p in parities),
        labelled=max(p.labelled for p in parities),
        correct=min(p.correct for p in parities),
        correct5=min(p.correct5 for p in parities),
        accurate=all(p.accurate for p in parities),
        disagreeing=max(len(shown), *(p.disagreeing for p in parities)),
        disagreements=list(shown.values())[:MOST_SHOWN],
    )


def _tolerance(precision: str, policy: Policy) -> tuple[float, float]:
    largest, least = TOLERANCES.get(precision, (None, None))
    largest, least = policy.max_relative_error or largest, policy.min_top1_agreement or least
    if largest is None or least is None:
        raise InputError(
            f"precision {precision!r} has no tolerance of its own: set policy.max_relative_error "
            "and policy.min_top1_agreement"
        )
    return largest, least


def _centred(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    centred: NDArray[np.float64] = logits - logits.mean(axis=-1, keepdims=True)
    return centred


def _norm(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    norms: NDArray[np.float64] = np.sqrt((vectors * vectors).sum(axis=-1))
    return norms

"""The right answers: images as the network takes them, their labels, and what it says of them.

Every backend is fed the same preprocessed images; its logits are compared with those of fp32
eager PyTorch on the CPU (ONNX Runtime for a model that is an ONNX file). `batches` puts different
images into every slot of successive batches, so that a stale buffer, a wrong slot or a batch
computed only in part shows.
"""

from __future__ import annotations

import re
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from gpubench.cache import recipe_of
from gpubench.errors import ChangedError, InputError
from gpubench.records.record import IMAGES_SKIPPED, LABELLING, NETWORK, WEIGHTS_TAKEN
from gpubench.suite.types import model_path
from gpubench.workload.data import dataset_index, datasets, label_files, preprocess
from gpubench.workload.data.image_file import Unusable
from gpubench.workload.data.label_files import SYNSETS, WNID
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models import given_input, outputs
from gpubench.workload.models.registry import is_file, resolve

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.cache import Cache
    from gpubench.suite.types import Input, Policy, Workload
    from gpubench.workload.data.dataset_index import Pictures
    from gpubench.workload.data.datasets import Pool
    from gpubench.workload.data.preprocess import Inputs
    from gpubench.workload.models.base import Model

FORMAT = 5
"""Raised whenever `build` would make something else of the same recipe."""
_DATASET = "dataset"


class _About(Struct, frozen=True, kw_only=True):
    engine: str
    names: list[str]
    places: list[int] = []
    """Where in the data set the pictures are."""
    spec: Spec
    """How ``images`` were made of the encoded pictures."""
    classes: tuple[str, ...] = ()
    """Names of the network's classes by number; (): it has none that are known."""
    output: outputs.Kind = "logits"
    """What the answers are."""
    facts: dict[str, str] = {}
    """Of every record, see `gpubench.records.record.NOTED`: what was left out, taken or assumed."""


class About(_About, frozen=True, kw_only=True):
    """What is known of a reference without its arrays."""

    outputs: int
    """Numbers that an image is answered with."""


class Labels(Struct, frozen=True):
    """Which classes of a network those of a data set are."""

    numbers: tuple[int, ...] = ()
    """By their place in `About.classes`; -1: none. (): its labels say nothing of this network."""
    said: str = ""
    """Why they do not; or what was taken for granted, and what is odd about them."""


class Reference(_About, frozen=True, kw_only=True):
    """Images as the network takes them, and what it answers."""

    images: Inputs
    """(N, *spec.shape), mapped from disk."""
    labels: NDArray[np.int64]
    """(N,); -1: no label that means anything to this network."""
    logits: NDArray[np.float32]
    """(N, classes), as the network answers: see ``output``."""
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
                    f"images {str(dataset.root)!r}: '{self.names[place]}' is not what it was when "
                    "the run began; put it back and go on with --resume, or start a new run"
                )


def build(workload: Workload, policy: Policy, cache: Cache, dtype: Input = "float32") -> Path:
    """Make (or find in the cache) the workload's reference; returns what `load` takes.

    ``dtype``: of what the host gives, see `gpubench.suite.types.Cell.input`.

    Slow and heavy (it imports torch): for a worker process. Raises InputError for images, models
    or weights that do not exist.
    """
    model = given_input.given(resolve(workload, cache), dtype, cache)
    count = max(policy.parity_images, policy.accuracy_images, datasets.POOL)
    pool = datasets.draw(datasets.find(workload, cache, count), count, policy.seed)
    labels = match(pool.dataset, model, bool(workload.labels))
    if workload.labels and not labels.numbers:
        raise InputError(
            f"labels {workload.labels!r} are not those of {model.name} ({model.weights}): "
            f"{labels.said}. Give labels and weights that belong together, or leave labels out"
        )
    if labels.numbers and all(pool.dataset.label(i) < 0 for i in pool.indices):
        labels = Labels(said=f"none of the {len(pool.indices)} pictures drawn has a label")
    _needs_labels(workload, policy, labels)
    recipe = {
        "format": FORMAT,
        "network": model.identity,
        "images": pool.fingerprint,
        "root": _root(pool),
        "spec": msgspec.to_builtins(model.spec),
        "labels": msgspec.to_builtins(labels),
        "engine": model.engine,
    } | ({"skipped": pool.skipped} if pool.skipped else {})
    return cache.get_or_make("reference", recipe, lambda at: _make(at, pool, model, labels))


def contents(workload: Workload, path: Path) -> dict[str, str]:
    """SHA-256 of what the paths of ``workload`` held when `build` made ``path``, by part."""
    made = recipe_of(path)
    found = {"model": made["network"]} if is_file(workload) else {}
    if model_path(workload.model):  # a file beside it may say it
        found["preprocessing"] = sha256(msgspec.json.encode(made["spec"])).hexdigest()
    return found | ({"images": made["images"]} if datasets.is_path(workload.images) else {})


def _needs_labels(workload: Workload, policy: Policy, labels: Labels) -> None:
    """Raises InputError where an accuracy floor is set and no image has a label that counts."""
    floors = {"min_accuracy": policy.min_accuracy, "max_accuracy_drop": policy.max_accuracy_drop}
    name = next((name for name, value in floors.items() if value is not None), None)
    if name and not labels.numbers:
        raise InputError(
            f"policy.{name} = {floors[name]:g}: images {workload.images!r} have no labels that "
            f"number the classes of {workload.model} ({workload.weights}): {labels.said}; give a "
            "folder with one sub-folder for each of its classes or a file of labels, images = "
            "'digits' with weights = 'probe', or leave the floor out"
        )


def match(dataset: Pictures, model: Model, by_file: bool) -> Labels:
    """Which of the network's classes the labels of a data set are, if any.

    Digits count for a network of digits only, all others for any other network. Numbers are the
    network's own, from 0, and not all need occur. Names are looked up among the network's own,
    or ImageNet's where it has a thousand and none of its own. WordNet ids, and names of a network
    that has none, are numbered in sorted order, as ImageFolder does, where they are as many as its
    classes. ``by_file``: a file says the labels.
    """
    about, wanted = dataset.about, model.num_classes
    if model.label_source is None:
        return Labels(said=f"weights {model.weights!r} know no classes")
    if about.kind == "folder" and model.label_source != "folder":
        return Labels(said=f"with weights {model.weights!r} the network knows digits only")
    if not about.classes:
        return Labels(said=about.notes or f"images {about.kind!r} have no labels")
    if model.label_source != about.kind:
        return Labels(said=f"the labels of images {about.kind!r} are not the network's classes")
    used = set(dataset.arrays["labels"].tolist())
    folders = about.kind == "folder" and not (by_file or about.archives)
    names = [name for i, name in enumerate(about.classes) if i in used or not folders]
    own = _synonyms(model.class_names)
    if own and (numbers := _by_name(names, own)):
        said = ""
    elif all(map(label_files.is_number, names)):
        numbers, said = _numbered(names, wanted, folders)
    elif wanted == SYNSETS and (numbers := _imagenet(names)):
        said = f"{_some(names, folders)}: taken for classes of ImageNet, by name"
    elif own and not all(map(WNID.fullmatch, names)):
        unknown = [name for name in names if not _by_name([name], own)]
        numbers, shown = {}, _some([*model.class_names], folders=False)
        said = f"{_some(unknown, folders)} that the network does not have: it knows {shown}"
    else:
        if len(about.classes) == wanted:  # of which some have no pictures here
            names = list(about.classes)
        numbers, said = _sorted(names, wanted, folders)
        if numbers and len(names) < len(about.classes):
            left = [name for name in about.classes if name not in numbers]
            said = f"{_some(left, folders)} without pictures: no classes; {said}".rstrip("; ")
    said = "; ".join(filter(None, (said, about.notes)))
    return Labels(tuple(numbers.get(n, -1) for n in about.classes) if numbers else (), said)


def _synonyms(classes: tuple[str, ...]) -> dict[str, int]:
    """Name -> number, of 'tench, Tinca tinca' both names; -1: of more than one class."""
    found: dict[str, int] = {}
    for number, name in enumerate(classes):
        for one in {name, *(part.strip() for part in name.split(","))}:
            found[one] = -1 if one in found else number
    return found


def _some(names: list[str], folders: bool) -> str:
    """'4 folders ('ant', 'bee', 'cat', …)'"""
    shown = ", ".join(f"'{name}'" for name in names[:3]) + (", …" if len(names) > 3 else "")
    kind = ("folder", "folders") if folders else ("class", "classes")
    return f"{len(names):,} {kind[len(names) != 1]} ({shown})"


def _numbered(names: list[str], wanted: int, folders: bool) -> tuple[dict[str, int], str]:
    """Name -> class, of names that are numbers, and what to say; {}: none of this network."""
    numbers = {name: label_files.value(name) for name in names}
    least, most = min(numbers.values()), max(numbers.values())
    in_order = names == sorted(names, key=numbers.__getitem__)
    often = Counter(numbers.values())
    if twice := [name for name in names if often[numbers[name]] > 1]:
        return {}, f"{_some(twice, folders)}: the same number"
    if least >= 0 and most < wanted:
        note = f"{_some(names, folders)} are class numbers, whereas ImageFolder sorts them as text"
        return numbers, note if folders and not in_order else ""
    if folders and in_order and len(names) == wanted:
        note = f"folders '{names[0]}' to '{names[-1]}' taken for classes 0 to {wanted - 1}"
        return {name: i for i, name in enumerate(names)}, note
    return {}, (
        f"{_some(names, folders)}, numbers from {least} to {most}, and the network's {wanted:,} "
        f"classes are 0 to {wanted - 1}"
    )


def _sorted(names: list[str], wanted: int, folders: bool) -> tuple[dict[str, int], str]:
    """Name -> class, of sorted names, and what to say; {}: they are not the network's."""
    if len(names) != wanted:
        said = f"{_some(names, folders)}, and the network has {wanted:,} classes"
        if wanted == SYNSETS and all(map(WNID.fullmatch, names)):
            said += (
                "; which of them a WordNet id is can be told of all 1,000 together and of "
                "Imagenette's ten: give a file of labels with numbers"
            )
        return {}, said
    said = ""
    natural = sorted(names, key=_natural)
    if any(map(label_files.is_number, names)):
        said = f"{_some(names, folders)}, numbers and words: numbered in the order of text"
    elif names != natural:
        first, second = next(pair for pair in zip(names, natural, strict=True) if len({*pair}) > 1)
        said = f"numbered in the order of text, as ImageFolder does: '{first}' before '{second}'"
    return {name: i for i, name in enumerate(names)}, said


def _natural(name: str) -> list[str | int]:
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _imagenet(names: list[str]) -> dict[str, int]:
    """Name -> number, where all are names or WordNet ids that torchvision knows; else {}.

    It has the ids of Imagenette's ten classes only; all thousand need none, in sorted order.
    """
    if len(names) == SYNSETS and all(map(WNID.fullmatch, names)):
        return {}
    from torchvision.datasets import Imagenette
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    exact = {name: number for number, name in enumerate(_IMAGENET_CATEGORIES)}
    exact |= {wnid: exact[words[0]] for wnid, words in Imagenette._WNID_TO_CLASS.items()}
    return _by_name(names, exact)


def _by_name(names: list[str], exact: dict[str, int]) -> dict[str, int]:
    """Name -> number, where ``exact`` has all of them, but for case, spaces and dashes; else {}."""
    plain: dict[str, int] = {}
    for name, number in exact.items():
        plain[_plain(name)] = -1 if _plain(name) in plain else number  # a dog, and a garment
    found = {name: exact.get(name, plain.get(_plain(name), -1)) for name in names}
    return {} if -1 in found.values() else found


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).casefold()


def _own_names(classes: tuple[str, ...], numbers: tuple[int, ...]) -> tuple[str, ...]:
    """``classes`` in the order of their ``numbers``; (): some number has none."""
    named = sorted((n, name) for n, name in zip(numbers, classes, strict=False) if n >= 0)
    whole = [n for n, _ in named] == list(range(len(named)))
    return tuple(name for _, name in named) if whole else ()


def class_names(own: tuple[str, ...], model: Model) -> tuple[str, ...]:
    """Names of the network's classes: those of its data set, or of ImageNet where they say more.

    (): they have none that is known.
    """
    said = any(not (name.isdigit() or WNID.fullmatch(name)) for name in own)
    if not said and model.class_names:
        return model.class_names
    imagenet = model.knows_imagenet and model.label_source == "folder"
    if said or not imagenet or model.num_classes != SYNSETS:
        return own if len(own) == model.num_classes else ()  # numbers may be fewer
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)


def _make(at: Path, pool: Pool, model: Model, labels: Labels) -> None:
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
    numbers = [*(labels.numbers or [-1] * len(dataset.classes)), -1]  # the last of no class
    own = [numbers[dataset.label(i)] for i in pool.indices]
    np.save(at / "labels.npy", np.array(own, np.int64))
    answers = model.answers(np.asarray(inputs))
    names = [dataset.name(i) for i in pool.indices]
    _require_finite(model, answers, inputs, names)
    np.save(at / "logits.npy", answers)
    output = outputs.of_answers(answers, model.output_kind)
    dataset.save(at / _DATASET, _root(pool))
    said = {
        IMAGES_SKIPPED: pool.skipped,
        WEIGHTS_TAKEN: model.taken,
        NETWORK: "; ".join([f"it answers with {output}"] * (output != "logits") + model.notes),
        LABELLING: labels.said
        and f"{'labels' if labels.numbers else 'no accuracy'}: {labels.said}",
    }
    about = _About(
        engine=model.engine,
        names=names,
        places=pool.indices,
        spec=spec,
        classes=class_names(_own_names(dataset.classes, labels.numbers), model),
        output=output,
        facts={fact: words for fact, words in said.items() if words},
    )
    (at / "about.json").write_bytes(msgspec.json.encode(about))


def _require_finite(
    model: Model, answers: NDArray[np.float32], images: Inputs, names: list[str]
) -> None:
    import numpy as np

    bad = np.flatnonzero(~np.isfinite(answers).all(axis=1))
    if len(bad):
        first = int(bad[0])
        where = model.first_not_finite(np.array(images[first : first + 1]))
        raise InputError(
            f"model {model.name!r} ({model.weights}): the network's own answers are not finite, of "
            f"{len(bad)} of {len(answers)} images, the first {names[first]!r}"
            + (f"; the first layer that is not: {where}" if where else "")
            + ". Look at how it was trained and exported, and at its preprocessing"
        )


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


def about(path: Path) -> About | None:
    """Of the reference that `build` left at ``path``; None: another version's has another form."""
    import numpy as np

    try:
        said = msgspec.json.decode((path / "about.json").read_bytes(), type=_About)
        logits = np.load(path / "logits.npy", mmap_mode="r")
    except (OSError, ValueError):
        return None
    return About(outputs=logits.shape[1], **msgspec.structs.asdict(said))


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

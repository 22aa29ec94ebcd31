"""Building networks, whoever's they are: which arguments and weights, how fast again."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Struct

from gpubench.errors import ChangedError, InputError
from gpubench.suite.types import weights_file
from gpubench.units import count
from gpubench.workload.data import preprocess
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models import checkpoint, registry
from gpubench.workload.models.base import MOST_CLASSES, head

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gpubench.suite.types import Workload
    from gpubench.workload.models.torch_model import TorchSource

    State = OrderedDict[str, Tensor]

HERE = "as its weights were made here"
STATE_DICT = "assumed: a state dict does not say"
DIGITS = 10
"""Classes of weights ``probe``."""
FORMAT = 7
"""Raised whenever `make` would make something else of the same recipe."""
_STATE, CARD = "state.pt", "model.json"
_DENSE = re.compile(r"(\bdenselayer\d+\.(?:norm|conv))\.([12]\.)")
_SHOWN = 3
"""Keys that a message names."""


class Card(Struct, frozen=True, kw_only=True):
    """All that is needed, beside the state dict, to build a network again."""

    name: str
    num_classes: int
    arguments: dict[str, Any]
    """Of its builder, beside ``num_classes``."""
    spec: Spec
    own: Spec | None = None
    """What the network itself takes, where it is given ``spec`` (see `given_input`)."""
    held_out_accuracy: float | None = None
    """``probe``, and `digits`: the share of right answers on digits that its fit did not see."""
    taken: str = ""
    """What of a file was taken, where it holds more that fits, or that is left out."""
    output: str | int | None = None
    flat: bool = True
    """Which of its outputs has the answers, see `trial.Shape`; whether it has two dimensions."""
    fixed_batch: int = 0
    """0: any."""
    classes: tuple[str, ...] = ()
    """Their names by number; (): it does not say."""
    notes: list[str] = []
    files: dict[str, str] = {}
    """SHA-256, by path, of the user's files that it is built by."""


def make(work: Workload, at: Path) -> None:
    """Fill the cache entry ``at`` with a network's state dict and card.

    Weights: probe (of `digits`: the trained ones), random, a file (see
    `gpubench.suite.types.weights_file`), or a name of published ones.
    Raises InputError when the weights do not exist, cannot be had, or do not fit the network, and
    for a network that is no classifier of pictures.
    """
    import torch

    from gpubench.workload.models import trial

    name, weights, accuracy, taken = work.model, work.weights, None, ""
    source = source_of(name)
    arguments = source.arguments(name) | dict(work.arguments)
    if made_here := weights in ("probe", "random"):
        classes = DIGITS if weights == "probe" else source.random_classes
        spec = source.spec(work, build(name, classes, arguments, idle=True))
        # Pictures fill the frame: cropping a digit's edge away would only cost accuracy.
        spec = msgspec.structs.replace(spec, resize=min(spec.size), source=HERE)
    else:
        file, key = weights_file(weights)
        loaded: object = None
        if Path(file).expanduser().is_file() and weights != "file":
            loaded = checkpoint.read(Path(file).expanduser())
            spec = source.spec(work, build(name, 1000, arguments, idle=True))
            spec = msgspec.structs.replace(spec, source=STATE_DICT, assumed=True)
        else:
            published = source.published(work, arguments)
            spec, loaded = published.spec, published.given
            arguments |= published.arguments
    spec, resized = _override(spec, work, arguments)
    if made_here:
        module = build(name, classes, resized)
        if weights == "random":
            _wake(module)
    elif isinstance(loaded, torch.nn.Module):
        again = resized != arguments
        module = source.published(work, resized).given if again else loaded
        module = module.float().eval().requires_grad_(False)
    else:
        state, classes, taken = _chosen(name, file, key, loaded, resized)
        module = _with(name, classes, resized, state).float()
    fixed = source.batch(module)
    found = trial.examine(module, spec, name, work.output, fixed)
    if weights == "probe":
        accuracy = source.fit(trial.plain(module, found), spec, found.classes)
    state = cast("State", module.state_dict())
    # In place: the dict also carries format versions, which MNASNet needs. Not before its shapes
    # are known to fit: a small file may hold tensors that claim to be vast.
    for key, tensor in state.items():
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        state[key] = tensor.detach().contiguous()
    torch.save(state, at / _STATE)
    names = source.classes(work) if not made_here else ()
    about = Card(
        name=name,
        num_classes=found.classes,
        arguments=resized,
        spec=spec,
        held_out_accuracy=accuracy,
        taken=taken,
        output=found.output,
        flat=found.flat,
        fixed_batch=fixed,
        classes=names if len(names) == found.classes else (),
        notes=found.notes,
        files=source.files(name),
    )
    (at / CARD).write_bytes(msgspec.json.encode(about))


def _wake(module: nn.Module) -> None:
    """Random numbers, and ones in normalisations, where training begins with zeros alone, as in
    many a head and residual branch: all answers would be 0, whatever a runtime does."""
    from torch import nn

    with _seeded():
        for part in module.modules():
            weight = getattr(part, "weight", None)
            if isinstance(weight, nn.Parameter) and not weight.any():
                (nn.init.xavier_uniform_ if weight.ndim > 1 else nn.init.ones_)(weight)


def _override(spec: Spec, work: Workload, arguments: dict[str, Any]) -> tuple[Spec, dict[str, Any]]:
    """What the suite says in place of ``spec``, and what the network is built with for that.

    Raises InputError also for a size that the network cannot take.
    """
    import torch

    source = source_of(work.model)
    found = preprocess.override(spec, work.preprocess, work.model, fixed=source.sizes == "fixed")
    if found.size == spec.size or source.sizes == "any":
        return found, arguments
    refused = ""
    for more in ({}, source.at_size(work.model, found.size)):
        try:
            module = build(work.model, DIGITS, arguments | more, idle=True)
            with torch.inference_mode():
                module(torch.zeros(2, *found.shape, device="meta" if source.meta else "cpu"))
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            refused = refused or str(error).splitlines()[0]
        else:
            return found, arguments | more
    raise InputError(
        f"workload.preprocess.size = {list(found.size)}: {work.model} takes {list(spec.size)}, and "
        f"not this ({refused})"
    )


def source_of(name: str) -> TorchSource:
    """Where the network of that name comes from; it is none of an ONNX file."""
    return cast("TorchSource", registry.of(name))


def card(state: Path) -> Card:
    """What the cache entry ``state`` says of its network."""
    return msgspec.json.decode((state / CARD).read_bytes(), type=Card)


def load_module(state: Path) -> nn.Module:
    """The network of a cache entry that `make` filled: fp32, eval, on the CPU, without gradients.

    Built without initialising and with its weights mapped from the file, so replicas share them.
    Raises ChangedError for own code that is not what it was.
    """
    import torch

    from gpubench.workload.models import trial

    about = card(state)
    weights = torch.load(state / _STATE, map_location="cpu", mmap=True, weights_only=True)
    module = _with(about.name, about.num_classes, about.arguments, weights)
    now = source_of(about.name).files(about.name)
    if changed := [path for path, sha in about.files.items() if now.get(path) != sha]:
        raise ChangedError(
            f"model {about.name!r}: {changed[0]!r} is not what it was when the run began; put it "
            "back and go on with --resume, or start a new run"
        )
    module = trial.plain(module, trial.Shape(about.output, about.num_classes, [], about.flat))
    return trial.Normalised(module, about.own, about.spec.dtype).eval() if about.own else module


def _with(name: str, classes: int, arguments: dict[str, Any], weights: State) -> nn.Module:
    """The network with these weights, which fit."""
    complete = False
    if source_of(name).meta:
        module = build(name, classes, arguments, idle=True)
        module.load_state_dict(weights, assign=True)
        complete = not any(_on_meta(part) for part in module.modules())
    if not complete:
        module = build(name, classes, arguments)
        module.load_state_dict(weights)
    return module.requires_grad_(False)


def build(name: str, classes: int, arguments: dict[str, Any], idle: bool = False) -> nn.Module:
    """In eval mode; ``idle``: without values, where that is quicker. The same ones each time."""
    import torch

    source = source_of(name)
    if idle and source.meta:
        # a builder may compute with its tensors, as regnet's does
        with suppress(NotImplementedError, RuntimeError), torch.device("meta"):
            return source.build(name, classes, arguments).eval()
    with _seeded(), torch.device("cpu"):
        module = source.build(name, classes, arguments)
        module.eval()  # which own code may let return nothing
    return module.float()


@contextmanager
def _seeded() -> Iterator[None]:
    """Within it torch draws the same random numbers each time."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _chosen(
    name: str,
    weights: str,
    key: str,
    loaded: object,
    arguments: dict[str, Any],
) -> tuple[State, int, str]:
    """The state dict in ``loaded`` that fits, its number of classes, and `Card.taken`.

    ``key``: of the one that is wanted; '': any.
    """
    module = build(name, 1000, arguments, idle=True)
    last = head(module, 1000)
    named_layers = [where for where, part in module.named_modules() if part is last and last]
    layer = f"{named_layers[0]}.weight" if named_layers else next(iter(module.state_dict()), "")
    found = checkpoint.candidates(loaded, layer)
    if not found:
        raise InputError(f"weights {weights!r}: {checkpoint.described(loaded)}")
    named = [one for one in found if not key or f"{one.name}.".startswith(f"{key}.")]
    if not named:
        known = ", ".join(repr(one.name) for one in found)
        raise InputError(
            f"weights {weights!r}: that file has no {key!r}; dicts of tensors: {known}"
        )
    for one in named:
        _tidy(one.state, source_of(name).dropped)
    judged = [(*_fit(name, one.state, layer, arguments), one) for one in named]
    fitting = [(classes, one) for classes, misfits, one in judged if not misfits]
    if not fitting:
        _, misfits, one = min(judged, key=lambda each: sum(n for n, _ in each[1]))
        where = f" {one.name!r}" if one.name else ""
        what = "; ".join(words for _, words in misfits)
        raise InputError(
            f"weights {weights!r} are not {name}'s:{where} {what}; where it was built otherwise, "
            "say so in [workload.arguments]"
        )
    classes, one = fitting[0]
    taken = ""
    if others := [repr(other.name) for _, other in fitting[1:] if not key]:
        taken = (
            f"{one.name!r} is taken, and {', '.join(others)} not: weights = "
            f"'{Path(weights).name}#{fitting[1][1].name}' takes that"
        )
    if one.beside:
        some = ", ".join(map(repr, one.beside[:_SHOWN]))
        left = f"left out, beside the network's: {count(len(one.beside), 'tensor')} ({some})"
        taken = "; ".join(filter(None, (taken, left)))
    return one.state, classes, taken


def _tidy(state: State, dropped: tuple[str, ...]) -> None:
    """Without the classifiers that only training uses; DenseNet's keys as they are called today."""
    for key in list(state):
        if key.startswith(dropped or "\0"):
            del state[key]
        elif key != (today := _DENSE.sub(r"\1\2", key)):
            state[today] = state.pop(key)


def _fit(
    name: str, state: State, layer: str, arguments: dict[str, Any]
) -> tuple[int, list[tuple[int, str]]]:
    """Classes of a state dict, and how many of its tensors do not fit the network, in words.

    ``layer``: the key of its last weights.
    """
    shape = tuple(state[layer].shape) if layer in state else ()
    classes = shape[0] if shape and 0 < shape[0] <= MOST_CLASSES else 1000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loading onto meta, not assigned: nothing, it says
        module = build(name, classes, arguments, idle=True)
        try:
            module.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            reason = str(error)
        else:
            return classes, []
    own = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    given = {key: tuple(tensor.shape) for key, tensor in state.items()}
    missing = [repr(key) for key in own if key not in given]
    unknown = [repr(key) for key in given if key not in own]
    other = [
        f"{key!r} is {given[key]}, not {own[key]}"
        for key in own
        if key in given and own[key] != given[key]
    ]
    kinds = (
        (missing, f"missing: {len(missing)} of {len(own)} tensors"),
        (unknown, f"unknown to it: {len(unknown)}"),
        (other, f"of another shape: {len(other)}"),
    )
    listed = [
        (len(keys), f"{words} ({', '.join(keys[:_SHOWN])}{', ...' * (len(keys) > _SHOWN)})")
        for keys, words in kinds
        if keys
    ]
    return classes, listed or [(1, reason)]


def _on_meta(part: nn.Module) -> bool:
    """Whether a tensor of this module, registered or not, still lacks its values."""
    import torch

    own = [*part._parameters.values(), *part._buffers.values(), *vars(part).values()]
    return any(isinstance(value, torch.Tensor) and value.is_meta for value in own)

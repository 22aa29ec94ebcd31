"""Building networks, torchvision's and our own: which arguments and weights, how fast again."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from gpubench.errors import InputError
from gpubench.suite.types import weights_file
from gpubench.units import count
from gpubench.workload.data import preprocess
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models import checkpoint, digits_net
from gpubench.workload.models.base import MOST_CLASSES, head

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gpubench.suite.types import Preprocess

    State = OrderedDict[str, Tensor]

HERE = "as its weights were made here"
TORCHVISION = "as torchvision's weights say"
STATE_DICT = "assumed: a state dict does not say"
FORMAT = 2
"""Raised whenever `make` would make something else of the same recipe."""
_STATE, _CARD = "state.pt", "model.json"
_DENSE = re.compile(r"(\bdenselayer\d+\.(?:norm|conv))\.([12]\.)")
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
_SHOWN = 3
"""Keys that a message names."""


class Card(Struct, frozen=True, kw_only=True):
    """All that is needed, beside the state dict, to build a network again."""

    name: str
    num_classes: int
    arguments: dict[str, bool | int]
    """Of torchvision's builder, beside ``num_classes``."""
    spec: Spec
    held_out_accuracy: float | None = None
    """``probe``, and `digits`: the share of right answers on digits that its fit did not see."""
    taken: str = ""
    """What of a file was taken, where it holds more that fits, or that is left out."""


def make(name: str, weights: str, at: Path, said: Preprocess | None = None) -> None:
    """Fill the cache entry ``at`` with a network's state dict and card.

    ``said``: the suite's own preprocessing.

    ``weights``: probe (of `digits`: the trained ones), random, a file (see
    `gpubench.suite.types.weights_file`), or a name of torchvision's weights.
    Raises InputError when the weights do not exist, cannot be had, or do not fit the network.
    """
    import torch

    accuracy, taken, spec = None, "", _spec(name)
    arguments = _arguments(name)
    if weights in ("probe", "random"):
        # Pictures fill the frame: cropping a digit's edge away would only cost accuracy.
        spec = msgspec.structs.replace(spec, resize=min(spec.size), source=HERE)
        spec = _override(spec, said, name, arguments)
        classes = 10 if weights == "probe" or name == digits_net.NAME else 1000
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = _build(name, classes, arguments, initialise=True)
        if weights == "probe":
            from gpubench.workload.models import probe_weights

            fit = digits_net.fit if name == digits_net.NAME else probe_weights.fit
            accuracy = fit(module, spec)
        state: State = module.state_dict()
    else:
        file, key = weights_file(weights)
        loaded: object = None
        if Path(file).expanduser().is_file():
            loaded = checkpoint.read(Path(file).expanduser())
            spec = msgspec.structs.replace(spec, source=STATE_DICT, assumed=True)
        else:
            spec, arguments, loaded = _published(name, weights)
        spec = _override(spec, said, name, arguments)
        state, classes, taken = _chosen(name, file, key, loaded, arguments)
    # In place: the dict also carries format versions, which MNASNet needs. Not before its shapes
    # are known to fit: a small file may hold tensors that claim to be vast.
    for key, tensor in state.items():
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        state[key] = tensor.detach().contiguous()
    torch.save(state, at / _STATE)
    card = Card(
        name=name,
        num_classes=classes,
        arguments=arguments,
        spec=spec,
        held_out_accuracy=accuracy,
        taken=taken,
    )
    (at / _CARD).write_bytes(msgspec.json.encode(card))


def _override(
    spec: Spec, said: Preprocess | None, name: str, arguments: Mapping[str, bool | int]
) -> Spec:
    """Raises InputError also for a size that the network cannot take."""
    import torch

    found = preprocess.override(spec, said, name, fixed=False)
    if found.size != spec.size:
        try:
            with torch.device("meta"), torch.inference_mode():
                _build(name, 1000, dict(arguments))(torch.empty(2, *found.shape))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"workload.preprocess.size = {list(found.size)}: {name} takes "
                f"{list(spec.size)}, and not this ({str(error).splitlines()[0]})"
            ) from error
    return found


def card(state: Path) -> Card:
    """What the cache entry ``state`` says of its network."""
    return msgspec.json.decode((state / _CARD).read_bytes(), type=Card)


def load_module(state: Path) -> nn.Module:
    """The network of a cache entry that `make` filled: fp32, eval, on the CPU, without gradients.

    Built without initialising and with its weights mapped from the file, so replicas share them.
    """
    import torch

    about = card(state)
    weights = torch.load(state / _STATE, map_location="cpu", mmap=True, weights_only=True)
    try:
        with torch.device("meta"):
            module = _build(about.name, about.num_classes, about.arguments)
        module.load_state_dict(weights, assign=True)
        complete = not any(_on_meta(part) for part in module.modules())
    except (NotImplementedError, RuntimeError):  # a builder that computes with its tensors
        complete = False
    if not complete:
        module = _build(about.name, about.num_classes, about.arguments)
        module.load_state_dict(weights)
    return module.eval().requires_grad_(False)


def _build(
    name: str, classes: int, arguments: dict[str, bool | int], initialise: bool = False
) -> nn.Module:
    if name == digits_net.NAME:
        return digits_net.build(classes).eval()
    from torchvision.models import get_model

    extra = {"init_weights": initialise} if "aux_logits" in arguments else {}
    module: nn.Module = get_model(name, num_classes=classes, **arguments, **extra)
    return module.eval()


def _arguments(name: str) -> dict[str, bool | int]:
    """GoogLeNet and Inception: no auxiliary classifiers, which only training uses."""
    return {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}


def _trained_with(preset: Any) -> Spec:
    """The preprocessing of torchvision's weights, from their ``transforms()``."""
    return Spec(
        size=(preset.crop_size[0], preset.crop_size[-1]),
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        source=TORCHVISION,
    )


def _spec(name: str) -> Spec:
    """For weights that bring none: that of the smallest input, which the plain builder expects."""
    if name == digits_net.NAME:
        return digits_net.SPEC
    from torchvision.models import get_model_weights

    every = (_trained_with(member.transforms()) for member in get_model_weights(name))
    return min(every, key=lambda spec: spec.size)


def _published(name: str, weights: str) -> tuple[Spec, dict[str, bool | int], State]:
    """Torchvision's own weights, downloaded (or found where torch keeps such files)."""
    import torch
    from torchvision.models import get_model_weights

    members = get_model_weights(name).__members__
    if weights not in members:
        raise InputError(
            f"weights {weights!r}: {name} has {', '.join(members)} (or 'probe', 'random', a path)"
        )
    member = members[weights]
    try:
        state = member.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the file's digest is wrong
        raise InputError(
            f"weights {weights!r} of {name}: {member.url} cannot be had ({error}); put that file "
            f"into {Path(torch.hub.get_dir(), 'checkpoints')}, or use weights = 'probe', which "
            "need no download"
        ) from error
    arguments = _arguments(name)
    if "aux_logits" in arguments:
        arguments["transform_input"] = True  # they expect inputs in [-1, 1]
    if name.startswith("vit_"):
        arguments["image_size"] = member.meta["min_size"][0]
    return _trained_with(member.transforms()), arguments, state


def _chosen(
    name: str, weights: str, key: str, loaded: object, arguments: dict[str, bool | int]
) -> tuple[State, int, str]:
    """The state dict in ``loaded`` that fits, its number of classes, and `Card.taken`.

    ``key``: of the one that is wanted; '': any.
    """
    import torch

    with torch.device("meta"):
        module = _build(name, 1000, arguments)
    last = head(module)
    layer = next(name for name, part in module.named_modules() if part is last) + ".weight"
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
        _tidy(one.state, arguments)
    judged = [(*_fit(name, one.state, layer, arguments), one) for one in named]
    fitting = [(classes, one) for classes, misfits, one in judged if not misfits]
    if not fitting:
        _, misfits, one = min(judged, key=lambda each: sum(n for n, _ in each[1]))
        where = f" {one.name!r}" if one.name else ""
        what = "; ".join(words for _, words in misfits)
        raise InputError(f"weights {weights!r} are not {name}'s:{where} {what}")
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


def _tidy(state: State, arguments: dict[str, bool | int]) -> None:
    """Without the classifiers that only training uses; DenseNet's keys as they are called today."""
    for key in list(state):
        if "aux_logits" in arguments and key.startswith(_AUXILIARY):
            del state[key]
        elif key != (today := _DENSE.sub(r"\1\2", key)):
            state[today] = state.pop(key)


def _fit(
    name: str, state: State, layer: str, arguments: dict[str, bool | int]
) -> tuple[int, list[tuple[int, str]]]:
    """Classes of a state dict, and how many of its tensors do not fit the network, in words.

    ``layer``: the key of its last weights.
    """
    import torch

    shape = tuple(state[layer].shape) if layer in state else ()
    classes = shape[0] if shape and 0 < shape[0] <= MOST_CLASSES else 1000
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # loading onto meta, not assigned: nothing, it says
        module = _build(name, classes, arguments)
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

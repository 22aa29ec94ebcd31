"""Building networks, torchvision's and our own: which arguments and weights, how fast again."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from gpubench.errors import InputError
from gpubench.workload.data import preprocess
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models import digits_net
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
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
_WRAPPERS = ("state_dict", "model")
"""Keys below which training scripts keep the state dict."""


class Card(Struct, frozen=True, kw_only=True):
    """All that is needed, beside the state dict, to build a network again."""

    name: str
    num_classes: int
    arguments: dict[str, bool | int]
    """Of torchvision's builder, beside ``num_classes``."""
    spec: Spec
    held_out_accuracy: float | None = None
    """``probe``, and `digits`: the share of right answers on digits that its fit did not see."""


def make(name: str, weights: str, at: Path, said: Preprocess | None = None) -> None:
    """Fill the cache entry ``at`` with a network's state dict and card.

    ``said``: the suite's own preprocessing.

    ``weights``: probe (of `digits`: the trained ones), random, the path of a state dict, or a name
    of torchvision's weights.
    Raises InputError when the weights do not exist, cannot be had, or do not fit the network.
    """
    import torch

    accuracy, spec = None, _spec(name)
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
        file = Path(weights).expanduser()
        if file.is_file():
            state = _read(file)
            spec = msgspec.structs.replace(spec, source=STATE_DICT, assumed=True)
        else:
            spec, arguments, state = _published(name, weights)
        spec = _override(spec, said, name, arguments)
        classes = _check(name, weights, state, arguments)
    # In place: the dict also carries format versions, which MNASNet needs. Not before its shapes
    # are known to fit: a small file may hold tensors that claim to be vast.
    for key, tensor in state.items():
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        state[key] = tensor.detach().contiguous()
    torch.save(state, at / _STATE)
    card = Card(
        name=name, num_classes=classes, arguments=arguments, spec=spec, held_out_accuracy=accuracy
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
        for key in [key for key in state if key.startswith(_AUXILIARY)]:
            del state[key]
    if name.startswith("vit_"):
        arguments["image_size"] = member.meta["min_size"][0]
    return _trained_with(member.transforms()), arguments, state


def _read(file: Path) -> State:
    """A state dict from a file, also from inside a training checkpoint; no code is run."""
    import torch

    try:
        loaded: Any = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # whatever torch trips over in bytes from a stranger
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise InputError(
            f"weights {str(file)!r} cannot be read as a state dict ({reason}); save it with "
            "torch.save(module.state_dict(), path)"
        ) from error
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in loaded.items()
    ):
        raise InputError(
            f"weights {str(file)!r}: holds {type(loaded).__name__}, not a dict of tensors; save "
            "module.state_dict(), not the module"
        )
    plain = OrderedDict((key.removeprefix("module."), t) for key, t in loaded.items())
    versions = getattr(loaded, "_metadata", {})  # by module: MNASNet needs them
    plain._metadata = {  # type: ignore[attr-defined]
        (f"{k}.").removeprefix("module.")[:-1]: v
        for k, v in (versions.items() if isinstance(versions, dict) else ())
        if isinstance(v, dict)
    }
    return plain


def _check(name: str, weights: str, state: State, arguments: dict[str, bool | int]) -> int:
    """How many classes a state dict has, once sure that it fits the network."""
    import torch

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # loading onto meta, not assigned: nothing, it says
        module = _build(name, 1000, arguments)
        last = head(module)
        key = next(key for key, part in module.named_modules() if part is last) + ".weight"
        if key not in state:
            raise InputError(f"weights {weights!r} are not {name}'s: there is no {key!r}")
        shape = tuple(state[key].shape)
        classes = shape[0] if shape and 0 < shape[0] <= MOST_CLASSES else 0
        if not classes:
            raise InputError(f"weights {weights!r}: {key!r} has the shape {shape}, no classifier's")
        try:
            _build(name, classes, arguments).load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            lines = [line.strip()[:300] for line in str(error).splitlines()[1:3]]
            raise InputError(f"weights {weights!r} are not {name}'s: {' '.join(lines)}") from error
    return classes


def _on_meta(part: nn.Module) -> bool:
    """Whether a tensor of this module, registered or not, still lacks its values."""
    import torch

    own = [*part._parameters.values(), *part._buffers.values(), *vars(part).values()]
    return any(isinstance(value, torch.Tensor) and value.is_meta for value in own)

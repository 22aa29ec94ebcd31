"""What a module turns out to be, once it is asked: a classifier of pictures, or why not."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gpubench.errors import InputError
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models.base import MOST_CLASSES, ON_CPU, of_gpu, worded


class Shape(Struct, frozen=True):
    """What `examine` found."""

    output: str | int | None
    """Which of its outputs has the answers: a key, a field or a position; None: there is one."""
    classes: int
    notes: list[str]
    flat: bool = True
    """Whether it has two dimensions; else it is flattened."""


def answers(found: Any, output: str | int | None) -> Tensor:
    """(batch, classes), of what a network answers with; ``output``: as `Shape.output`."""
    if isinstance(output, str) and not isinstance(found, Mapping):
        found = getattr(found, output)
    elif output is not None:
        found = found[output]
    flat: Tensor = found.flatten(1)
    return flat


class Answers(nn.Module):  # type: ignore[misc]
    """A network that answers with one tensor (batch, classes), whatever it answers with itself."""

    def __init__(self, network: nn.Module, output: str | int | None) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, images: Tensor) -> Tensor:
        return answers(self.network(images), self.output)


class Normalised(nn.Module):  # type: ignore[misc]
    """A network that is given ``dtype``, and makes of it what it takes, ``spec``, in float32."""

    def __init__(self, network: nn.Module, spec: Spec, dtype: str) -> None:
        super().__init__()
        self.network, self.bytes, self.dtype = network, dtype == "uint8", torch.float32
        factor, offset = map(torch.from_numpy, spec.affine)
        self.factor: Tensor
        self.offset: Tensor
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Normalised:
        """Moved with the network, and never cast with it: in 16 bits all pixels would be off."""
        factor, offset = self.factor, self.offset
        super()._apply(change, recurse)
        self.dtype = self.factor.dtype
        self.factor, self.offset = (one.to(self.factor.device) for one in (factor, offset))
        return self

    def forward(self, images: Tensor) -> Tensor:
        values = images.float() * self.factor + self.offset if self.bytes else images
        found: Tensor = self.network(values.to(self.dtype))
        return found


def examine(module: nn.Module, spec: Spec, name: str, wanted: str = "", fixed: int = 0) -> Shape:
    """``module``, in eval mode and on the CPU, asked about grey pictures.

    ``wanted``: which of its outputs the suite says. ``fixed``: the only batch size; 0: any.
    Raises InputError, with the layer or the shape, for what is no classifier of pictures.
    """
    _still(module, name)
    _alone(module, name)
    batch = fixed or 2
    images = torch.zeros(batch, *spec.shape, dtype=getattr(torch, spec.dtype))
    with torch.inference_mode():
        found = _forward(module, images, name)
    each = _tensors(found)
    if wanted and wanted not in map(str, each):
        known = ", ".join(repr(str(key)) for key in each if key is not None)
        known = known or "one output, which has no name"
        raise InputError(f"model {name!r} has no output {wanted!r} (workload.output), but {known}")
    fitting = [key for key, out in each.items() if _fits(out, batch)]
    chosen = [key for key in each if str(key) == wanted] if wanted else fitting
    chosen = [key for key in chosen if key == "logits"] or chosen
    if not chosen or not _fits(each[chosen[0]], batch):
        shown = ", ".join(f"{key!r} " * (key is not None) + _told(o) for key, o in each.items())
        one = any(out.shape.numel() == batch == len(out) for out in each.values() if out.ndim)
        raise InputError(
            f"model {name!r} is no image classifier: for {batch} pictures {spec.shape} it answers "
            f"{shown or type(found).__name__}, not ({batch}, classes)"
            + ("; of one logit for yes or no let it answer with two, 0 and that" if one else "")
        )
    if len(chosen) > 1:
        shown = ", ".join(f"{key!r} {_told(each[key])}" for key in chosen)
        raise InputError(
            f"model {name!r} has several outputs with a number for each class: {shown}; say which, "
            f'for example [workload] output = "{chosen[0]}", or --output-name {chosen[0]}'
        )
    [key] = chosen
    if not fixed:
        with torch.inference_mode():
            alone = _tensors(_forward(module, images[:1], name)).get(key)
        if alone is None or alone.shape != (1, *each[key].shape[1:]):
            shown = _told(alone) if isinstance(alone, Tensor) else "something else"
            raise InputError(
                f"model {name!r} answers {batch} pictures with {_told(each[key])}, and one alone "
                f"with {shown}: look for a squeeze, or a batch size written into it"
            )
    others = [repr(other) for other in each if other != key]
    notes = [f"of the outputs, {key!r} is taken, and {', '.join(others)} not"] if others else []
    out = each[key]
    if out.ndim > 2:
        notes.append(f"its output {_told(out)} is flattened")
    return Shape(key, out[0].numel(), notes, out.ndim == 2)


def plain(module: nn.Module, found: Shape) -> nn.Module:
    """``module``, in eval mode; around it what makes one tensor of its answers, where needed."""
    if found.output is None and found.flat:
        return module
    return Answers(module, found.output).eval()


def _still(module: nn.Module, name: str) -> None:
    """Raises InputError for layers that eval mode does not reach, and for what is on a GPU."""
    for where, part in module.named_modules():
        without = isinstance(part, _BatchNorm) and part.running_mean is None
        if without or (part.training and isinstance(part, _BatchNorm | _DropoutNd)):
            what = "normalises" if isinstance(part, _BatchNorm) else "drops out"
            raise InputError(
                f"model {name!r}: layer {where!r} ({type(part).__name__}) {what} in eval mode as "
                "in training, so an answer depends on its batch, or on chance: let it keep running "
                "statistics, and let eval() reach it"
            )
    for where, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type not in ("cpu", "meta"):
            raise InputError(f"model {name!r}: {where!r} is on {tensor.device}: {ON_CPU}")


def _alone(module: nn.Module, name: str) -> None:
    """Raises InputError unless pictures are all that it has to be given."""
    try:
        given = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a callable that does not say
        return
    needed = [
        p.name
        for p in given
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(needed) > 1 or any(p.kind is p.KEYWORD_ONLY for p in given if p.default is p.empty):
        raise InputError(
            f"model {name!r} needs {len(needed)} inputs ({', '.join(needed)}), and is given "
            "pictures alone: let a callable return a module around it that takes those"
        )


def _forward(module: nn.Module, images: Tensor, name: str) -> Any:
    """Raises InputError, with the innermost layer, for what it raises."""
    inside: list[tuple[str, nn.Module, Any]] = []
    names = {part: where for where, part in module.named_modules()}
    hooks = [
        hook
        for part in names
        if not isinstance(part, torch.jit.ScriptModule)
        for hook in (
            part.register_forward_pre_hook(lambda p, given: inside.append((names[p], p, given))),
            part.register_forward_hook(lambda *_: inside.pop() and None),
        )
    ]
    try:
        return module(images)
    except BaseException as error:  # whatever own code raises, and how it leaves
        where, part, given = inside[-1] if inside else ("", module, (images,))
        shapes = ", ".join(_told(one) for one in given if isinstance(one, Tensor))
        at = f"layer {where!r} ({type(part).__name__})" if where else type(part).__name__
        other = f"its input is {_told(images)}: [workload.preprocess] says another"
        raise InputError(
            f"model {name!r} raises in its forward, {at} being given {shapes}: {worded(error)}; "
            f"{ON_CPU if of_gpu(error) else other}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(found: Any) -> dict[str | int | None, Tensor]:
    """By key, name of a field, or position; None: all that there is."""
    if isinstance(found, Tensor):
        return {None: found}
    if hasattr(found, "_asdict"):  # a named tuple
        several = found._asdict()
    elif isinstance(found, tuple | list):
        several = dict(enumerate(found))
    elif is_dataclass(found) and not isinstance(found, Mapping):
        several = {field.name: getattr(found, field.name) for field in fields(found)}
    else:
        several = found if isinstance(found, Mapping) else {}
    return {key: value for key, value in several.items() if isinstance(value, Tensor)}


def _fits(out: Tensor, batch: int) -> bool:
    classes = math.prod(out.shape[1:])
    one = out.ndim >= 2 and classes == max(out.shape[1:])
    return out.is_floating_point() and one and len(out) == batch and 2 <= classes <= MOST_CLASSES


def _told(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))}) {str(tensor.dtype).removeprefix('torch.')}"

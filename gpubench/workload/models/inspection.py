"""What a network is, without measuring it: inputs, outputs, size, work, and where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from gpubench.errors import InputError
from gpubench.workload.data import preprocess

if TYPE_CHECKING:
    from gpubench.cache import Cache
    from gpubench.suite.types import Workload

_DEPTH = 2
"""Dots in the names of modules that the work is shown by, one less."""


class Inspection(Struct, frozen=True, kw_only=True):
    """All of it, as `gpubench inspect` shows it."""

    kind: str
    """The class of the network; of a file its format."""
    input_shape: tuple[int, ...]
    """Of one picture, in the network's own layout."""
    input_dtype: str
    preprocessing: str
    answers: str
    """logits, log-probabilities or probabilities."""
    classes: int
    class_names: tuple[str, ...]
    batch: int
    """The only one that it takes; 0: any."""
    precision: str
    opset: int | None
    """Of an ONNX file."""
    parameters: int
    flops: float | None
    """Of one picture, a multiplication and an addition being two; None: see ``uncounted``."""
    uncounted: str
    modules: dict[str, int]
    """FLOPs by the module that they are in; {} of an ONNX file."""
    notes: list[str]
    sha256: str


def inspect(workload: Workload, cache: Cache) -> Inspection:
    """Slow and heavy, for a worker. Raises InputError for what is no classifier of pictures."""
    import numpy as np

    from gpubench.workload.models import flops
    from gpubench.workload.models.registry import resolve

    model = resolve(workload, cache)
    spec, opset, modules, total, why = model.spec, None, {}, None, ""
    noise = np.random.default_rng(0).integers(0, 255, (2, *model.input_shape), np.uint8)
    given = noise if spec.dtype == "uint8" else np.divide(noise, 255, dtype=np.float32)
    notes = [model.taken, *model.notes]
    if not np.isfinite(model.answers(given)).all():
        where = model.first_not_finite(given[:1])
        notes.append(f"answers to noise that are not finite{f', first of {where}' if where else ''}"
                     "; of pictures `gpubench run` refuses them")  # fmt: skip
    if model.is_onnx:
        import math

        import onnx

        file = onnx.load(model.onnx(model.precision, model.fixed_batch), load_external_data=False)
        kind, opset = "ONNX", next(o.version for o in file.opset_import if not o.domain)
        parameters = sum(math.prod(tensor.dims) for tensor in file.graph.initializer)
    else:
        from gpubench.workload.models import trial

        module = model.module()
        module = module.network if isinstance(module, trial.Answers) else module
        kind = type(module).__name__
        parameters = sum(p.numel() for p in module.parameters())
    try:
        total = flops.of(model, cache).flops
        if not model.is_onnx:
            shape = (model.fixed_batch or 1, *model.input_shape)
            modules = flops.by_module(module, shape, spec.dtype, _DEPTH)
    except InputError as error:
        why = str(error)
    return Inspection(
        kind=kind,
        input_shape=model.input_shape,
        input_dtype=spec.dtype,
        preprocessing=preprocess.words(spec),
        answers=model.output_kind,
        classes=model.num_classes,
        class_names=model.class_names,
        batch=model.fixed_batch or 0,
        precision=model.precision,
        opset=opset,
        parameters=parameters,
        flops=total,
        uncounted=why,
        modules=modules,
        notes=[note for note in notes if note],
        sha256=model.identity,
    )

"""What a search has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpubench.errors import SuiteError
from gpubench.run.tune.space import options as space_options
from gpubench.run.tune.space.axes import RULES, Placement, Space, no_room, placed
from gpubench.run.tune.space.grid import cell_of, fields_of
from gpubench.suite import schema
from gpubench.suite.schema import nearest, same
from gpubench.suite.types import Catalog, Cell, Input, Precision


def baseline(words: Mapping[str, str], space: Space, catalog: Catalog) -> list[Cell]:
    """What people run who have not searched, at every batch size of ``space``.

    torch-eager (of an .onnx file: onnxruntime) in fp32 with all defaults, one replica with all
    cores, or one on each GPU; ``words`` say otherwise: {'backend': 'onnxruntime', 'spinning':
    'false'}. Whether it can run here is not asked. Raises SuiteError naming the word.
    """
    plain = "onnxruntime" if space.workload.model.endswith(".onnx") else "torch-eager"
    backend = words.get("backend", plain)
    if backend not in catalog.backends:
        raise _no_baseline("backend", backend, nearest(backend, catalog.backends))
    options = catalog.backends[backend]
    space_options.check(backend, options)
    rules = {o.name: schema.option(o) for o in options} | {"backend": {"type": "string"}}
    rules |= RULES | {"replicas_per_device": schema.REPLICAS, "cores": schema.CORES}
    given: dict[str, Any] = {}
    for key, text in words.items():
        if key not in rules:
            raise _no_baseline(key, text, f"there is no such key; {nearest(key, rules)}")
        given[key] = schema.typed(text, rules[key])
        for mistake in schema.mistakes(given[key], rules[key]):
            raise _no_baseline(key, text, mistake.text)
    precision: Precision = given.get("precision", "fp32")
    kept = space_options.canonical(options, given, fields_of(space, precision))
    for o in options:
        if o.name in given and o.name not in kept and not same(given[o.name], o.default):
            why = f"no effect here, {space_options.condition(o)}"
            raise _no_baseline(o.name, words[o.name], why)
    place = _place(given, space)
    sizes = (given["batch_size"],) if "batch_size" in given else space.batch_sizes
    taken: Input = given.get("input", "float32")
    return [cell_of(space, backend, precision, place, size, kept, taken) for size in sizes]


def _place(given: Mapping[str, Any], space: Space) -> Placement:
    """One replica with all cores, or one on each GPU, unless ``given`` says otherwise."""
    on_gpus = space.device == "cuda"
    if on_gpus and "cores" in given:
        raise _no_baseline("cores", given["cores"], "replicas own GPUs here, not cores")
    place = placed(space, {"replicas": max(1, space.gpus) if on_gpus else 1, **given})
    if reason := no_room(space, place):
        raise _no_baseline("replicas", place.replicas, reason)
    return place


def _no_baseline(key: str, text: object, what: str) -> SuiteError:
    return SuiteError(f"--baseline {key}={text}: {what}")

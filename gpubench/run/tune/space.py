"""The configurations that a search may choose from.

A `Space` holds the values of every axis: made from what is installed, then narrowed; `cells` makes
ordinary cells of it. Each is canonical: what means the same is one cell. Options at their default
or without effect are left out, so a cell has the key that it would have in a suite which does not
name them. Nothing here knows a backend: what is worth searching comes in with the `Catalog`
(`Option.search`, `Option.when`), so a third party's backend is searched without any change here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from msgspec import Struct
from msgspec.structs import asdict, replace

from gpubench.errors import SuiteError
from gpubench.run.tune import options as space_options
from gpubench.suite import as_toml, schema, toml_file
from gpubench.suite.goal import Goal
from gpubench.suite.grid import MAX_CELLS
from gpubench.suite.schema import nearest, same, show
from gpubench.suite.types import (
    Axes,
    Boundary,
    Catalog,
    Cell,
    Input,
    Option,
    OptionValue,
    Policy,
    Precision,
    Scenario,
    Suite,
    Workload,
)

BATCH_SIZES = {"cpu": 32, "cuda": 128}
"""The largest that is tried by default: beyond, rates hardly rise and latencies double."""
INPUTS: tuple[Input, ...] = ("float32", "uint8")
"""Tried by default where what the host gives is timed; float16 moves more, and rounds."""
_FIELDS = {"backend": "backends", "precision": "precisions", "input": "inputs"} | {
    "batch_size": "batch_sizes"
}
"""Axis of a suite -> field of `Space`."""
RULES = {
    "precision": {"type": "string", "enum": list(get_args(Precision))},
    "input": {"type": "string", "enum": list(get_args(Input))},
    "batch_size": schema.BATCH_SIZE,
    "replicas": schema.REPLICAS,
}
"""What one value must be."""
Unsupported = Callable[[Cell], str | None]
_MOST = 3 * MAX_CELLS
"""More than a suite may have: a search measures some. One GPU has 8,400."""
_MOST_TRIED = 20 * MAX_CELLS
"""Combinations asked after, supported or not."""
_AXES = ("backend", "precision", "batch_size", "replicas", "replicas_per_device", "scenario",
         "boundary", "dispatch", "input", "decoder", "loader", "loader_cores")  # fmt: skip
"""Those that hold several values."""


class Placement(Struct, frozen=True):
    """How many replicas, and on how much of the machine each runs."""

    replicas: int
    cores: int
    """CPU cores of one device; 0 on CUDA."""
    replicas_per_device: int = 1

    @property
    def devices(self) -> int:
        """GPUs, or disjoint sets of cores."""
        return -(-self.replicas // self.replicas_per_device)


class Space(Struct, frozen=True, kw_only=True):
    """The values of every axis of a search; its cells are their product."""

    workload: Workload
    device: Literal["cpu", "cuda"]
    scenario: Scenario
    boundary: Boundary
    decoder: str = "pil"
    backends: tuple[str, ...]
    precisions: tuple[Precision, ...]
    inputs: tuple[Input, ...] = ("float32",)
    batch_sizes: tuple[int, ...]
    placements: tuple[Placement, ...]
    options: dict[str, dict[str, tuple[OptionValue, ...]]]
    """Backend -> option -> the values to try; of every known backend, also of one left out."""
    cores: int
    """CPU cores that may be used here."""
    gpus: int = 0


def default(
    catalog: Catalog,
    workload: Workload,
    *,
    device: Literal["cpu", "cuda"],
    cores: int,
    gpus: int,
    goal: Goal,
    boundary: Boundary = "transfer",
    decoder: str = "pil",
) -> Space:
    """All backends but the null one, precisions and placements, and what backends declare.

    ``cores``, ``gpus``: those of the machine that may be used.
    """
    most = BATCH_SIZES[device]
    return Space(
        workload=workload,
        device=device,
        scenario=goal.scenario,
        boundary=boundary,
        decoder=decoder,
        backends=tuple(name for name in sorted(catalog.backends) if name != "null"),
        precisions=get_args(Precision),
        inputs=("float32",) if boundary == "compute" else INPUTS,
        batch_sizes=tuple(2**i for i in range(most.bit_length())),
        placements=tuple(_on_gpus(gpus, goal) if device == "cuda" else _on_cores(cores)),
        options={
            name: {o.name: tried for o in options if (tried := space_options.tried(o))}
            for name, options in catalog.backends.items()
        },
        cores=cores,
        gpus=gpus,
    )


def _on_cores(n: int) -> Iterator[Placement]:
    """From one replica with all cores to one on each core; and one on half of the cores, such as
    one of two sockets, which a small batch may not be worth leaving."""
    shares = dict.fromkeys(max(1, n // 2**i) for i in range(n.bit_length()))
    yield from (Placement(n // share, share) for share in shares)
    if n >= 4:
        yield Placement(1, n // 2)


def _on_gpus(n: int, goal: Goal) -> Iterator[Placement]:
    """One or two replicas on each GPU; and where it is not the rate that counts, one in all."""
    lone = goal.objective.kind != "throughput" and n > 1
    yield from [Placement(1, 0)] * lone
    yield Placement(max(1, n), 0)
    yield Placement(2 * max(1, n), 0, 2)


def chosen(space: Space, overrides: Mapping[str, Any]) -> Space:
    """``space`` with what the command line says: backend, precision, input, batch_size,
    replicas.

    Values are lists; None means not given. Raises SuiteError naming the option.
    """
    given = {key: tuple(dict.fromkeys(v)) for key, v in overrides.items() if v is not None}
    known = RULES | {"backend": {"type": "string", "enum": sorted(space.options)}}
    for key, values in given.items():
        option = "--" + key.replace("_", "-")
        if not values:
            raise SuiteError(f"{option}: empty")
        for value in values:
            for mistake in schema.mistakes(value, known[key], option):
                raise SuiteError(str(mistake))
    if "replicas" in given:
        placements: list[Placement] = []
        for n in given.pop("replicas"):
            found = _placements_of(space, n)
            if reason := next((r for p in found if (r := no_room(space, p))), None):
                raise SuiteError(f"--replicas {n}: {reason}")
            placements += found
        given["placements"] = tuple(placements)
    return replace(space, **{_FIELDS.get(key, key): value for key, value in given.items()})


def trying(space: Space, catalog: Catalog, texts: Iterable[str]) -> Space:
    """``space`` with more values of options: 'NAME=VALUE', of every backend that has it.

    Raises SuiteError, naming the option, also for a value that it cannot have.
    """
    added = space.options
    for text in texts:
        name, equals, said = (word.strip() for word in text.partition("="))
        having = {b: o for b in space.backends for o in catalog.backends[b] if o.name == name}
        if not having or not equals:
            known = sorted({o.name for b in space.backends for o in catalog.backends[b]})
            wanted = f"expected NAME=VALUE; {nearest(name, known)}"
            raise SuiteError(f"--option {text!r}: {wanted}")
        for backend, option in having.items():
            value = toml_file.value(said) if option.kind != "str" else said.strip("\"'")
            for mistake in schema.mistakes(value, schema.option(option), f"--option {name}"):
                raise SuiteError(str(mistake))
            before = added[backend].get(name, (option.default,))
            found = tuple(dict.fromkeys((*before, space_options.typed(option, value))))
            added = added | {backend: added[backend] | {name: found}}
    return replace(space, options=added)


def _placements_of(space: Space, replicas: int) -> list[Placement]:
    """Those of ``space`` with so many replicas; where it has none, one that uses all devices."""
    each = -(-replicas // max(1, space.gpus)) if space.device == "cuda" else 1
    found = [p for p in space.placements if p.replicas == replicas]
    return found or [placed(space, {"replicas": replicas, "replicas_per_device": each})]


def placed(space: Space, given: Mapping[str, int]) -> Placement:
    """By the axes ``replicas``, ``replicas_per_device`` (1) and ``cores`` (an equal share)."""
    n = given["replicas"]
    place = Placement(n, 0, min(n, given.get("replicas_per_device", 1)))
    if space.device == "cuda":
        return place
    return replace(place, cores=given.get("cores", max(1, space.cores // place.devices)))


def no_room(space: Space, placement: Placement) -> str | None:
    """Why this machine has too few devices for it, or None."""
    if space.device == "cuda":
        if placement.devices <= space.gpus:
            return None
        return f"needs {placement.devices} GPUs; visible: {space.gpus}"
    if (need := placement.devices * placement.cores) <= space.cores:
        return None
    return f"needs {need} cores; usable: {space.cores}"


def cells(space: Space, catalog: Catalog, unsupported: Unsupported) -> list[Cell]:
    """Every configuration that its backend supports, in a fixed order, each once.

    Raises SuiteError for an unknown backend or one that declares its options wrongly, and where
    there is no cell, or more than `_MOST`.
    """
    found: dict[str, Cell] = {}
    reasons: dict[str, None] = {}
    for n, cell in enumerate(_grid(space, catalog)):
        if reason := unsupported(cell):
            reasons[f"{cell.backend}: {reason}"] = None
        else:
            found.setdefault(cell.key, cell)
        if len(found) > _MOST or n > _MOST_TRIED:
            raise _too_many(space)
    if not found:
        why = "; ".join(list(reasons)[:3])
        raise SuiteError(f"no configuration of the space can run here: {why}")
    return list(found.values())


def _grid(space: Space, catalog: Catalog) -> Iterator[Cell]:
    """The product of the axes, options that mean the same once."""
    for name in space.backends:
        if name not in catalog.backends:
            raise SuiteError(f"--backend {show(name)}: {nearest(name, catalog.backends)}")
        space_options.check(name, catalog.backends[name])
    for backend, precision in itertools.product(space.backends, space.precisions):
        values = space.options.get(backend, {})
        if _count(values) > _MOST:
            raise _too_many(space)
        options, fields = catalog.backends[backend], fields_of(space, precision)
        combinations = list(space_options.combinations(options, values, fields))
        for each, placement, batch_size, given in itertools.product(
            combinations, space.placements, space.batch_sizes, space.inputs
        ):
            yield cell_of(space, backend, precision, placement, batch_size, each, given)


def _count(values: Mapping[str, Sequence[OptionValue]]) -> int:
    """Combinations of a backend's options."""
    return math.prod(len(each) for each in values.values())


def fields_of(space: Space, precision: Precision) -> dict[str, str]:
    """Of a cell in ``space``, what `options.FIELDS` names."""
    return {
        "device": space.device,
        "precision": precision,
        "scenario": space.scenario,
        "boundary": space.boundary,
    }


def cell_of(
    space: Space,
    backend: str,
    precision: Precision,
    placement: Placement,
    batch_size: int,
    options: dict[str, OptionValue],
    given: Input = "float32",
) -> Cell:
    """One cell of ``space``; ``options`` are canonical."""
    return Cell(
        **asdict(space.workload),
        backend=backend,
        device=space.device,
        precision=precision,
        batch_size=batch_size,
        replicas=placement.replicas,
        cores=placement.cores if space.device == "cpu" else 0,
        scenario=space.scenario,
        boundary=space.boundary,
        options=options,
        replicas_per_device=min(placement.replicas_per_device, placement.replicas),
        decoder=space.decoder if space.boundary == "pipeline" else "pil",
        input=given,
    )


def _too_many(space: Space) -> SuiteError:
    """Says which axes are long, the longest first."""
    sizes = {
        "precision": len(space.precisions),
        "input": len(space.inputs),
        "batch_size": len(space.batch_sizes),
        "placement": len(space.placements),
    } | {f"options.{b}": _count(space.options.get(b, {})) for b in space.backends}
    longest = sorted(sizes.items(), key=lambda item: -item[1])[:4]
    words = ", ".join(f"{name} ({size:,})" for name, size in longest)
    return SuiteError(
        f"the space has more than {_MOST:,} configurations; shorten its axes with "
        f"--backend, --precision, --input, --batch-size and --replicas; the longest: {words}"
    )


def coordinates(cell: Cell, options: tuple[Option, ...]) -> dict[str, OptionValue]:
    """What a cell is in a space: its axes, and each option that has an effect in it.

    Replicas, their cores and who shares a device are one of these, ``placement``: each alone is
    none. ``options``: those of its backend. {'backend': 'openvino', ..., 'openvino.num_streams': 2}
    """
    axes = {key: getattr(cell, key) for key in ("backend", "precision", "input", "batch_size")}
    named = {f"{cell.backend}.{k}": v for k, v in space_options.effective(options, cell).items()}
    placement = f"{cell.replicas}x{cell.cores}x{cell.replicas_per_device}"
    return axes | named | {"placement": placement}


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
        key = "cores" if "cores" in given else "replicas"
        raise _no_baseline(key, getattr(place, key), reason)
    return place


def _no_baseline(key: str, text: object, what: str) -> SuiteError:
    return SuiteError(f"--baseline {key}={text}: {what}")


def suite(
    name: str, cells: Sequence[Cell], policy: Policy, baseline_backend: str, description: str
) -> Suite:
    """What the header of a search's records says of ``cells``, at least one: the values they have.

    Options appear with the values that cells name. The product of the axes is more than the cells,
    which stand in `Header.planned`; ``cores`` is 0 where they differ.
    """
    first = cells[0]
    options: dict[str, dict[str, dict[OptionValue, None]]] = {}
    for cell in cells:
        for key, value in cell.options.items():
            options.setdefault(cell.backend, {}).setdefault(key, {})[value] = None
    cores = {cell.cores for cell in cells}
    fields: dict[str, Any] = {
        key: tuple(dict.fromkeys(getattr(cell, key) for cell in cells)) for key in _AXES
    }
    axes = Axes(
        **fields,
        device=first.device,
        cores=first.cores if len(cores) == 1 else 0,
        options={b: {k: tuple(v) for k, v in found.items()} for b, found in options.items()},
    )
    return Suite(
        name=name,
        description=description,
        workload=first.workload,
        axes=axes,
        policy=policy,
        baseline=baseline_backend,
    )


def to_toml(cell: Cell, policy: Policy, name: str, description: str) -> str:
    """A suite of one cell: loaded and expanded it gives ``cell`` and ``policy`` again.

    ``name`` stands in a comment: a suite is called as its file is.
    """
    return as_toml.to_toml(suite(name, [cell], policy, cell.backend, description), name)

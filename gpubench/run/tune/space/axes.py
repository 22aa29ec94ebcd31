"""A `Space`: the values of every axis of a search. Made from what is installed, then narrowed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

from msgspec import Struct
from msgspec.structs import replace

from gpubench.errors import SuiteError
from gpubench.run.tune.space import options as space_options
from gpubench.suite import schema, toml_file
from gpubench.suite.goal import Goal
from gpubench.suite.types import (
    Boundary,
    Catalog,
    Input,
    OptionValue,
    Precision,
    Scenario,
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
            wanted = f"expected NAME=VALUE; {schema.nearest(name, known)}"
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

"""One suite on every kind of machine of a cluster, side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from gpubench.analysis.tables.devices import PRICE, kind
from gpubench.errors import GpubenchError, InputError
from gpubench.records.record import RecordFile
from gpubench.run import driver, setup
from gpubench.run.cluster.ray_cluster import Cluster
from gpubench.run.watcher import Watcher
from gpubench.suite import toml_file

Per = Literal["gpu", "node"]


def kinds(environments: Sequence[Mapping[str, Any]], per: Per) -> dict[str, list[int]]:
    """Name of each kind of machine -> the ranks of those that are of it.

    GPUs by name, memory and MIG profile, machines without by CPU and cores. ``per`` 'node': by how
    many GPUs there are, too.
    """
    found: dict[str, list[int]] = {}
    for rank, environment in enumerate(environments):
        found.setdefault(kind(environment, each=per == "gpu"), []).append(rank)
    return found


def prices(said: str | Mapping[str, Any] | None) -> dict[str, float]:
    """'NVIDIA L4=0.71,H100=2.99', a TOML file of such, or a mapping -> price of an hour by name."""
    given = said or {}
    if isinstance(given, str) and given.endswith(".toml"):
        given = toml_file.read(Path(given), "list of prices")
    elif isinstance(given, str):
        pairs = [pair.rpartition("=") for pair in given.split(",")]
        given = {name.strip(): amount for name, _, amount in pairs}
    if not isinstance(given, Mapping):
        raise InputError(f"--price {said!r}: expected NAME=PRICE,..., a .toml file or a mapping")
    found = {}
    for name, amount in given.items():
        try:
            found[name] = float(amount)
        except (TypeError, ValueError):
            found[name] = 0.0
        if not name or not 0 < found[name] < 1e6:
            raise InputError(
                f"--price {name}={amount}: expected a name and a price of an hour, such as "
                "'NVIDIA L4=0.71,NVIDIA H100=2.99', or a .toml file of them"
            )
    return found


def price(of: str, given: Mapping[str, float]) -> float | None:
    """That of the longest name that is a part of ``of``."""
    fits = [name for name in given if name.lower() in of.lower()]
    return given[max(fits, key=len)] if fits else None


def run(
    cluster: Cluster,
    suite: setup.Source,
    chosen: Mapping[str, Any],
    out: Path,
    watcher: Callable[[str], Watcher],
    *,
    per: Per = "gpu",
    baseline: str = "",
    given: Mapping[str, float] | None = None,
    resume: bool = False,
    cache_dir: Path | None = None,
) -> dict[str, RecordFile | GpubenchError]:
    """What was measured on one machine of each kind, all at once; or why nothing was.

    ``per`` 'gpu': on one device of each. ``baseline``: a part of the name of the kind that comes
    first, which the others are compared with. ``given``: prices. Each kind's records are in a
    directory of its own in ``out``; a kind that fails does not stop the others.
    """
    given = given or {}
    found = kinds(cluster.environments, per)
    for name in given:
        if not any(price(each, {name: 1.0}) for each in found):
            raise InputError(f"--price {name}: the cluster has no such device: {', '.join(found)}")
    if baseline and not any(baseline.lower() in name.lower() for name in found):
        raise InputError(f"--baseline {baseline}: the cluster has {', '.join(found)}")
    names = sorted(found, key=lambda name: baseline.lower() not in name.lower())
    if per == "gpu":
        chosen = {**chosen, "replicas": [1]}

    def one(name: str) -> RecordFile | GpubenchError:
        machine = cluster.alone(found[name][0])
        place = out / re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")
        try:
            job = setup.session(suite, chosen, cache_dir, place, resume, (), machine)
            cost = price(name, given)
            priced = job.header.environment | ({PRICE: cost} if cost else {})
            job = replace(job, header=replace(job.header, environment=priced))
            with watcher(name) as shown:
                return driver.run(job, shown, machine)
        except GpubenchError as error:
            return error

    with ThreadPoolExecutor(len(names)) as pool:
        futures = {name: pool.submit(one, name) for name in names}
        try:
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            for peer in cluster.peers:
                peer.leave()
            raise

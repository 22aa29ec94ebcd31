"""What records say about a cell's replicas: CPU time, switches, copies, clocks, links, cores.

Readings of one repeat give None where the machine did not tell. What is read of telemetry and
environment beyond the shape that `records.validation` assures is looked at first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from statistics import fmean, median
from typing import Any

from msgspec import Struct

from gpubench.analysis import stats
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary
from gpubench.analysis.telemetry import number
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from gpubench.units import percent

Reading = Callable[[Record], float | None]

THERMAL = ("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
POWER_CAP = "SwPowerCap"
LINK = {
    "pcie_generation_max": "PCIe generation",
    "pcie_width_max": "PCIe lanes",
    "pcie_width": "PCIe lanes in use",
    "numa_node": "NUMA node",
}
"""Of a GPU's environment. The generation in use is left out: an idle link lowers it."""


class Change(Struct, frozen=True, kw_only=True):
    """A reading at one replica and at many, each the mean over repeats."""

    one: float
    many: float
    ratio: Estimate
    """many / one, paired by repeat round."""

    def fell(self, least: float) -> bool:
        """By more than ``least`` (0.02: 2 %), and the interval of the ratio is below 1."""
        return self.many < self.one * (1 - least) and (self.ratio.high or math.inf) < 1

    def rose(self, least: float) -> bool:
        """By more than ``least``, and the interval of the ratio is above 1."""
        return self.many > self.one * (1 + least) and (self.ratio.low or 0) > 1

    def told(self, name: str) -> dict[str, float]:
        """As evidence called ``name``."""
        return {name: self.many, f"{name}_one": self.one}


def change(one: Summary, many: Summary, what: Reading) -> Change | None:
    """None where either was not recorded."""
    before, after = by_repeat(one, what), by_repeat(many, what)
    if not before or not after:
        return None
    positive = min(*before.values(), *after.values()) > 0
    ratio = stats.ratio(before, after, (one.pilot, many.pilot)) if positive else Estimate()
    return Change(one=fmean(before.values()), many=fmean(after.values()), ratio=ratio)


def level(s: Summary, what: Reading) -> float | None:
    """Mean over repeats; None where none has it."""
    found = by_repeat(s, what)
    return fmean(found.values()) if found else None


def by_repeat(s: Summary, what: Reading) -> dict[int, float]:
    """Repeats that do not have it are left out."""
    return {r.repeat: value for r in s.timed if (value := what(r)) is not None}


# ------------------------------------------------------------------------------ readings


def cpu_share(r: Record) -> float | None:
    """CPU time / wall time of the replicas' own cores (on a GPU: of one core each)."""
    return _cpu_share(r, _every(r))


def _cpu_share(r: Record, replicas: Sequence[Samples]) -> float | None:
    wall = sum(map(_wall_ns, replicas))
    if not wall or not all(x.cpu_ns for x in replicas):
        return None
    own = r.cell.cores / r.cell.replicas_per_device if r.cell.device == "cpu" else 1
    return sum(x.cpu_ns for x in replicas) / (wall * max(own, 1e-9))


def switches_per_s(r: Record) -> float | None:
    """Involuntary context switches of one replica."""
    wall = sum(map(_wall_ns, _every(r)))
    return sum(x.switches for x in _every(r)) * 1e9 / wall if cpu_share(r) else None


def copies_ns(r: Record) -> float | None:
    """Copy in and copy out of one batch; mean over replicas."""
    each = [x.stages_ns.get("copy_in", 0) + x.stages_ns.get("copy_out", 0) for x in r.replicas]
    return fmean(each) if each and all(each) else None


def steal(r: Record) -> float | None:
    """Of the replicas' cores' time, what the hypervisor gave to others."""
    return number(r.telemetry, "cpu", "steal_share")


def others(r: Record) -> float | None:
    """Of the replicas' cores' time, what processes used that are not the task's."""
    return number(r.telemetry, "cpu", "other_busy_share")


def cpu_mhz(r: Record) -> float | None:
    """Median of the replicas' cores."""
    return number(r.telemetry, "cpu", "mhz", "median")


def sm_mhz(r: Record, but: Collection[str] = ()) -> float | None:
    """Mean over GPUs, ``but`` some, of the median clock."""
    found = [mhz for index, mhz in _clocks(r) if f"cuda:{index}" not in but]
    return fmean(found) if found else None


def _clocks(r: Record) -> list[tuple[object, float]]:
    """(index, MHz) of each GPU that told."""
    read = [(gpu.get("index"), _gpu_mhz(gpu, r)) for gpu in r.telemetry.get("gpus", [])]
    return [(index, mhz) for index, mhz in read if mhz is not None]


def _gpu_mhz(gpu: dict[str, Any], r: Record) -> float | None:
    """Median while the replicas sampled; where that is not kept, of the whole task."""
    series = gpu.get("series", {})
    end = max((x.end_ns for x in r.replicas), default=0) / 1e9
    read = zip(series.get("t_s", []), series.get("sm_mhz", []), strict=False)
    inside = [mhz for at, mhz in read if mhz is not None and 0 <= at <= end]
    return float(median(inside)) if inside else number(gpu, "sm_mhz", "median")


def _every(r: Record) -> list[Samples]:
    return [x for visit in r.visits for x in visit]


def _wall_ns(x: Samples) -> int:
    """Of all its samples, also those that truncation counts with the warm-up."""
    cut = x.warmup_durations_ns[-x.truncated :] if x.truncated else []
    return max(0, x.end_ns - x.start_ns + sum(cut))


# ------------------------------------------------------------------------------ of a cell


def enqueued(s: Summary) -> tuple[float, float, float] | None:
    """How long the host was busy giving the device its work: of the sampled time, and ns a batch.

    And how many batches the device still had to do when the host began to wait.
    None where it was not recorded, or enqueueing includes waiting.

    A round trip with copies waits within, and so does a sample of grouped latencies.
    """
    every = [x for r in s.timed for x in _every(r)]
    grouped = s.cell.scenario == "latency" and any(x.iterations > 1 for x in every)
    sampled = sum(sum(x.durations_ns) for x in every)
    batches = sum(sum(x.batches) for x in every)
    busy = sum(x.enqueue_ns for x in every)
    if s.cell.boundary != "compute" or grouped or not sampled or not busy:
        return None
    waited = max(0, sampled - busy) / sum(len(x.durations_ns) for x in every)
    return busy / sampled, busy / batches, waited * batches / sampled


def room(s: Summary, alone: float | None) -> tuple[float, float | None, float | None]:
    """Cores needed, usable, and of the control group's quota, where there are least to spare.

    ``alone``: cores that a lone replica kept busy; needed on a GPU only.
    """
    c = s.cell
    each = Counter(x.node for x in (s.timed[0].replicas if s.timed else []))
    found: list[tuple[float, float | None, float | None]] = [(0.0, None, None)]
    for node, n in each.items():
        there = environment(s, node)
        needed = -(-n // c.replicas_per_device) * c.cores if c.device == "cpu" else n * (alone or 0)
        usable, quota = number(there, "cpu", "usable"), number(there, "limits", "cpus")
        found.append((needed, usable, quota))
    return max(found, key=lambda r: r[0] / max(1e-9, min(r[1] or math.inf, r[2] or math.inf)))


def environment(s: Summary, node: int) -> dict[str, Any]:
    """Of one machine of the run."""
    return s.nodes[node] if 0 <= node < len(s.nodes) else s.environment


def throttled(s: Summary) -> dict[str, float]:
    """Mean share of the readings that showed a reason for lower clocks, of the worst GPU."""
    found: dict[str, float] = {}
    for key, reasons in (("thermal", THERMAL), ("power-cap", (POWER_CAP,))):
        each = [
            max((number(gpu, "throttle", name) or 0.0 for gpu in r.telemetry.get("gpus", [])
                 for name in reasons), default=0.0)
            for r in s.timed
        ]  # fmt: skip
        if any(each):
            found[key] = fmean(each)
    return found


def device_differences(s: Summary, replica: int, told: dict[str, Any]) -> Iterator[str]:
    """How one replica differs from the others: CPU time; of its GPU clock, link, NUMA node, cores.

    Numbers are added to ``told``. Links are compared with GPUs of the same machine.
    """
    x = s.timed[0].replicas[replica]
    if s.cell.device == "cpu":
        yield from _less_cpu(s, replica, told)
    index = _index(x.device)
    if index is None:
        return
    rivals = {_index(y.device) for y in s.timed[0].replicas if y.node == x.node} - {index, None}
    clocks = {i: mhz for i in (index, *rivals) if i is not None and (mhz := _mhz_of(s, i))}
    if not s.nodes and index in clocks and len(clocks) > 1:
        typical = fmean(mhz for i, mhz in clocks.items() if i != index)
        if clocks[index] < 0.98 * typical:
            told |= {"sm_mhz": clocks[index], "sm_mhz_others": typical}
            yield f"its SM clock is {clocks[index]:,.0f} MHz, the others' {typical:,.0f} MHz"
    known = {number(gpu, "index"): gpu for gpu in environment(s, x.node).get("gpus", [])}
    for name, words in LINK.items():
        own = number(known.get(index), name)
        other = {number(known.get(i), name) for i in rivals if i is not None}
        if own is not None and other and own not in other and None not in other:
            values = ", ".join(f"{v:g}" for v in sorted(v for v in other if v is not None))
            told[name] = own
            yield f"its {words} is {own:g}, the others' {values}"
    pinned = s.timed[0].facts.get("pinned")
    loose = [n for n, cores in enumerate(pinned) if not cores] if isinstance(pinned, list) else []
    if loose == [replica]:
        told["pinned"] = False
        yield "its process is not pinned next to its GPU, the others' are"


def _less_cpu(s: Summary, replica: int, told: dict[str, Any]) -> Iterator[str]:
    own = level(s, lambda r: _cpu_share(r, [x for x in _every(r) if x.replica == replica]))
    other = level(s, lambda r: _cpu_share(r, [x for x in _every(r) if x.replica != replica]))
    if own is not None and other is not None and own < 0.98 * other:
        told |= {"cpu_share": own, "cpu_share_others": other}
        yield f"it had {percent(own)} of its cores' time, the others {percent(other)}"


def _mhz_of(s: Summary, index: int) -> float | None:
    found = [mhz for r in s.timed for at, mhz in _clocks(r) if at == index]
    return fmean(found) if found else None


def _index(device: str) -> int | None:
    """'cuda:1' -> 1."""
    kind, _, index = device.partition(":")
    return int(index) if kind == "cuda" and index.isdigit() else None

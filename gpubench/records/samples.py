"""What replicas measured side by side in one turn, and what follows from it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated

from msgspec import Meta, Struct

MOST_NS = 10**15
"""Eleven days: no run could have written more, and no sum of such overflows."""
Ns = Annotated[int, Meta(ge=0, le=MOST_NS)]
Iterations = Annotated[int, Meta(ge=1, le=2**31 - 1)]
SampleNs = Annotated[int, Meta(ge=1, le=MOST_NS)]
Offset = Annotated[int, Meta(ge=-MOST_NS, le=MOST_NS)]
Count = Annotated[int, Meta(ge=0, le=2**48)]
# As every limit in a `Struct`, these hold for what is read, and are checked while it is decoded.

SLACK_NS = 1_000_000
"""By which a sample may end after the window: what the loop takes between samples is not known."""

JOB_DONE = "job done"
"""`Samples.stop_reason` of the replicas of a job (`Cell.dispatch` static or dynamic)."""


class Samples(Struct, frozen=True, kw_only=True):
    """What one replica measured in one task. All times in ns, on this node's monotonic clock."""

    replica: Count
    device: str
    """'cpu:0,1' or 'cuda:0'."""
    durations_ns: list[SampleNs]
    """Steady samples; each spans ``iterations`` calls of ``run()``."""
    iterations: Iterations = 1
    counts: list[Iterations] = []
    """Of each sample its calls of ``run()``, where they differ: what a block of throughput holds is
    changed when pictures turn out to be larger, or smaller; ``iterations`` is their median then."""
    warmup_durations_ns: list[Ns] = []
    """Planned warm-up (one iteration each), then what truncation moved here."""
    truncated: Count = 0
    """How many samples MSER truncation moved from the start to the warm-up."""
    start_ns: Offset = 0
    """Offset of the first steady sample from the task's common start."""
    end_ns: Offset = 0
    """Offset of the end of the last sample."""
    open_ns: Ns = 0
    first_inference_ns: Ns = 0
    stop_reason: str = ""
    peak_host_bytes: Count = 0
    node: Count = 0
    """Rank of the machine it ran on; offsets count on that machine's own clock."""
    enqueue_ns: Ns = 0
    """Of the steady samples' time, what the host spent in ``enqueue`` before it began to wait."""
    cpu_ns: Ns = 0
    """CPU time of the process, all threads, and of a loader's, while it sampled."""
    switches: Count = 0
    """Times that the kernel took a core from it while it sampled (involuntary context switches)."""
    page_faults: Count = 0
    """Pages that the process was given while it sampled, of memory that it had given back before or
    never had."""
    late_ns: Offset = 0
    """How long after the announced common start it went on."""
    stages_ns: dict[str, Ns] = {}
    """Per batch, each waited for, measured apart after the samples while all replicas still run.
    Boundary ``transfer``: median of copy_in, run and copy_out, before them on CUDA convert (the
    host's part of copying in) where the host does it. ``pipeline``: mean of read, decode,
    transform, copy_in, run, copy_out and postprocess, one after the other; with throughput also
    ``loader`` and ``session``, the two groups that overlap, each alone at full speed."""
    claim_ns: Ns = 0
    """Dispatch: time spent in getting work, of all its samples."""
    withheld_ns: Ns = 0
    """Time on its cores that it was ready to use and did not get while it sampled, all cores added
    up: a control group's quota was used up, or others ran there."""

    @property
    def batches(self) -> list[int]:
        """Of each sample."""
        return self.counts or [self.iterations] * len(self.durations_ns)

    @property
    def batch_ns(self) -> Sequence[float]:
        """Of each sample, ns of one batch."""
        if self.counts:
            return [d / n for d, n in zip(self.durations_ns, self.counts, strict=True)]
        # a search reads all samples after every measurement; dividing takes as long as sorting
        each = self.iterations
        return self.durations_ns if each == 1 else [d / each for d in self.durations_ns]


def window_ns(replicas: Sequence[Samples]) -> tuple[int, int] | None:
    """The time over which images/s are counted; None when there is none.

    The common window: latest start to earliest end. Of a job the makespan: from the common start to
    the end of its last unit, whoever did that.
    """
    if not replicas:
        return None
    if replicas[0].stop_reason == JOB_DONE:
        start, end = 0, max(s.end_ns for s in replicas)
    else:
        start, end = max(s.start_ns for s in replicas), min(s.end_ns for s in replicas)
    return (start, end) if end > start else None


def ends(s: Samples) -> list[float]:
    """When each sample ended; what goes by between samples (the loop, or caches that are seen to)
    is spread over them, in proportion."""
    done = list(accumulate(s.durations_ns))
    scale = (s.end_ns - s.start_ns) / done[-1] if done and done[-1] else 0.0
    return [s.start_ns + scale * at for at in done]


def window_slices(replicas: Sequence[Samples]) -> list[slice]:
    """Per replica, its samples that lie wholly inside the common window.

    Before and after it a replica runs without its rivals, so its latency is another one. All
    samples where there is one replica, a job, or no window.
    """
    window = window_ns(replicas)
    if window is None or len(replicas) == 1:
        return [slice(None)] * len(replicas)
    slices = []
    for s in replicas:
        times = ends(s)
        first = bisect_left([s.start_ns, *times], window[0])
        slices.append(slice(first, max(first, bisect_right(times, window[1] + SLACK_NS))))
    return slices


def rates(replicas: Sequence[Samples], batch_size: int) -> list[float]:
    """Images/s of each replica inside `window_ns`; [] when there is no window.

    Samples that cross the window's edge count by the share that lies inside.
    """
    window = window_ns(replicas)
    if window is None:
        return []
    start, end = window
    found = []
    for s in replicas:
        times, batches = [float(s.start_ns), *ends(s)], [0, *accumulate(s.batches)]
        first, last = (_done(times, batches, at) for at in (start, end))
        found.append((last - first) * batch_size * 1e9 / (end - start))
    return found


def _done(times: Sequence[float], batches: Sequence[int], at: float) -> float:
    """How many batches are done at a time, where so many ``batches`` are at each of ``times``; the
    sample that is not over counts in part."""
    n = bisect_right(times, at)
    if n in (0, len(times)):
        return float(batches[n - 1]) if n else 0.0
    share = (at - times[n - 1]) / (times[n] - times[n - 1])
    return batches[n - 1] + (batches[n] - batches[n - 1]) * share

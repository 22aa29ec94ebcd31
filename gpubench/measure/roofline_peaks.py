"""How fast a device is at best: products of matrices by type, and its memory. Always measured.

On a CPU one pinned thread a core computes for itself, all at the same time, so that how well one
kernel uses many cores plays no part. They do what oneDNN is best at: 3x3 convolutions, whose
operands stay in a core's caches (in fp32 seen to be 2.4 times as fast as torch's matrix product on
an AMD Zen 5, at all that its units can do), and square products. On a GPU: large square products.
The fastest window counts.

Memory: arrays far larger than the caches are read (CPU; what is faster than copying), or copied
(GPU; read and written bytes count).
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gpubench.machine.cores import read

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Run = Callable[[], object]

DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Type of the products -> torch's of their operands; 'int8' has an operator of its own."""
WINDOW_S, SPENT_S = 0.005, 0.2
"""How long a rate is measured for, and for how long again and again; of each of the two best
kernels. So short that other processes leave some windows alone: a peak that was measured too low
would be worse than none."""
PATIENCE_S = 0.05
"""A kernel that would take longer for one call is left out: its type is emulated here."""
WORTH = 0.7
"""Of the best rate at their second call: kernels below are not measured."""
CONVOLUTIONS = ((1, 128, 28), (4, 128, 28), (8, 256, 14))
"""Images, channels, height: weights and activations fit into 2 MiB in fp32, or nearly."""
SIDES = {"cpu": (512, 1024), "cuda": (2048, 4096, 8192)}
"""Of square matrices."""
CACHES = 4
"""What memory's bandwidth is measured with is so many times as large."""
LEAST_BYTES = 1 << 28
"""And at least so large."""
GPU_BYTES, GPU_WINDOW_S = 1 << 29, 0.02
"""What is copied on a GPU; and how long a window is there."""
CPU = Path("/sys/devices/system/cpu")


class Kernel(NamedTuple):
    """Something to be done over and over."""

    amount: float
    """FLOPs, or bytes, of one call."""
    make: Callable[[], Run]
    """Allocates its operands, in the thread that is to compute, and gives what to call."""


class Peaks(NamedTuple):
    """Of one device, or of one set of cores."""

    flops_per_s: dict[str, float]
    """By type; one that cannot be computed is left out."""
    bytes_per_s: float
    """0: not asked for."""
    cache_bytes: float


class Cores:
    """A thread on each core; all do the same at the same time."""

    def __init__(self, cores: Sequence[int]) -> None:
        import torch

        self.size, todo = len(cores), list(cores)
        self._barrier = threading.Barrier(self.size)
        self._own = threading.local()

        def begin() -> None:
            os.sched_setaffinity(0, {todo.pop()})
            torch.set_num_threads(1)  # of this thread's calls

        self._pool = ThreadPoolExecutor(self.size, initializer=begin)

    def together(self, work: Callable[[], T]) -> list[T]:
        """What ``work`` gives in each thread."""
        import torch

        def one() -> T:
            self._barrier.wait()  # so no thread takes two
            with torch.inference_mode():
                return work()

        return [future.result() for future in [self._pool.submit(one) for _ in range(self.size)]]

    def close(self) -> None:
        self._pool.shutdown()

    def load(self, kernel: Kernel) -> float:
        """Make it in every thread; the rate at its second call."""

        def ready() -> float:
            self._own.run = run = kernel.make()
            run()
            return _timed(run, kernel.amount, 0.0)

        return sum(self.together(ready))

    def best(self, kernel: Kernel) -> float:
        """Every thread's best window, added up: no core's arithmetic is another's."""
        self.load(kernel)
        return sum(self.together(lambda: _best(lambda: self._window(kernel))))

    def best_together(self, kernel: Kernel) -> float:
        """All threads' best common window, of what they compete for."""
        self.load(kernel)
        return _best(lambda: sum(self.together(lambda: self._window(kernel))))

    def _window(self, kernel: Kernel) -> float:
        return _timed(self._own.run, kernel.amount, WINDOW_S)


def _best(rate: Callable[[], float]) -> float:
    """Asked for again and again, for SPENT_S."""
    end, seen = perf_counter() + SPENT_S, 0.0
    while not seen or perf_counter() < end:
        seen = max(seen, rate())
    return seen


def _timed(run: Run, amount: float, seconds: float) -> float:
    """``amount`` times calls per second; at least one call."""
    begin, calls = perf_counter(), 0
    while True:
        run()
        calls += 1
        if (spent := perf_counter() - begin) >= seconds:
            return calls * amount / spent


def cpu(cores: Sequence[int], types: Sequence[str], memory: bool) -> Peaks:
    """Of ``cores`` together."""
    threads, cache = Cores(cores), caches(cores)
    rates: dict[str, float] = {}
    for kind in types:
        # this torch, or this processor, may lack products of the type: then it has no peak
        with suppress(RuntimeError, NotImplementedError, AttributeError):
            rates[kind] = fastest(threads, _kernels(kind))
    speed = threads.best_together(_reading(len(cores), cache)) if memory else 0.0
    threads.close()
    return Peaks(rates, speed, cache)


def fastest(threads: Cores, kernels: Iterable[Kernel]) -> float:
    """FLOP/s of the best window of the two kernels that seem best at their second call."""
    tried: list[tuple[float, Kernel]] = []
    for kernel in kernels:
        seen = max((rate for rate, _ in tried), default=math.inf)
        if threads.size * kernel.amount / seen <= PATIENCE_S:
            tried.append((threads.load(kernel), kernel))
    tried.sort(key=itemgetter(0), reverse=True)
    good = [kernel for rate, kernel in tried[:2] if rate > WORTH * tried[0][0]]
    return max(threads.best(kernel) for kernel in good)


def _kernels(kind: str) -> Iterator[Kernel]:
    """Small ones first."""
    import torch

    if kind != "int8":
        dtype = getattr(torch, DTYPES[kind])
        for images, channels, height in CONVOLUTIONS:
            flops = 2.0 * images * height**2 * 9 * channels**2
            yield Kernel(flops, partial(_convolution, images, channels, height, dtype))
    for side in SIDES["cpu"]:
        yield Kernel(2.0 * side**3, partial(_product, kind, side, "cpu"))


def _convolution(images: int, channels: int, height: int, dtype: torch.dtype) -> Run:
    import torch

    last = torch.channels_last
    x = torch.randn(images, channels, height, height).to(dtype).to(memory_format=last)
    w = (torch.randn(channels, channels, 3, 3) / channels).to(dtype).to(memory_format=last)
    return lambda: torch.conv2d(x, w, padding=1)


def _product(kind: str, side: int, device: str) -> Run:
    import torch

    size = (side, side)
    if kind == "int8":
        a, b = (torch.randint(-127, 127, size, dtype=torch.int8).to(device) for _ in range(2))
        b = b.t() if device == "cuda" else b  # what the GPU's kernels are made for
        return lambda: torch._int_mm(a, b)
    a, b = (torch.randn(size).to(device, getattr(torch, DTYPES[kind])) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _reading(threads: int, cache: float) -> Kernel:
    """For each of ``threads``, which share ``cache``."""
    import torch

    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    whole = min(max(LEAST_BYTES, CACHES * cache), physical / 8)
    numbers = int(whole / threads / 4)
    return Kernel(4.0 * numbers, lambda: partial(torch.sum, torch.ones(numbers)))


def caches(cores: Sequence[int], root: Path = CPU) -> float:
    """Bytes of the second and third level caches that ``cores`` have, each counted once."""
    found: dict[str, float] = {}
    for core in cores:
        for place in root.glob(f"cpu{core}/cache/index*"):
            level, shared, size = (
                read(place / name) or "" for name in ("level", "shared_cpu_list", "size")
            )
            if level in ("2", "3") and size.endswith("K"):
                found[f"{level} {shared}"] = 1024.0 * int(size[:-1])
    return sum(found.values())


def cuda(types: Sequence[str], memory: bool) -> Peaks:
    """Of the first GPU that this process sees."""
    import torch

    rates: dict[str, float] = {}
    with torch.inference_mode():
        for kind in types:
            for flag in (torch.backends.cuda.matmul, torch.backends.cudnn):
                flag.allow_tf32 = kind == "tf32"
            for side in SIDES["cuda"]:
                with suppress(RuntimeError):  # no such products, or no room for them
                    rate = _on_gpu(2.0 * side**3, _product(kind, side, "cuda"))
                    rates[kind] = max(rate, rates.get(kind, 0.0))
        speed = 0.0
        if memory:
            to, of = (torch.ones(GPU_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
            speed = _on_gpu(2.0 * GPU_BYTES, lambda: to.copy_(of))
    cache = float(torch.cuda.get_device_properties(0).L2_cache_size)
    return Peaks(rates, speed, cache)


def _on_gpu(amount: float, run: Run) -> float:
    """``amount`` times calls per second in the best window; as many calls as fill one."""
    import torch

    def window(calls: int) -> float:
        torch.cuda.synchronize()
        begin = perf_counter()
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
        return perf_counter() - begin

    window(1)
    calls = max(1, round(GPU_WINDOW_S / window(1)))
    return _best(lambda: calls * amount / window(calls))

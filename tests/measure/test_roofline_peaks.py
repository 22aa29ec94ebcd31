"""Which kernels a peak is taken from, and what caches hold; nothing is timed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.measure import roofline_peaks
from gpubench.measure.roofline_peaks import Kernel


class Threads(roofline_peaks.Cores):
    """Kernels run at the rate that they are called after; ``loaded`` and ``measured`` tell."""

    def __init__(self, rates: dict[Kernel, tuple[float, float]], size: int = 1) -> None:
        self._rates, self.size = rates, size
        self.loaded: list[Kernel] = []
        self.measured: list[Kernel] = []

    def load(self, kernel: Kernel) -> float:
        self.loaded.append(kernel)
        return self._rates[kernel][0]

    def best(self, kernel: Kernel) -> float:
        self.measured.append(kernel)
        return self._rates[kernel][1]


def kernel(flops: float) -> Kernel:
    return Kernel(flops, lambda: lambda: None)


def test_the_best_window_of_the_two_best_kernels_counts() -> None:
    slow, good, better = kernel(1e6), kernel(2e6), kernel(3e6)
    threads = Threads({slow: (1e9, 9e9), good: (4e9, 6e9), better: (5e9, 5.5e9)})
    assert roofline_peaks.fastest(threads, [slow, good, better]) == 6e9
    assert threads.measured == [better, good]


def test_a_kernel_far_behind_is_not_measured() -> None:
    one, other = kernel(1e6), kernel(2e6)
    threads = Threads({one: (1e9, 1e9), other: (4e9, 4e9)})
    assert roofline_peaks.fastest(threads, [one, other]) == 4e9
    assert threads.measured == [other]


def test_no_large_kernel_is_tried_where_a_small_one_crawled() -> None:
    """A type that is emulated would take minutes."""
    small, large = kernel(1e6), kernel(1e9)
    threads = Threads({small: (1e9, 1e9)}, size=2)  # the large one: 2 s
    assert roofline_peaks.fastest(threads, [small, large]) == 1e9
    assert threads.loaded == [small]


def test_a_cache_that_cores_share_is_counted_once(tmp_path: Path) -> None:
    for core in range(4):
        for index, (level, shared, size) in enumerate(
            [("1", f"{core}", "48K"), ("2", f"{core}", "1024K"),
             ("3", "0-1" if core < 2 else "2-3", "32768K")]
        ):  # fmt: skip
            place = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
            place.mkdir(parents=True)
            for name, text in (("level", level), ("shared_cpu_list", shared), ("size", size)):
                (place / name).write_text(text + "\n")
    assert roofline_peaks.caches([0], tmp_path) == 33 * 2**20
    assert roofline_peaks.caches([0, 1], tmp_path) == 34 * 2**20
    assert roofline_peaks.caches([0, 3], tmp_path) == 66 * 2**20
    assert roofline_peaks.caches([9], tmp_path) == 0


def test_each_core_has_a_thread_and_all_are_heard() -> None:
    core = min(roofline_peaks.os.sched_getaffinity(0))
    threads = roofline_peaks.Cores([core, core])
    made: list[int] = []

    def make() -> roofline_peaks.Run:
        made.append(roofline_peaks.threading.get_ident())
        return lambda: None

    assert threads.load(Kernel(1.0, make)) > 0
    assert len(set(made)) == 2
    assert sorted(threads.together(roofline_peaks.threading.get_ident)) == sorted(made)
    with pytest.raises(ZeroDivisionError):
        threads.together(lambda: 1 / 0)
    threads.close()

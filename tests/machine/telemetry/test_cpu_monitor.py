from __future__ import annotations

from pathlib import Path

from gpubench.machine.telemetry.cpu_monitor import CpuWindow


class Machine:
    """A /proc and /sys to read from; times in ticks of 10 ms."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cores = {0: [0] * 8, 1: [0] * 8}
        self.processes: dict[int, list[int]] = {}  # pid: parent, own, collected
        self.write()

    def write(self) -> None:
        proc = self.root / "proc"
        proc.mkdir(exist_ok=True)
        total = [sum(column) for column in zip(*self.cores.values(), strict=True)]
        rows = {"cpu": total} | {f"cpu{core}": row for core, row in self.cores.items()}
        lines = [f"{name} {' '.join(map(str, row))} 0 0" for name, row in rows.items()]
        (proc / "stat").write_text("\n".join([*lines, "intr 5"]))
        (proc / "loadavg").write_text("1.25 1.00 0.50 2/100 999")
        for folder in proc.glob("[0-9]*"):
            (folder / "stat").unlink()
            folder.rmdir()
        for pid, (parent, own, collected) in self.processes.items():
            (proc / str(pid)).mkdir()
            words = ["S", parent, *[0] * 9, own, 0, collected, 0, 20]
            (proc / str(pid) / "stat").write_text(f"{pid} (a ) b) {' '.join(map(str, words))}")

    def busy(self, core: int, user: int, idle: int, steal: int = 0) -> None:
        row = self.cores[core]
        row[0] += user
        row[3] += idle
        row[7] += steal

    def frequency(self, core: int, khz: int) -> None:
        folder = self.root / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scaling_cur_freq").write_text(str(khz))


def test_the_tasks_own_time_is_not_other_peoples(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.processes = {7: [1, 0, 0], 8: [7, 40, 0]}
    machine.write()
    window = CpuWindow([0], lambda: {8}, tmp_path)
    window.begin()
    machine.busy(0, user=90, idle=10)
    machine.busy(1, user=100, idle=0)  # not a core of the task
    machine.processes[8][1] += 60
    machine.write()
    window.end()
    found = window.result()
    assert found["own_busy_share"] == 0.6
    assert found["other_busy_share"] == 0.3
    assert found["steal_share"] == 0
    assert found["load_1min"] == 1.25


def test_a_worker_that_ends_early_is_still_accounted_for(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.processes = {7: [1, 5, 1000], 8: [7, 40, 0]}
    machine.write()
    window = CpuWindow([0], lambda: {8}, tmp_path)
    window.begin()
    machine.busy(0, user=100, idle=0)
    machine.processes = {7: [1, 5, 1000 + 40 + 95]}  # collected by its parent
    machine.write()
    window.end()
    assert window.result()["own_busy_share"] == 0.95
    assert window.result()["other_busy_share"] == 0.05


def test_steal_and_all_cores_when_none_are_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.processes = {8: [1, 0, 0]}
    machine.write()
    window = CpuWindow([], lambda: {8}, tmp_path)
    window.begin()
    machine.busy(0, user=50, idle=40, steal=10)
    machine.busy(1, user=0, idle=100)
    machine.write()
    window.end()
    assert window.result()["steal_share"] == 0.05
    assert window.result()["other_busy_share"] == 0.25


def test_a_window_too_short_for_the_kernels_ticks_gives_no_shares(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    window = CpuWindow([0], set, tmp_path)
    window.begin()
    machine.busy(0, user=10, idle=0)
    machine.write()
    window.end()
    assert window.result() == {"load_1min": 1.25}


def test_frequencies_of_the_tasks_cores_only(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.frequency(0, 3_000_000)
    machine.frequency(1, 9_000_000)
    window = CpuWindow([0], set, tmp_path)
    window.begin()
    machine.frequency(0, 2_000_000)
    window.end()
    assert window.result()["mhz"] == {"min": 2000, "median": 2500, "max": 3000}


def test_a_machine_without_proc_is_no_error(tmp_path: Path) -> None:
    window = CpuWindow([0], lambda: {1}, tmp_path)
    window.begin()
    window.end()
    assert window.result() == {}


def test_real_proc_sees_this_process_burn_cpu() -> None:
    import os
    import time

    window = CpuWindow([], lambda: {os.getpid()})
    window.begin()
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        pass
    window.end()
    found = window.result()
    cores = os.cpu_count() or 1
    assert 0.02 / cores < found["own_busy_share"] <= 1.1 / cores
    assert 0 <= found["other_busy_share"] <= 1

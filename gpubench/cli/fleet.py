"""`gpubench fleet`: every kind of machine of a cluster, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gpubench import escape, units
from gpubench.cli import options, terminal

if TYPE_CHECKING:
    from rich.text import Text

    from gpubench.run.watcher import Watcher


@click.command()
@options.suite_argument
@click.option("--per", type=click.Choice(["gpu", "node"]), default="gpu", show_default=True,
              help="One device of each kind, or all that a machine has.")  # fmt: skip
@click.option("--baseline", default="", metavar="DEVICE",
              help="What the others are compared with.  [default: this machine's]")  # fmt: skip
@click.option("--price", metavar="DEVICE=PRICE,...|FILE",
              help="Of an hour of a device: L4=0.71,H100=2.99; or a .toml file.")  # fmt: skip
@click.option("--max-latency", metavar="P=TIME",
              help="The best configuration is of those that keep it: p99=20ms.")  # fmt: skip
@options.selection
@options.output_option("Directory of the runs.", stdout=False)
@click.option("--resume", is_flag=True, help="Go on with the runs in the output directory.")
@options.quiet_option
@options.several
@options.ship_option
@options.cache_option
def fleet(
    suite: str,
    per: Literal["gpu", "node"],
    baseline: str,
    price: str | None,
    output: Path | None,
    resume: bool,
    quiet: bool,
    ray: str | None,
    insecure_cluster: bool,
    ship: bool,
    cache_dir: Path | None,
    **chosen: Any,
) -> None:
    """Run a suite on each kind of machine of a Ray cluster, and compare the devices.

    One machine of each kind measures, all at the same time; the report has the best configuration
    of each device, its speed-up, and what a million images cost.

    Exit code 1: a kind of machine, or a cell, failed.

    Example: gpubench fleet throughput --price "NVIDIA L4=0.71,NVIDIA H100=2.99"
    """
    from gpubench.analysis.summary import summarise
    from gpubench.analysis.tables import devices
    from gpubench.errors import InputError
    from gpubench.report import render, save_report
    from gpubench.report import terminal as terminal_report
    from gpubench.run import fleet as machines
    from gpubench.run.cluster.ray_cluster import Cluster
    from gpubench.run.progress import Lines, Told
    from gpubench.run.record_builder import claimed, directory
    from gpubench.run.watcher import Silent

    if resume and output is None:
        raise InputError("--resume: say which runs to go on with: -o DIR")
    given = machines.prices(price)
    out = output or claimed(directory(f"fleet-{Path(suite).stem}"))
    screen = terminal.console(quiet)

    class Named(Told):
        """Lines of several machines, each of which says whose it is."""

        def __init__(self, name: str) -> None:
            self._name = name

        def print(self, line: Text) -> None:
            screen.print(f"{self._name}: {line.plain}", soft_wrap=True)

    def shown(name: str) -> Watcher:
        return Silent() if quiet else Lines(Named(name))

    try:
        with Cluster(ray or "", insecure_cluster, ship) as cluster:
            found = machines.run(
                cluster, suite, chosen, out, shown, per=per, baseline=baseline, given=given,
                resume=resume, cache_dir=cache_dir,
            )  # fmt: skip
    except KeyboardInterrupt:
        screen.print(f"interrupted; finished records are kept in {out}: go on with -o {out} "
                     "--resume", soft_wrap=True)  # fmt: skip
        sys.exit(130)
    failed = {name: why for name, why in found.items() if isinstance(why, Exception)}
    files = [file for file in found.values() if not isinstance(file, Exception)]
    for name, why in failed.items():
        escape.tell(f"{name}: {why}")
    if files:
        screen.print(terminal_report.summary(files))
        compared = devices.build(summarise(files))
        if compared.rows:
            screen.print(terminal_report.grid(compared))
        save_report(out, render(files, "html"))
        screen.print(f"{units.count(len(files), 'kind')} of machine; report: {out / 'report.html'}",
                     soft_wrap=True)  # fmt: skip
    broken = any(record.status == "failed" for file in files for record in file.records)
    nothing = not any(record.status == "ok" for file in files for record in file.records)
    sys.exit(1 if failed or broken or nothing else 0)


COMMANDS = (fleet,)

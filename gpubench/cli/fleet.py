"""`gpubench fleet`: every kind of machine of a cluster, side by side."""

from __future__ import annotations

import sys
from typing import Any

import click

from gpubench import escape, units
from gpubench.cli import options, terminal


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
    suite: str, quiet: bool, ray: str | None, insecure_cluster: bool, ship: bool, **asked: Any
) -> None:
    """Run a suite on each kind of machine of a Ray cluster, and compare the devices.

    One machine of each kind measures, all at the same time; the report has the best configuration
    of each device, its speed-up, and what a million images cost.

    Exit code 1: a kind of machine, or a cell, failed.

    Example: gpubench fleet throughput --price "NVIDIA L4=0.71,NVIDIA H100=2.99"
    """
    from gpubench.report import save_report
    from gpubench.report import terminal as terminal_report
    from gpubench.run import api
    from gpubench.run.cluster.ray_cluster import Cluster
    from gpubench.run.progress import Lines, Named

    screen = terminal.console(quiet)
    shown = False if quiet else lambda name: Lines(Named(name, screen))
    with terminal.interruptible(screen), Cluster(ray or "", insecure_cluster, ship) as cluster:
        made = api.fleet(suite, cluster, progress=shown, **asked)
    for name, why in made.failed.items():
        escape.tell(f"{name}: {why}")
    if made.files:
        screen.print(terminal_report.fleet([*made.files.values()]))
        save_report(made.directory, made.document("html"))
        report = made.directory / "report.html"
        screen.print(f"{units.count(len(made.files), 'kind')} of machine; report: {report}",
                     soft_wrap=True)  # fmt: skip
    sys.exit(0 if made.ok else 1)

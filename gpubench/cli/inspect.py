"""The command that shows what a network is: `gpubench inspect`.

Exit codes: 0; 2 it is no classifier of pictures, or bad input.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpubench import units
from gpubench.cli import options, terminal

if TYPE_CHECKING:
    from gpubench.run.inspect import Inspected

_SAID = ("--weights", "--preprocess", "--arguments", "--device")
_MOST = 12
"""Modules that are shown; --json has all."""


@click.command()
@click.argument("model")
@lambda command: options.selection(
    command, [name for name, _ in options.SELECTION if name not in _SAID]
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@options.cache_option
def inspect(model: str, as_json: bool, cache_dir: Path | None, **chosen: Any) -> None:
    """Say what a network is, and which backends can take it: nothing is measured.

    Example: gpubench inspect model.py:build
    """
    import msgspec

    from gpubench.run import inspect as inspecting

    with terminal.waiting("building the network, in a process of its own ..."):
        found = inspecting.inspect(chosen | {"model": model}, cache_dir)
    if as_json:
        terminal.write(msgspec.json.encode(found).decode() + "\n", document=True)
    else:
        terminal.write(text(found) + "\n")


def text(found: Inspected) -> str:
    """One page."""
    net = found.network
    names = f" ({', '.join(net.class_names[:3])}, ...)" if net.class_names else ""
    batch = f"{net.batch} only" if net.batch else "any"
    rows = [
        ("model", f"{found.model} ({found.weights}): {net.kind}"),
        ("input", f"{' x '.join(map(str, net.input_shape))} {net.input_dtype}, batch size {batch}"),
        ("pictures", net.preprocessing),
        ("output", f"{net.classes:,} {net.answers}{names}"),
        ("parameters", f"{net.parameters:,} ({net.precision})"),
        ("FLOPs", f"{net.flops:,.0f} for a picture" if net.flops is not None else net.uncounted),
        *([("opset", str(net.opset))] if net.opset else []),
        *(("note", note) for note in net.notes),
        ("SHA-256", net.sha256),
    ]
    lines = [f"{name:<11} {value}" for name, value in rows]
    if net.modules and net.flops:
        most = sorted(net.modules.items(), key=lambda one: -one[1])[:_MOST]
        lines += ["", "FLOPs by module"]
        lines += [f"{share / net.flops:>7.1%}  {name}" for name, share in most]
        left = len(net.modules) - len(most)
        lines += [f"         and {units.count(left, 'more module')}"] if left else []
    lines += ["", f"backends on {found.device}"]
    width = max(len(one.backend) for one in found.backends)
    lines += [
        f"{one.backend:<{width}}  {', '.join(one.precisions) or f'no: {one.why}'}"
        for one in found.backends
    ]
    return "\n".join(lines)


COMMANDS: tuple[click.Command, ...] = (inspect,)

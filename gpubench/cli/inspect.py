"""The command that shows what a network is: `gpubench inspect`.

Exit codes: 0; 2 it is no classifier of pictures, or bad input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpubench.cli import options, terminal

_SAID = ("--weights", "--preprocess", "--arguments", "--output-name", "--device")


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

    from gpubench.run import api

    with terminal.waiting("building the network, in a process of its own ..."):
        found = api.inspect(model, cache_dir=cache_dir, **chosen)
    if as_json:
        terminal.write(msgspec.json.encode(found).decode() + "\n", document=True)
    else:
        terminal.write(f"{found!r}\n")


COMMANDS: tuple[click.Command, ...] = (inspect,)

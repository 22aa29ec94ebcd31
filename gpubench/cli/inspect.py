"""The command that shows what a network is: `gpubench inspect`.

Exit codes: 0; 2 it is no classifier of pictures, or bad input.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from gpubench import escape
from gpubench.cli import options, terminal


@click.command()
@click.argument("model")
@partial(
    options.selection,
    only=("--weights", "--preprocess", "--arguments", "--output-name", "--device"),
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@options.cache_option
def inspect(as_json: bool, **asked: Any) -> None:
    """Say what a network is, and which backends can take it: nothing is measured.

    Example: gpubench inspect model.py:build
    """
    from gpubench.run import api

    with terminal.waiting("building the network, in a process of its own ..."):
        found = api.inspect(**asked)
    terminal.write(escape.document(found) if as_json else f"{found!r}\n", document=as_json)

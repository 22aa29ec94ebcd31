"""The command that makes an artefact for serving: `gpubench deploy`."""

from __future__ import annotations

import click

COMMANDS: tuple[click.Command, ...] = ()

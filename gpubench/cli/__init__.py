"""The command line: `main` is the ``gpubench`` command."""

from gpubench.cli.main import main

__all__ = ["main"]

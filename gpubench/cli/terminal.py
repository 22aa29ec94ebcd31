"""Standard output as people and CIs read it, and files that are written whole."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpubench import escape
from gpubench.run.screen import console as console

if TYPE_CHECKING:
    from rich.console import Console

    from gpubench.run.watcher import Watcher


@contextmanager
def waiting(words: str) -> Iterator[None]:
    """Say what takes a while: gone when done on a terminal; else a line on standard error."""
    screen = console()
    if screen.is_terminal:
        with screen.status(words):
            yield
    else:
        print(words, file=sys.stderr, flush=True)
        yield


def never_fail() -> None:
    """What a standard stream's encoding lacks is written in ASCII, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=escape.PLAIN)


def write(body: str, document: bool = False) -> None:
    """On standard output; a ``document`` in UTF-8, as in a file, whatever the terminal has."""
    if not sys.stdout:
        return
    if document and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        sys.stdout.buffer.write(body.encode())
    else:
        sys.stdout.write(body)
    sys.stdout.flush()


def show_run(screen: Console, quiet: bool) -> Watcher:
    """Who tells a person how a run goes."""
    from gpubench.run import progress, watcher

    if quiet:
        return watcher.Silent()
    return (progress.Live if screen.is_terminal else progress.Lines)(screen)

"""Standard output as people and CIs read it, and files that are written whole."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpubench import escape
from gpubench.cli import options
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
        escape.tell(words)
        yield


@contextmanager
def interruptible(screen: Console) -> Iterator[None]:
    """What is interrupted ends with exit code 130, and says how to go on with it."""
    from gpubench.run.api import Interrupted

    try:
        yield
    except Interrupted as error:
        again = error.again or options.resumed(sys.argv[1:], error.directory)
        words = f"interrupted; what was finished is kept. Go on with: {again}"
        screen.print(words, soft_wrap=True)
        sys.exit(130)


def never_fail() -> None:
    """What a standard stream's encoding lacks is written in ASCII, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=escape.PLAIN)


def write(body: str, document: bool = False) -> None:
    """On standard output; a ``document`` in UTF-8, as in a file, whatever the terminal has."""
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

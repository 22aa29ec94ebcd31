"""The console that people read, on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, cast

from gpubench import escape

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment


class _Stdout:
    """Standard output; whatever makes it fail (a full disk), its reader has gone."""

    def write(self, text: str) -> int:
        try:
            return sys.stdout.write(text)
        except OSError as error:
            raise BrokenPipeError from error

    def flush(self) -> None:
        try:
            sys.stdout.flush()
        except OSError as error:
            raise BrokenPipeError from error

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


def console(quiet: bool = False) -> Console:
    """Where people read; a pipe or a log gets lines of 120 columns."""
    from rich.console import Console

    class Patient(Console):
        """Goes on in silence when its reader is gone: a run is worth more than its output.

        And whatever it is given to print is text, not a command to the terminal or to a CI.
        """

        def on_broken_pipe(self) -> None:
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                text = segment.text if segment.control else escape.visible(segment.text)
                yield segment._replace(text=text)

        def print(self, *objects: Any, **options: Any) -> None:
            if self.is_terminal:
                return super().print(*objects, **options)
            with self.capture() as taken:
                super().print(*objects, **options)
            text = escape.terminal(taken.get())  # a long word may have been broken before '::'
            return super().print(
                text, markup=False, emoji=False, highlight=False, soft_wrap=True, end=""
            )

    file = cast("IO[str]", _Stdout()) if sys.stdout else None
    screen = Patient(
        quiet=quiet, file=file, markup=False, force_jupyter=False
    )  # words from outside may look like it
    if not screen.is_terminal:
        screen.width = 120
    return screen

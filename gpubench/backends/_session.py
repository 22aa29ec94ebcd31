"""What sessions have in common: being a context manager."""

from __future__ import annotations

from typing import Self


class Closing:
    """Leaving the context calls `close`, which may be called more than once."""

    def close(self) -> None:
        """Release what the session holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

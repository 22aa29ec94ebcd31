"""The whole interface between gpubench and whatever turns encoded pictures into inputs.

A decoder never times, loops, queues or falls back: the loader calls it, and `gpubench.measure.loop`
owns time. Adding one is one module and one entry point (group ``gpubench.decoders``). The decoder
called ``pil`` is the reference that all others are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from gpubench import plugins
from gpubench.errors import CellFailed, GpubenchError
from gpubench.workload.data.image_file import Unusable

if TYPE_CHECKING:
    import torch

    from gpubench.workload.data.preprocess import Inputs, Spec

Facts = dict[str, Any]
"""JSON-able proof of what decodes: versions, the library's own settings."""
GROUP = "gpubench.decoders"


class Preprocessor(Protocol):
    """A decoder made ready for one network's input; each thread or process has its own."""

    facts: Facts

    def decode(self, data: bytes) -> Any:
        """Encoded picture -> pixels, in whatever form `transform` takes.

        Raises `workload.data.image_file.Unusable` for what is no usable picture; the same ones
        as the reference does.
        """

    def transform(self, pixels: Any, out: Inputs) -> None:
        """All that the `Spec` says, into ``out``: of its shape and dtype, C-contiguous."""


class Again(Exception):
    """Nothing of what was decoded and not transformed is left: it is to be decoded again."""


class DevicePreprocessor(Protocol):
    """The same for a decoder that works on a GPU, a batch at a time, on the current stream.

    One with threads of its own on the host has a number of them, ``threads``, that is set before
    the first batch.
    """

    facts: Facts

    def decode(self, data: list[bytes]) -> Any:
        """Encoded pictures of one batch -> pixels in device memory; may return before they are.

        Then ``settle(pixels)`` waits for them, and ``check(picture)`` says whether one is usable.
        """

    def transform(self, pixels: Any, out: torch.Tensor) -> None:
        """As `Preprocessor.transform`, for the batch: ``out`` is (batch, *spec.shape).

        Batches come in the order in which they were decoded. Raises `Again`.
        """


class Decoder(Protocol):
    """A way to decode and preprocess. Modules import their library inside these methods only."""

    name: str
    summary: str
    """One line for ``gpubench list decoders``."""
    preload: tuple[str, ...]
    """Modules worth importing before workers are forked; importing them must not touch CUDA."""
    on_device: bool = False
    """Whether `open` gives a `DevicePreprocessor`."""
    ahead: int = 0
    """Of such: batches that it decodes while the one before is transformed, and computed."""

    def probe(self) -> Facts:
        """Cheap facts (versions) without importing the library; raises `Unavailable`."""

    def unsupported(self, device: str) -> str | None:  # noqa: ARG002
        """Why it cannot serve cells on ``device`` ('cpu' or 'cuda'), or None. Pure and cheap.

        Who inherits from this serves both, unless it says otherwise.
        """
        return None

    def open(self, spec: Spec, index: int | None = None) -> Preprocessor | DevicePreprocessor:
        """Ready for ``spec``. ``index``: the CUDA device, for a decoder that works on it.

        Raises `gpubench.errors.Unsupported` for a ``spec`` that it cannot do exactly.
        """


@contextmanager
def told(decoder: str, picture: str) -> Iterator[None]:
    """Whatever a decoder raises is told with the picture's name."""
    try:
        yield
    except (Unusable, Again, MemoryError, GpubenchError):
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {error}".strip(": ")
        raise CellFailed("error", f"{decoder} broke at {picture!r}: {words}") from error


def names() -> list[str]:
    """Names of all registered decoders, sorted; imports nothing."""
    return plugins.names(GROUP)


def get(name: str) -> Decoder:
    """The registered decoder called ``name``. Raises InputError when there is none."""
    decoder: Decoder = plugins.get(GROUP, name)
    return decoder

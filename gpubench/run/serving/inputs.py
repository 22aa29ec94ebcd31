"""Pictures in whatever form they come -> rows of the network's input."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from os import PathLike, fsdecode
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gpubench import escape
from gpubench.errors import InputError
from gpubench.pipeline.decoders import base, jpeg_fallback
from gpubench.workload.data import image_file, preprocess
from gpubench.workload.data.image_file import Unusable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from gpubench.workload.data.preprocess import Inputs, Spec

    Picture = bytes | str | PathLike[str] | Image.Image | NDArray[np.uint8]
    """Encoded bytes, a file's name, a PIL image, or pixels (H, W, 3) uint8 RGB."""
    Pictures = Picture | Iterable[Picture]


def each(images: Pictures) -> Iterator[Picture]:
    """One picture or many: as many. An array with four dimensions is a sequence of pictures."""
    encoded = isinstance(images, bytes | bytearray | memoryview | str | PathLike)
    if encoded or _is_pil(images) or getattr(images, "ndim", 0) == 3:
        yield cast("Picture", images)
    else:
        try:
            found = iter(cast("Iterable[Picture]", images))
        except TypeError:
            raise InputError(_wanted(images)) from None
        yield from found


class _Own(threading.local):
    """What each thread has for itself."""

    decoder: base.Preprocessor | None = None


class Preprocessing:
    """Decoder and network's input; usable from any thread, each of which has its own decoder."""

    def __init__(self, decoder: str, spec: Spec) -> None:
        self._decoder, self._spec = base.get(decoder), spec
        self._own = _Own()

    def fill(self, picture: Picture, out: Inputs, position: int) -> None:
        """Into ``out``, one input. Raises InputError naming the picture and the reason."""
        try:
            self._fill(picture, out)
        except Unusable as error:
            name = f" ({str(picture)!r})" if isinstance(picture, str | PathLike) else ""
            raise InputError(f"image {position}{escape.visible(name)}: {error}") from error
        except InputError as error:
            raise InputError(f"image {position}: {error}") from error

    def _fill(self, picture: Picture, out: Inputs) -> None:
        if isinstance(picture, str | PathLike):
            picture = image_file.read(Path(fsdecode(picture)))
        if isinstance(picture, bytes | bytearray | memoryview):
            if self._own.decoder is None:
                self._own.decoder = cast("base.Preprocessor", self._decoder.open(self._spec))
            self._own.decoder.transform(self._own.decoder.decode(bytes(picture)), out)
            return
        out[...] = preprocess.apply(self._spec, _pixels(picture))


def _pixels(picture: Any) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of what is decoded already, as the reference decoder would have it."""
    if _is_pil(picture):
        return image_file.pixels(picture)
    shape, kind = getattr(picture, "shape", None), str(getattr(picture, "dtype", ""))
    if shape is None:
        raise InputError(_wanted(picture))
    if kind != "uint8" or len(shape) != 3 or shape[2] != 3:
        raise InputError(f"an array {tuple(shape)} of {kind}; expected (H, W, 3) of uint8, RGB")
    image_file.check_size(shape[1], shape[0])
    return jpeg_fallback.averaged(picture)


def _is_pil(picture: object) -> bool:
    """Without importing Pillow."""
    return any(c.__module__ == "PIL.Image" and c.__name__ == "Image" for c in type(picture).__mro__)


def _wanted(picture: object) -> str:
    return (
        f"a {type(picture).__name__}; expected encoded bytes, a path, a PIL image, or an array "
        "(H, W, 3) of uint8"
    )

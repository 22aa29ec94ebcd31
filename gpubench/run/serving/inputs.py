"""Pictures in whatever form they come -> rows of the network's input."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from os import PathLike, fsdecode
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

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

    Picture = bytes | str | PathLike[str] | IO[bytes] | Image.Image | NDArray[np.uint8]
    """Encoded bytes, a file's name or a file open for reading bytes, a PIL image, or pixels uint8:
    (H, W, 3) RGB, or (H, W) grey."""
    Pictures = Picture | Sequence[Picture] | Iterator[Picture]

WANTED = (
    "encoded bytes, a path, a file open for reading bytes, a PIL image, an array (H, W, 3) or "
    "(H, W) of uint8"
)


def each(images: Pictures) -> Iterator[Picture]:
    """One picture or many: as many. Raises InputError for what is neither.

    Many are a list, a tuple, an iterator, or an array (N, H, W, 3).
    """
    if getattr(images, "ndim", 0) == 4:
        return iter(cast("NDArray[np.uint8]", images))
    if _is_picture(images):
        return iter([cast("Picture", images)])
    if isinstance(images, list | tuple | Iterator):
        return iter(images)
    raise InputError(f"{_named(images)}; expected {WANTED}, or a list of these")


class Preprocessing:
    """Decoder and network's input; usable from any thread, each of which has its own decoder."""

    def __init__(self, decoder: str, spec: Spec) -> None:
        self._decoder, self._spec = base.get(decoder), spec
        self._own = threading.local()

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
        elif not isinstance(picture, _BYTES) and hasattr(picture, "read") and not _is_pil(picture):
            picture = _content(cast("IO[bytes]", picture))
        if isinstance(picture, _BYTES):
            if not hasattr(self._own, "decoder"):
                self._own.decoder = cast("base.Preprocessor", self._decoder.open(self._spec))
            self._own.decoder.transform(self._own.decoder.decode(bytes(picture)), out)
            return
        out[...] = preprocess.apply(self._spec, _pixels(picture))


_BYTES = bytes | bytearray | memoryview


def _is_picture(found: object) -> bool:
    """Whether it is one by its kind, usable or not."""
    plain = isinstance(found, _BYTES | str | PathLike) or hasattr(found, "read")
    return plain or _is_pil(found) or hasattr(found, "dtype")


def _content(file: IO[bytes]) -> bytes:
    """What is left in a file. Raises InputError, Unusable."""
    try:
        data: object = file.read(image_file.MOST_BYTES + 1)
    except (OSError, TypeError, ValueError) as error:  # of another signature, closed
        raise InputError(f"{_named(file)} that cannot be read: {error}") from error
    if not isinstance(data, _BYTES):
        if hasattr(data, "close"):
            data.close()  # a coroutine, which would complain that nobody has waited for it
        raise InputError(
            f"{_named(file)} whose read() gives {_named(data)}, not bytes: open it in mode 'rb'"
        )
    if len(data) > image_file.MOST_BYTES:
        raise Unusable("too large")
    return bytes(data)


def _pixels(picture: Any) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of what is decoded already, as the reference decoder would have it."""
    import numpy as np

    if _is_pil(picture):
        return image_file.pixels(picture)
    if not hasattr(picture, "dtype"):
        raise InputError(f"{_named(picture)}; expected {WANTED}")
    shape = tuple(picture.shape)
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        raise InputError(
            f"{_named(picture)} {shape} of {picture.dtype}; expected NumPy's (H, W, 3) or (H, W) "
            "of uint8, from 0 to 255"
        )
    if len(shape) == 2:
        picture = np.broadcast_to(picture[..., None], (*shape, 3))
    elif len(shape) != 3 or shape[2] != 3:
        raise InputError(f"an array {shape} of uint8; expected (H, W, 3), RGB, or (H, W), grey")
    image_file.check_size(shape[1], shape[0])
    return jpeg_fallback.averaged(np.ascontiguousarray(picture))


def _is_pil(picture: object) -> bool:
    """Without importing Pillow."""
    return any(c.__module__ == "PIL.Image" and c.__name__ == "Image" for c in type(picture).__mro__)


def _named(found: object) -> str:
    name = type(found).__name__.replace("ndarray", "array")
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"

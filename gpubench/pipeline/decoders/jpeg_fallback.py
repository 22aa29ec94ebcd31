"""Which pictures a fast decoder may take by itself: plain JPEGs. All else is the reference's.

So every decoder uses the same pictures and refuses the same ones: a fast one only ever sees a JPEG
with an unremarkable header, and what it then trips over goes to the reference, which decides.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

from gpubench.errors import Unsupported, says_no_memory
from gpubench.workload.data import image_file
from gpubench.workload.data.image_file import MOST_PIXELS, NARROWEST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.workload.data.preprocess import Spec

OTHERS = "pillow: all but plain 8-bit grey and RGB JPEG, and what is damaged"
"""A fact of every decoder that is not the reference."""
_END = b"\xff\xd9"


def size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG that a fast decoder may try; None: leave it to `reference`.

    Reads the header only (about 15 us), with Pillow, so that both agree on what a JPEG is. A file
    without an end is left to the reference, because GPU decoders fill the rest in with grey.
    """
    from PIL.JpegImagePlugin import JpegImageFile

    if data[-2:] != _END and not data.rstrip(b"\0").endswith(_END):
        return None
    try:
        image = JpegImageFile(BytesIO(data))
    except Exception:  # noqa: BLE001  # the reference says what is wrong with it
        return None
    width, height = image.size
    narrow = max(width, height) > NARROWEST * min(width, height)
    if image.mode not in ("L", "RGB") or width * height > MOST_PIXELS or narrow:
        return None
    return width, height


def reference(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, as `pil` decodes it, writable as Pillow's memory is not. Raises Unusable."""
    return image_file.decode_file(BytesIO(data)).copy()


def blame(error: RuntimeError, decode: Callable[[bytes], object]) -> None:
    """Raises ``error``, of a decoder at a picture, where that has no part in it.

    That is so where memory has ended, and where ``decode`` cannot read a sound picture either: the
    library was built without JPEG, say. Else all would be the reference's, under another name.
    """
    from PIL import Image

    if says_no_memory(str(error)):
        raise error
    sound = BytesIO()
    Image.new("RGB", (16, 16)).save(sound, "JPEG")
    try:
        decode(sound.getvalue())
    except RuntimeError:
        raise error from None


def averaged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture larger than the reference keeps, averaged down as the reference does."""
    factor = image_file.averaging(pixels.shape[1], pixels.shape[0])
    if factor <= 1:
        return pixels
    import numpy as np
    from PIL import Image

    return np.array(Image.fromarray(pixels).reduce(factor))


def check(decoder: str, spec: Spec) -> None:
    """Raises Unsupported for what only the reference can do."""
    if spec.interpolation not in ("bilinear", "bicubic"):
        what = "resizes by bilinear or bicubic interpolation, and this network asks for "
        raise Unsupported(
            f"decoder {decoder!r} {what}{spec.interpolation!r}; use the decoder 'pil'"
        )
    if spec.channels == "grey":
        raise Unsupported(
            f"decoder {decoder!r} decodes in colour, and this network takes grey pictures; "
            "use the decoder 'pil'"
        )

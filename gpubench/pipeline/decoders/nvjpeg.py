"""nvJPEG through torchvision, and transforms v2 on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench import plugins
from gpubench.errors import says_no_memory
from gpubench.pipeline.decoders import _torchvision_ops, jpeg_fallback
from gpubench.pipeline.decoders.base import Decoder
from gpubench.workload.data import image_file

if TYPE_CHECKING:
    import torch

    from gpubench.pipeline.decoders.base import Facts
    from gpubench.workload.data.preprocess import Spec


class NvJpeg(Decoder):
    """On a CUDA device, a batch at a time."""

    name = "nvjpeg"
    summary = "nvJPEG through torchvision, transforms v2 on the GPU; CUDA"
    preload: tuple[str, ...] = ("torch", "torchvision")
    on_device = True

    def probe(self) -> Facts:
        return plugins.installed("torch", "torchvision")

    def unsupported(self, device: str) -> str | None:
        return None if device == "cuda" else "nvjpeg decodes on a CUDA device"

    def open(self, spec: Spec, index: int | None = None) -> NvJpegPreprocessor:
        return NvJpegPreprocessor(spec, index or 0, self.probe())


class NvJpegPreprocessor:
    """Works on the current stream.

    torchvision has nvJPEG write on a stream that nobody else knows: it has the current one wait for
    that, but not that one for the current one, of whose memory it takes the pictures. So what is
    enqueued there might still read, for the batch before, what nvJPEG writes. Hence pictures get
    memory of a stream on which nothing else is done, and it is given back when ours is through.
    """

    def __init__(self, spec: Spec, index: int, facts: Facts) -> None:
        import torch

        jpeg_fallback.check(NvJpeg.name, spec)
        self._spec, self._device = spec, torch.device("cuda", index)
        self._decode = _torchvision_ops.operator("decode_jpegs_cuda")
        self._aside: torch.cuda.Stream | None = None
        self.facts = facts | {"cuda": torch.version.cuda, "others": jpeg_fallback.OTHERS}

    def decode(self, data: list[bytes]) -> list[torch.Tensor]:
        """(3, H, W) uint8 each, in device memory. Raises Unusable."""
        import torch

        found = self._jpegs(
            [n for n, picture in enumerate(data) if jpeg_fallback.size(picture)], data
        )
        for n, picture in enumerate(data):
            if n not in found:
                pixels = torch.from_numpy(jpeg_fallback.reference(picture))
                found[n] = pixels.to(self._device).permute(2, 0, 1)
        return [found[n] for n in range(len(data))]

    def transform(self, pixels: list[torch.Tensor], out: torch.Tensor) -> None:
        """Into ``out`` (batch, *spec.shape)."""
        for picture, place in zip(pixels, out, strict=True):
            _torchvision_ops.transform(self._spec, picture, place)

    def _jpegs(self, which: list[int], data: list[bytes]) -> dict[int, torch.Tensor]:
        """What nvJPEG can decode of ``which``. One picture that it cannot fails its whole batch."""
        if not which:
            return {}
        try:
            pixels = self._ordered([_torchvision_ops.encoded(data[n]) for n in which])
        except RuntimeError as error:
            if len(which) == 1 or says_no_memory(str(error)):
                jpeg_fallback.blame(
                    error, lambda sound: self._ordered([_torchvision_ops.encoded(sound)])
                )
                return {}
            return {k: v for n in which for k, v in self._jpegs([n], data).items()}
        return {n: averaged(picture) for n, picture in zip(which, pixels, strict=True)}

    def _ordered(self, encoded: list[torch.Tensor]) -> list[torch.Tensor]:
        import torch

        if self._aside is None:
            self._aside = torch.cuda.Stream(self._device)
        own = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._aside):
            pixels = self._decode(encoded, _torchvision_ops.RGB, self._device)
        own.wait_stream(self._aside)
        for picture in pixels:
            picture.record_stream(own)
        return pixels  # type: ignore[no-any-return]


def averaged(pixels: torch.Tensor) -> torch.Tensor:
    """As `jpeg_fallback.averaged`, of (3, H, W) uint8 on any device."""
    import torch

    factor = image_file.averaging(pixels.shape[2], pixels.shape[1])
    if factor <= 1:
        return pixels
    mean = torch.nn.functional.avg_pool2d(
        pixels.float(), factor, ceil_mode=True, count_include_pad=False
    )
    return mean.round().to(torch.uint8)

"""NVIDIA DALI: two pipelines, one that decodes and one that transforms."""

from __future__ import annotations

from importlib.metadata import distributions
from math import ceil
from typing import TYPE_CHECKING, Any

from gpubench.errors import Unavailable
from gpubench.pipeline.decoders import jpeg_fallback
from gpubench.pipeline.decoders.base import Decoder
from gpubench.workload.data import image_file, preprocess

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from gpubench.pipeline.decoders.base import Facts
    from gpubench.workload.data.preprocess import Spec

    Sizes = list[tuple[int, int]]


class Dali(Decoder):
    """On a CUDA device, a batch at a time."""

    name = "dali"
    summary = "NVIDIA DALI; CUDA"
    preload: tuple[str, ...] = ()  # it may touch CUDA when it is imported
    on_device = True

    def probe(self) -> Facts:
        for found in distributions():
            if (found.name or "").startswith("nvidia-dali-cuda"):
                return {found.name: found.version}
        raise Unavailable("NVIDIA DALI is not installed", "pip install 'gpubench[dali]'")

    def unsupported(self, device: str) -> str | None:
        return None if device == "cuda" else "dali decodes on a CUDA device"

    def open(self, spec: Spec, index: int | None = None) -> DaliPreprocessor:
        return DaliPreprocessor(spec, index or 0, self.probe())


class DaliPreprocessor:
    """Pipelines are built for the largest batch seen so far. Work is ordered on torch's stream."""

    def __init__(self, spec: Spec, index: int, facts: Facts) -> None:
        jpeg_fallback.check(Dali.name, spec)
        self.facts = facts | {"others": jpeg_fallback.OTHERS}
        self._spec, self._index = spec, index
        self._room = 0
        self._decoding: Any = None
        self._transforming: Any = None

    def decode(self, data: list[bytes]) -> tuple[list[torch.Tensor], Sizes]:
        """(H, W, 3) uint8 each in device memory; sizes that the reference has. Raises Unusable."""
        import torch

        self._make_room(len(data))
        sizes = {n: size for n, picture in enumerate(data) if (size := jpeg_fallback.size(picture))}
        found = self._jpegs([data[n] for n in sizes])
        at = dict(zip(sizes, found, strict=True)) if found else {}
        kept: Sizes = []
        for n, picture in enumerate(data):
            if n in at:
                kept.append(_reduced(*sizes[n]))
                continue
            pixels = torch.from_numpy(jpeg_fallback.reference(picture))
            at[n] = pixels.to(torch.device("cuda", self._index))
            kept.append((pixels.shape[1], pixels.shape[0]))
        return [at[n] for n in range(len(data))], kept

    def transform(self, pixels: tuple[list[torch.Tensor], Sizes], out: torch.Tensor) -> None:
        import torch

        pictures_, sizes = pixels
        size, start = places(self._spec, sizes)
        (made,) = self._transforming.run(
            torch.cuda.current_stream(), pixels=pictures_, size=size, start=start
        )
        out.copy_(torch.from_dlpack(made.as_tensor()))

    def _make_room(self, count: int) -> None:
        if count > self._room:
            self._room = count
            self._decoding = decoding(count, self._index)
            self._transforming = transforming(self._spec, count, self._index)

    def _jpegs(self, data: list[bytes]) -> list[torch.Tensor]:
        """Decoded; [] when one of them is damaged: then the reference decides about all."""
        import numpy as np
        import torch

        if not data:
            return []
        encoded = [np.frombuffer(picture, np.uint8) for picture in data]
        try:
            (made,) = self._decoding.run(torch.cuda.current_stream(), encoded=encoded)
        except RuntimeError:  # a pipeline that has failed is of no more use
            self._decoding = decoding(self._room, self._index)
            return []
        return [torch.from_dlpack(made[n]) for n in range(len(made))]


def decoding(batch: int, index: int | None) -> Any:
    """Pipeline: encoded -> (H, W, 3) uint8. ``index`` None: on the host."""
    from nvidia.dali import fn, types

    pipeline = _pipeline(batch, index)
    with pipeline:
        pixels = fn.decoders.image(
            fn.external_source(name="encoded"),
            device="cpu" if index is None else "mixed",
            output_type=types.RGB,
            adjust_orientation=False,
        )
        pipeline.set_outputs(pixels)
    pipeline.build()
    return pipeline


def transforming(spec: Spec, batch: int, index: int | None) -> Any:
    """Pipeline: (H, W, 3) uint8, size after the resize, corner of the crop -> input (see `Spec`).

    ``index`` as for `decoding`.
    """
    from nvidia.dali import fn, types

    kinds = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
    kind, device = kinds[spec.interpolation], "cpu" if index is None else "gpu"
    mean, std = spec.normalisation
    pipeline = _pipeline(batch, index)
    with pipeline:
        pixels = fn.external_source(name="pixels", device=device, layout="HWC")
        size, start = fn.external_source(name="size"), fn.external_source(name="start")
        resized = fn.resize(pixels, size=size, interp_type=kind, antialias=True)
        cropped = fn.slice(
            resized,
            start,
            list(spec.size),
            axes=[0, 1],
            out_of_bounds_policy="pad",
            fill_values=0,
        )
        if spec.channels == "bgr":
            cropped = fn.color_space_conversion(
                cropped, image_type=types.RGB, output_type=types.BGR
            )
        normal = fn.crop_mirror_normalize(
            cropped,
            dtype=types.UINT8 if spec.dtype == "uint8" else types.FLOAT,
            output_layout=spec.layout[1:],
            mean=[255 * value for value in mean],
            std=[255 * value for value in std],
        )
        pipeline.set_outputs(normal)
    pipeline.build()
    return pipeline


def places(spec: Spec, sizes: Sequence[tuple[int, int]]) -> tuple[list[Any], list[Any]]:
    """For pictures of (width, height): sizes after the resize, corners of the crop; rows first."""
    import numpy as np

    placed = [preprocess.geometry(spec, width, height) for width, height in sizes]
    size = [np.array((high, wide), np.float32) for wide, high, _, _ in placed]
    return size, [np.array((top, left), np.int32) for _, _, left, top in placed]


def _reduced(width: int, height: int) -> tuple[int, int]:
    """The size to which the reference averages a picture down; here the resize does it alone."""
    factor = max(1, image_file.averaging(width, height))
    return ceil(width / factor), ceil(height / factor)


def _pipeline(batch: int, index: int | None) -> Any:
    from nvidia.dali import Pipeline

    return Pipeline(batch_size=batch, device_id=index, num_threads=1, prefetch_queue_depth=1)

"""NVIDIA DALI: one pipeline that decodes and transforms, a batch ahead of the network."""

from __future__ import annotations

from importlib.metadata import distributions
from math import ceil
from typing import TYPE_CHECKING, Any

from gpubench.errors import Unavailable, says_no_memory
from gpubench.pipeline.decoders import jpeg_fallback
from gpubench.pipeline.decoders.base import Again, Decoder
from gpubench.workload.data import image_file, preprocess

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from gpubench.pipeline.decoders.base import DevicePreprocessor, Facts
    from gpubench.workload.data.preprocess import Spec

HARDWARE_LOAD = 0.65
"""Share of a batch's JPEGs that go to the decoder in hardware, where the GPU has one; the others
are decoded by its cores meanwhile. DALI's own default, said so that records have it: the best
depends on its threads, and no other was measured."""


class Dali(Decoder):
    """On a CUDA device, a batch at a time."""

    name = "dali"
    summary = "NVIDIA DALI; CUDA"
    preload: tuple[str, ...] = ()  # it may touch CUDA when it is imported
    on_device = True
    ahead = 1

    def probe(self) -> Facts:
        for found in distributions():
            if (found.name or "").startswith("nvidia-dali-cuda"):
                return {found.name: found.version}
        raise Unavailable("NVIDIA DALI is not installed", "pip install 'gpubench[dali]'")

    def unsupported(self, device: str) -> str | None:
        return None if device == "cuda" else "dali decodes on a CUDA device"

    def open(self, spec: Spec, index: int | None = None) -> DevicePreprocessor:
        return DaliPreprocessor(spec, index or 0, self.probe())


class DaliPreprocessor:
    """One pipeline from files to inputs, built for the largest batch so far.

    `decode` has it begin, `transform` takes what has come of it: up to `Dali.ahead` batches are
    decoded while others are computed. Work is ordered on torch's stream.
    """

    def __init__(self, spec: Spec, index: int | None, facts: Facts) -> None:
        """``index`` None: on the host, for tests."""
        jpeg_fallback.check(Dali.name, spec)
        self._spec, self._index = spec, index
        self.facts = facts | {
            "others": jpeg_fallback.OTHERS,
            "hw_decoder_load": HARDWARE_LOAD,
            "threads": 1,
            "stages": "decode has all of it: it is one pipeline",
        }
        self._pipeline: Any = None
        self._damaged: set[bytes] = set()
        """What DALI has failed on: the reference decides about it."""
        self._begun = self._taken = 0
        """Batches that were begun, and whose outputs were taken."""
        self._room = 0
        self._made: dict[int, torch.Tensor | list[bytes]] = {}
        """By its number, of a batch that is to be transformed: its pictures, then what was made."""

    @property
    def threads(self) -> int:
        """On the host: of Huffman decoding, and of all that the GPU does not decode."""
        return int(self.facts["threads"])

    @threads.setter
    def threads(self, many: int) -> None:
        self.facts["threads"] = many

    def check(self, picture: bytes) -> tuple[bytes, tuple[int, int]]:
        """A file that DALI reads, and the size that the reference has. Raises Unusable."""
        size = None if picture in self._damaged else jpeg_fallback.size(picture)
        if size:
            return picture, _reduced(*size)
        pixels = jpeg_fallback.reference(picture)
        high, wide = pixels.shape[:2]
        return b"P6\n%d %d\n255\n" % (wide, high) + pixels.tobytes(), (wide, high)

    def decode(self, data: list[bytes]) -> int:
        """Begin with a batch; its number. Raises Unusable."""
        import numpy as np

        files, sizes = zip(*map(self.check, data), strict=True)
        times = 1
        if self._pipeline is None or len(data) > self._room:
            if pending := [n for n, made in self._made.items() if isinstance(made, list)]:
                self._wait(max(pending))  # they would be lost with it
            # the first run asks for as many batches as it works on at once
            times, self._room, self._taken = Dali.ahead + 1, len(data), self._begun
            self._pipeline = pipeline(self._spec, self._room, self._index, self.threads)
        size, start = places(self._spec, sizes)
        encoded = [np.frombuffer(file, np.uint8) for file in files]
        for _ in range(times):
            for name, value in (("encoded", encoded), ("size", size), ("start", start)):
                self._pipeline.feed_input(name, value)
        self._pipeline.schedule_run()
        self._begun += times
        self._made[self._begun - 1] = data
        return self._begun - 1

    def settle(self, number: int) -> None:
        """Return when these have been made; raises as `transform`."""
        self._wait(number)
        if self._index is not None:
            import torch

            torch.cuda.current_stream().synchronize()

    def transform(self, number: int, out: torch.Tensor) -> None:
        """Into ``out``. Raises Again where a picture is damaged, which the pipeline ends with."""
        out.copy_(self._wait(number))
        del self._made[number]

    def _wait(self, number: int) -> torch.Tensor:
        """What has been made of these, on torch's stream."""
        import torch

        stream = None if self._index is None else torch.cuda.current_stream()
        try:
            while self._taken <= number:
                (made,) = self._pipeline.outputs(stream)
                if self._taken in self._made:
                    self._made[self._taken] = torch.from_dlpack(made.as_tensor())
                self._taken += 1
        except RuntimeError as error:
            waiting = [made for made in self._made.values() if isinstance(made, list)]
            self._pipeline, self._made = None, {}
            suspects = {picture for data in waiting for picture in data} - self._damaged
            damaged = self._culprits([*filter(jpeg_fallback.size, suspects)], error)
            if not damaged:
                raise  # it is no picture's fault
            jpeg_fallback.blame(error, self._alone)
            self._damaged |= damaged
            raise Again(str(error)) from error
        found = self._made[number]
        assert not isinstance(found, list)  # noqa: S101
        return found

    def _culprits(self, pictures: list[bytes], error: RuntimeError) -> set[bytes]:
        """Those that DALI cannot make, by halves: it does not say which ended its pipeline."""
        if not pictures or says_no_memory(str(error)):
            return set()
        try:
            self._alone(*pictures)
        except RuntimeError as again:
            half = len(pictures) // 2
            parts = (pictures[:half], pictures[half:]) if half else ()
            alone = set() if half or says_no_memory(str(again)) else {*pictures}
            return alone.union(*(self._culprits(part, again) for part in parts))
        return set()

    def _alone(self, *pictures: bytes) -> None:
        """Have DALI make these in a pipeline of their own. Raises what that raises."""
        one = DaliPreprocessor(self._spec, self._index, {})
        one.decode([*pictures])
        one._pipeline.outputs()


def pipeline(spec: Spec, batch: int, index: int | None, threads: int) -> Any:
    """Files, sizes after the resize, corners of the crop -> inputs (see `Spec`).

    ``index`` None: on the host.
    """
    from nvidia.dali import Pipeline, fn, types

    kinds = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
    mean, std = spec.normalisation
    made = Pipeline(batch_size=batch, device_id=index, num_threads=threads,
                    prefetch_queue_depth=Dali.ahead + 1, exec_dynamic=True)  # fmt: skip
    on: dict[str, Any] = {"hw_decoder_load": HARDWARE_LOAD} if index is not None else {}
    with made:
        pixels = fn.decoders.image(
            fn.external_source(name="encoded"),
            device="cpu" if index is None else "mixed",
            output_type=types.RGB,
            adjust_orientation=False,
            **on,
        )
        size, start = fn.external_source(name="size"), fn.external_source(name="start")
        resized = fn.resize(
            pixels, size=size, interp_type=kinds[spec.interpolation], antialias=True
        )
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
        made.set_outputs(normal)
    made.build()
    return made


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

"""`torchvision.io` and transforms v2 on tensors, as torchvision itself recommends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench import plugins
from gpubench.pipeline.decoders import _torchvision_ops, jpeg_fallback
from gpubench.pipeline.decoders.base import Decoder

if TYPE_CHECKING:
    import torch

    from gpubench.pipeline.decoders.base import Facts
    from gpubench.workload.data.preprocess import Inputs, Spec


class Torchvision(Decoder):
    """On the host, on tensors of bytes."""

    name = "torchvision"
    summary = "torchvision.io and transforms v2 on tensors; host"
    preload: tuple[str, ...] = ("torch", "torchvision")

    def probe(self) -> Facts:
        return plugins.installed("torch", "torchvision")

    def open(self, spec: Spec, index: int | None = None) -> TorchvisionPreprocessor:  # noqa: ARG002
        return TorchvisionPreprocessor(spec, self.probe())


class TorchvisionPreprocessor:
    """Uses as many threads as torch is set to in the calling thread."""

    def __init__(self, spec: Spec, facts: Facts) -> None:
        jpeg_fallback.check(Torchvision.name, spec)
        self._spec = spec
        self._decode = _torchvision_ops.operator("decode_jpeg")
        self.facts = facts | {"others": jpeg_fallback.OTHERS}

    def decode(self, data: bytes) -> torch.Tensor:
        """(3, H, W) uint8. Raises Unusable."""
        import torch

        found = None
        if jpeg_fallback.size(data):
            try:
                planes = self._planes(data)
            except RuntimeError as error:  # damaged: the reference knows if some of it can be used
                jpeg_fallback.blame(error, self._planes)
            else:
                found = jpeg_fallback.averaged(planes.permute(1, 2, 0).numpy())
        if found is None:
            found = jpeg_fallback.reference(data)
        return torch.from_numpy(found).permute(2, 0, 1)

    def _planes(self, data: bytes) -> torch.Tensor:
        found: torch.Tensor = self._decode(
            _torchvision_ops.encoded(data), _torchvision_ops.RGB, False
        )
        return found

    def transform(self, pixels: torch.Tensor, out: Inputs) -> None:
        import torch

        _torchvision_ops.transform(self._spec, pixels, torch.from_numpy(out))

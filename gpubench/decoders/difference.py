"""How far a decoder's images are from the reference's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.workload.preprocess import Spec


def difference(
    spec: Spec, ours: NDArray[np.float32], reference: NDArray[np.float32]
) -> tuple[float, float]:
    """(largest, mean) absolute difference, in steps of 8-bit pixels before normalisation.

    Both are (N, 3, H, W). NaN where a value is not finite.
    """
    import numpy as np

    steps = np.asarray(spec.std, np.float32)[:, None, None] * np.float32(255)
    largest, total = 0.0, 0.0
    for one, other in zip(ours, reference, strict=True):  # pictures at a time: pools are large
        apart = np.abs(one - other) * steps
        largest = float(np.maximum(largest, apart.max()))
        total += float(apart.mean(dtype=np.float64))
    return largest, total / len(ours)

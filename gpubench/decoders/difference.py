"""How far a decoder's output is from the reference's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.workload.preprocess import Spec


def difference(
    spec: Spec, ours: NDArray[np.float32], reference: NDArray[np.float32]
) -> tuple[float, float]:
    """(largest, mean) absolute difference of inputs (..., 3, H, W), in steps of 8-bit pixels."""
    import numpy as np

    steps = 255 * np.array(spec.std, np.float32).reshape(3, 1, 1)
    apart = np.abs(ours - reference) * steps
    return float(apart.max()), float(apart.mean())

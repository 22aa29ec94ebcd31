"""Whether decoder and session give the reference's inputs and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench.errors import CellFailed
from gpubench.records.parity import PipelineCheck

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.suite.types import Policy
    from gpubench.workload.data.preprocess import Inputs, Spec
    from gpubench.workload.reference import Reference


def difference(spec: Spec, ours: Inputs, reference: Inputs) -> tuple[float, float]:
    """(largest, mean) absolute difference, in steps of 8-bit pixels before normalisation.

    Both are (N, *spec.shape). NaN where a value is not finite.
    """
    import numpy as np

    steps = spec.per_channel(spec.normalisation[1]) * np.float32(255)
    largest, total = 0.0, 0.0
    for one, other in zip(ours, reference, strict=True):  # pictures at a time: pools are large
        apart = np.abs(one - other.astype(np.float32)) * steps
        largest = float(np.maximum(largest, apart.max()))
        total += float(apart.mean(dtype=np.float64))
    return largest, total / len(ours)


def judge(
    decoder: str,
    reference: Reference,
    asked: NDArray[np.intp],
    logits: NDArray[np.float32],
    differences: list[tuple[float, float]],
    policy: Policy,
) -> PipelineCheck:
    """``logits`` (n, classes) and input ``differences`` of the pool's images ``asked``, (n,)."""
    import numpy as np

    from gpubench.workload import parity

    if not np.isfinite(differences).all():
        raise CellFailed("parity", f"decoder {decoder} gives values that are not finite")
    labels, least = reference.labels[asked], policy.min_pipeline_agreement
    known = labels >= 0
    rank = parity.ranks(logits, labels)
    top1 = logits.argmax(axis=1)
    agreement = float(np.mean(top1 == reference.logits[asked].argmax(axis=1)))
    return PipelineCheck(
        decoder=decoder,
        images=len(asked),
        max_difference=max(most for most, _ in differences),
        mean_difference=float(np.mean([mean for _, mean in differences])),
        top1_agreement=agreement,
        min_top1_agreement=least,
        passed=agreement >= least and bool(np.isfinite(logits).all()),
        labelled=int(known.sum()),
        correct=int((top1 == labels)[known].sum()),
        correct5=int((rank < parity.TOP)[known].sum()) if logits.shape[1] > parity.TOP else 0,
    )

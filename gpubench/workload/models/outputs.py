"""What the numbers are that a network answers with, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["logits", "log-probabilities", "probabilities"]
FLOOR = 1e-4
"""Probabilities below it count as it when answers are compared; fp16 holds less with few bits."""
_SUM = 1e-3
"""How far the sum of a softmax's shares may be from 1."""


def scores(answers: NDArray[np.floating], kind: Kind) -> NDArray[np.floating]:
    """Probabilities of the classes, (N, classes), of answers of that shape; finite ones."""
    import numpy as np

    if kind == "probabilities":
        return answers
    powers = np.exp(answers - answers.max(axis=1, keepdims=True))
    shares: NDArray[np.floating] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def comparable(answers: NDArray[np.floating], kind: Kind) -> NDArray[np.float64]:
    """Answers (N, classes) as they are compared, but for an offset that all classes share.

    Logits as they are; of probabilities the logarithms, which are the logits that a softmax had.
    So one tolerance serves both: shares near 0 and 1 say little of how far an answer is off.
    """
    import numpy as np

    wide = answers.astype(np.float64)
    return np.log(np.maximum(wide, FLOOR)) if kind == "probabilities" else wide


def of_answers(answers: NDArray[np.floating], said: Kind) -> Kind:
    """Of finite answers (N, classes): what the graph has ``said``, or shares that add up to 1."""
    sums = answers.sum(axis=1, dtype=float)
    shares = bool((answers >= 0).all() and (abs(sums - 1) < _SUM).all())
    return "probabilities" if shares else said

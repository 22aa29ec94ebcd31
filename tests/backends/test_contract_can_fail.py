"""The contract is worth something only if it catches broken sessions."""

from __future__ import annotations

from types import SimpleNamespace as Backend
from typing import Any

import numpy as np
import pytest

from tests.backends import contract, tiny


class Honest:
    """Computes with torch, as every session should."""

    facts: dict[str, Any] = {"really": "torch"}  # noqa: RUF012

    def __init__(self) -> None:
        self.out = np.zeros((4, tiny.CLASSES), np.float32)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def copy_in(self, images: Any) -> None:
        self.images = images.copy()

    def run(self) -> None:
        self.out[...] = tiny.reference(self.images)

    def sync(self) -> None:
        pass

    def copy_out(self) -> Any:
        return self.out.copy()


class Aliased(Honest):
    def copy_out(self) -> Any:
        return self.out


class Stale(Honest):
    ran = False

    def run(self) -> None:
        if not self.ran:
            super().run()
        self.ran = True


class OneSlot(Honest):
    def run(self) -> None:
        self.out[:-1] = tiny.reference(self.images)[:-1]


class Keeps(Honest):
    def copy_in(self, images: Any) -> None:
        self.images = images

    def run(self) -> None:
        pass

    def copy_out(self) -> Any:
        return tiny.reference(self.images)


class Unwritten(Honest):
    def copy_out(self) -> Any:
        return np.full_like(self.out, np.nan)


class Double(Honest):
    def copy_out(self) -> Any:
        return self.out.astype(np.float64)


class Opaque(Honest):
    facts = {"engine": object()}  # noqa: RUF012


@pytest.mark.parametrize("broken", [Aliased, Stale, OneSlot, Keeps, Unwritten, Double, Opaque])
def test_a_broken_session_is_caught(broken: type[Honest]) -> None:
    with pytest.raises((AssertionError, TypeError)):
        contract.check(Backend(computes=True), broken(), 4, "fp32")  # type: ignore[arg-type]


def test_an_honest_session_passes() -> None:
    contract.check(Backend(computes=True), Honest(), 4, "fp32")  # type: ignore[arg-type]

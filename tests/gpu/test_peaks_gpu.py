"""Peaks of a CUDA device: an order that every one since 2020 keeps."""

from __future__ import annotations

import pytest

from gpubench.measure import roofline_peaks
from tests.backends import tiny

pytestmark = pytest.mark.skipif(bool(tiny.no_cuda()), reason=tiny.no_cuda() or "-")


def test_smaller_types_are_faster() -> None:
    import torch

    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("it has neither TF32 nor bf16")
    found = roofline_peaks.cuda(("fp32", "tf32", "fp16", "bf16", "int8"), memory=True)
    rates = found.flops_per_s
    assert 1e11 < rates["fp32"] < rates["tf32"] < rates["fp16"] < 1e17
    assert rates["fp32"] < rates["int8"] < 1e17, "Blackwell Ultra has few units for it"
    assert rates["bf16"] == pytest.approx(rates["fp16"], rel=0.5)
    assert 1e10 < found.bytes_per_s < 1e14
    assert 1e6 < found.cache_bytes < 1e10


def test_what_was_not_asked_for_is_not_measured() -> None:
    found = roofline_peaks.cuda((), memory=False)
    assert (found.flops_per_s, found.bytes_per_s) == ({}, 0.0)

"""Live modules: they travel by value, are what they were, and say what cannot travel."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.machine.software import environ_of_python
from gpubench.run.agent import worker
from gpubench.suite import types
from gpubench.suite.types import Preprocess, Workload, default_weights, model_path, source_of
from gpubench.workload.models import registry
from gpubench.workload.models.sources import pickled

CLASSES = 5
LOAD = """
import sys, torch
found = torch.load(sys.argv[1], map_location="cpu", weights_only=False)
assert not any(name.startswith("tests") for name in sys.modules)
print(type(found).__name__, found(torch.zeros(1, 3, 16, 16)).shape[1], found.training)
"""


class Own(nn.Module):
    """Of a module that no worker can import."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(images).flatten(1))
        return out


def state(module: nn.Module) -> tuple[Any, ...]:
    kept = {k: v.clone() for k, v in module.state_dict().items()}
    parts = [(name, part.training, sorted(vars(part))) for name, part in module.named_modules()]
    devices = [(p.device, p.dtype, p.requires_grad) for p in module.parameters()]
    return parts, devices, {k: v.tolist() for k, v in kept.items()}


def test_a_module_travels_by_value_and_stays_as_it_is(tmp_path: Path) -> None:
    module = Own().train()
    module.body[0].eval()
    before = state(module)
    file = pickled.dump(module, tmp_path)
    assert state(module) == before
    assert pickled.dump(copy.deepcopy(module), tmp_path) == file, "named by its contents"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.name.startswith("Own-")
    assert (source_of(str(file)), model_path(str(file))) == ("cloudpickle", str(file))
    assert default_weights(str(file)) == "file"
    told = subprocess.run(
        [sys.executable, "-c", LOAD, str(file)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, **environ_of_python(), "PYTHONPATH": ""}, check=True,
    )  # fmt: skip
    assert told.stdout.split() == ["Own", str(CLASSES), "True"]


def _parametrised() -> Own:
    module = Own()
    parametrizations.weight_norm(module.head)
    parametrizations.spectral_norm(module.body[0])
    return module


@pytest.mark.parametrize(
    "make",
    [lambda: Own().train(), lambda: Own, lambda: lambda: Own().half(), _parametrised],
)
def test_it_is_a_model_like_any_other(
    tmp_path: Path, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    live, cache = make(), Cache(tmp_path / "cache")
    file = pickled.dump(live, tmp_path)
    work = Workload(model=str(file), weights="file", preprocess=Preprocess(size=(16,)))
    model = registry.resolve(work, cache)
    assert (model.num_classes, model.spec.size) == (CLASSES, (16, 16))
    images = np.random.default_rng(0).standard_normal((3, 3, 16, 16), np.float32)
    answers = model.answers(images)
    if isinstance(live, nn.Module):
        with torch.inference_mode():
            expected = copy.deepcopy(live).eval()(torch.from_numpy(images)).numpy()
        assert np.allclose(answers, expected, atol=1e-6)
    other = tmp_path / "elsewhere"
    other.mkdir()
    moved = registry.resolve(
        Workload(model=str(file.rename(other / file.name)), weights="file",
                 preprocess=Preprocess(size=(16,))), cache)  # fmt: skip
    made = len(list((cache.root / "weights").iterdir()))
    assert moved.identity == model.identity
    assert len(list((cache.root / "weights").iterdir())) == made, "nothing is made again"


def test_what_is_around_a_module_is_left_out(tmp_path: Path) -> None:
    module = Own()
    assert pickled.name_of(functools.partial(functools.partial(Own), a=1)) == "Own"
    for around in (nn.DataParallel(module), torch.compile(module)):
        assert pickled.name_of(around) == "Own"
        assert pickled.dump(around, tmp_path).name.startswith("Own-")


class Packed(nn.Identity):
    def get_extra_state(self) -> int:
        """As packed weights have."""
        return 3


def test_what_has_no_values_or_is_quantised_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Own: body\.0\.weight has no values"):
        pickled.dump(Own().to("meta"), tmp_path)
    module = Own()
    module.body.append(Packed())
    file = pickled.dump(module, tmp_path)
    work = Workload(model=str(file), weights="file", preprocess=Preprocess(size=(16,)))
    with pytest.raises(InputError, match="is no tensor, as in networks that torch has quantised"):
        registry.resolve(work, Cache(tmp_path / "cache")).state()


def _hooked(module: Own) -> Own:
    lock = threading.Lock()
    module.body[1].register_forward_hook(lambda *_: lock.locked() and None)
    return module


def _with_lock(module: Own) -> Own:
    module.body.lock = threading.Lock()
    return module


def _closure(module: Own) -> Callable[[], Own]:
    lock = threading.Lock()

    def build() -> Own:
        with lock:
            return module

    return build


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_with_lock, "Sequential body: attribute lock, a lock"),
        (_hooked, "BatchNorm2d body.1: attribute _forward_hooks, _hooked.<locals>.<lambda>"),
        (_closure, "its variable lock, a lock"),
    ],
)
def test_what_cannot_travel_is_named(
    tmp_path: Path, spoil: Callable[[Own], Any], words: str
) -> None:
    with pytest.raises(InputError, match="cannot travel") as caught:
        pickled.dump(spoil(Own()), tmp_path)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_whatever_is_told_of_it_calls_it_by_its_class(tmp_path: Path) -> None:
    """Not by the file in the cache."""
    folder = tmp_path / "a b"
    folder.mkdir()
    work = Workload(model=str(pickled.dump(lambda: 3, folder)), weights="file")
    with pytest.raises(InputError) as caught:
        registry.resolve(work, Cache(tmp_path / "it's")).state()
    told = worker.failure(caught.value).reason
    assert told.startswith("model lambda (live): <lambda> returns int")
    for path in ("'/a b/Net-0123456789ab.cloudpickle'", "/a/Net-0123456789ab.cloudpickle"):
        assert types.told(f"it's {path}: no") == "it's Net (live): no"


def test_what_no_worker_can_load_is_an_error_of_input(tmp_path: Path) -> None:
    file = tmp_path / "x.cloudpickle"
    file.write_bytes(b"no pickle")
    with pytest.raises(InputError, match="cannot be loaded by a fresh process"):
        _ = registry.resolve(Workload(model=str(file), weights="file"), Cache(tmp_path / "c")).spec
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(nn.ReLU(), torch.zeros(1))
    program = torch.export.export(nn.ReLU(), (torch.zeros(1),))
    for given, words in ((script, "TorchScript"), (program, r"torch.export.save\(it")):
        with pytest.raises(InputError, match=words):
            pickled.dump(given, tmp_path)

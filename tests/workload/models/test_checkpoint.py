"""State dicts in the files that training scripts leave, and files that are none."""

from __future__ import annotations

import argparse
import gzip
import io
import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.suite.types import Workload
from gpubench.workload.models import builder, checkpoint, digits_net
from gpubench.workload.models.registry import resolve

State = OrderedDict[str, Any]


def plain(shift: float = 0) -> State:
    """Of `digits` with 3 classes; ``shift`` is added to all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = digits_net.build(3).state_dict()
    return OrderedDict((k, v + shift if v.is_floating_point() else v) for k, v in state.items())


def below(prefix: str, state: State | None = None) -> State:
    return OrderedDict((prefix + key, value) for key, value in (state or plain()).items())


class Config(dict[str, Any]):
    """As configurations are: a dict with attributes of its own."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.frozen = True


class Meters(deque[float]):
    pass


def old(value: Any, file: Path) -> None:
    torch.save(value, file, _use_new_zipfile_serialization=False)


BESIDE = {
    "args": argparse.Namespace(lr=0.1),
    "best": np.float64(0.5),
    "curve": np.array(["a", None], object),
    "history": defaultdict(list, {"loss": [1.0]}),
    "config": Config(model=Config(depth=1)),
    "meters": Meters([1.0], 3),
    "path": Path("/x"),
    "function": os.path.join,
    "optimizer": {"state": {0: {"momentum": torch.ones(3)}}},
}


def take(file: Path, key: str = "", **arguments: bool) -> tuple[State, int, str]:
    """(state dict, classes, what is told) of a file for `digits`."""
    return builder._chosen("digits", str(file), key, checkpoint.read(file), dict(arguments))


@pytest.mark.parametrize("save", [torch.save, old])
@pytest.mark.parametrize(
    "value",
    [
        plain(),
        {"model": plain(), **BESIDE},
        {"state_dict": below("module."), "epoch": 3},
        {"model_state_dict": below("_orig_mod.")},
        {"net": below("module._orig_mod.")},
        {"a": {"b": {"network": below("model.net.")}}},
        {"state_dict": below("model."), "hyper_parameters": Config(x=1)},
        OrderedDict(n_averaged=torch.tensor(5), **below("module.")),
        OrderedDict((k.replace("0.", "0._orig_mod.", 1), v) for k, v in plain().items()),
        OrderedDict((k, torch.nn.Parameter(v, v.is_floating_point())) for k, v in plain().items()),
    ],
)
def test_a_state_dict_is_found_wherever_it_lies(
    tmp_path: Path, value: Any, save: Callable[..., None]
) -> None:
    save(value, tmp_path / "w.pth")
    state, classes, taken = take(tmp_path / "w.pth")
    assert (classes, taken) == (3, "")
    assert all(torch.equal(state[key], value) for key, value in plain().items())


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ({"model": plain(), "model_ema": below("module.", plain(1))}, ("model", "model_ema")),
        ({"ema": {"module": plain(1)}, "net": plain()}, ("net", "ema.module")),
        ({"state_dict": plain(), "state_dict_ema": plain(1)}, ("state_dict", "state_dict_ema")),
        ({**below("teacher.", plain(1)), **below("student.")}, ("student", "teacher")),
    ],
)
def test_of_several_one_is_taken_aloud_and_a_key_chooses(
    tmp_path: Path, value: Any, keys: tuple[str, str]
) -> None:
    file = tmp_path / "w.pth"
    torch.save(value, file)

    def first(key: str = "") -> tuple[float, str]:
        state, _, taken = take(file, key)
        name = next(iter(plain()))
        return float((state[name] - plain()[name]).mean().round()), taken

    own, average = keys
    shift, taken = first()
    assert shift == 0, "an average is not taken unasked"
    assert taken == f"'{own}' is taken, and '{average}' not: weights = 'w.pth#{average}' takes that"
    assert first(own) == (0, "")
    assert first(average.partition(".")[0]) == (1, "")
    with pytest.raises(InputError, match="that file has no 'emma'; dicts of tensors: "):
        first("emma")


def test_what_was_taken_is_the_models_to_tell(cache: Cache, tmp_path: Path) -> None:
    file = tmp_path / "a#b.pth"
    torch.save({"model": {**below("net."), "loss.weight": torch.ones(2)}, "ema": plain(1)}, file)
    model, other = (
        resolve(Workload(model="digits", weights=f"{file}{key}"), cache) for key in ("", "#ema")
    )
    assert model.taken == (
        "'model' is taken, and 'ema' not: weights = 'a#b.pth#ema' takes that; "
        "left out, beside the network's: 1 tensor ('loss.weight')"
    )
    assert other.taken == ""
    assert model.identity != other.identity
    assert model.num_classes == 3


def test_auxiliary_heads_are_left_out() -> None:
    state: State = OrderedDict({"fc.weight": torch.ones(1), "AuxLogits.fc.weight": torch.ones(1)})
    builder._tidy(state, builder.source_of("inception_v3").dropped)
    assert list(state) == ["fc.weight"]


def test_keys_of_old_dense_nets_are_todays() -> None:
    state: State = OrderedDict({"features.denseblock1.denselayer2.norm.1.weight": torch.ones(1)})
    builder._tidy(state, ())
    assert list(state) == ["features.denseblock1.denselayer2.norm1.weight"]


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def script() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"net/{name}", b"")
    return file.getvalue()


def arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    return file.getvalue()


class Evil:
    def __init__(self, function: Any, *values: Any) -> None:
        self.call = function, values

    def __reduce__(self) -> Any:
        return self.call


OLD = {"_use_new_zipfile_serialization": False}
SHAPES = plain() | {"extra.weight": torch.ones(1)}
MISSING = next(iter(SHAPES))
SHAPES[list(SHAPES)[1]] = torch.ones(7)
del SHAPES[MISSING]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer.*git lfs pull"),
        (b"\n <!DOCTYPE html><html>", "a page of HTML"),
        (b"\x08\x09\x12\x07pytorch", "an ONNX file, .* give it as the model"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (gzip.compress(b"x", mtime=0), "compressed with gzip: unpack it"),
        (b"\x02\0\0\0\0\0\0\0" + b'{"a', "no whole safetensors file"),
        (b"hello\x1b[31m", r"no file of torch.save's: it begins with b'hello\\x1b\[31m'"),
        (pickle.dumps({"w": np.ones(2)}), "a pickle that torch.save has not written"),
        (saved(plain())[:-1000], "a zip archive, damaged or cut off"),
        (saved(plain(), **OLD)[:-1000], "damaged or cut off; copy it again"),
        (saved(plain(), **OLD)[:999], "damaged or cut off; copy it again"),
        (saved(plain(), pickle_protocol=4), "saved with pickle_protocol=4"),
        (script(), r"a TorchScript archive; torch.save\(torch.jit.load\(path\)"),
        (arrays(), r"a zip archive of something else \('a.npy'"),
        (saved([1, 2]), "holds list, no dict of tensors; save the network's"),
        (saved({"epoch": 3, "a": {}}), "holds a dict of {'epoch': int, 'a': dict}, no dict of"),
        (saved(torch.nn.Linear(2, 2)), r"a whole module \(torch.nn.modules.linear.Linear\)"),
        (saved({"model": torch.nn.Linear(2, 2)}), "{'model': a whole module"),
        (saved(Evil(os.system, "touch pwned")), "names posix.system, .* nothing of it was run"),
        (
            saved(SHAPES),
            f"are not digits's: missing: 1 of .* tensors .'{MISSING}'.; unknown to it: 1 "
            r".'extra.weight'.; of another shape: 1 .'.*' is \(7,\), not \(.*workload.arguments",
        ),
    ],
)  # fmt: skip
def test_what_is_no_state_dict_is_told_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pth").write_bytes(data)
    with pytest.raises(InputError, match=f"weights 'w.pth'.*{reason}") as caught:
        take(Path("w.pth"))
    assert "\x1b" not in str(caught.value)
    assert [p.name for p in Path().iterdir()] == ["w.pth"]


def test_nothing_beside_the_tensors_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": plain(), "x": Evil(eval, "open('pwned', 'w')")}, "w.pth")
    assert take(Path("w.pth"))[1] == 3
    assert [p.name for p in Path().iterdir()] == ["w.pth"]

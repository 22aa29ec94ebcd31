"""ONNX files, state dicts and caches that somebody else had a hand in."""

from __future__ import annotations

import os
import pickle
import stat
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpubench.backends import tensorrt
from gpubench.cache import Cache
from gpubench.errors import CacheError, CellFailed, InputError
from gpubench.suite.types import Workload
from gpubench.workload.models import builder, registry
from gpubench.workload.models.base import Model
from gpubench.workload.models.onnx_external_data import external, tensors

Place = Callable[[onnx.ModelProto, TensorProto], None]


def tensor(location: str | None, *, dims: tuple[int, ...] = (2, 2), **more: Any) -> TensorProto:
    made = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    made.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": location} | more).items():
        if value is not None:
            made.external_data.add(key=key, value=str(value))
    return made


def model() -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "m"], ["out"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ("n", 5))],
        [numpy_helper.from_array(weight, "m")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def in_constant(made: onnx.ModelProto, t: TensorProto) -> None:
    made.graph.node.append(helper.make_node("Constant", [], ["c"], value=t))


def in_subgraph(made: onnx.ModelProto, t: TensorProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [t])
    deeper = helper.make_graph(
        [helper.make_node("If", ["x"], ["y"], then_branch=inner)], "g", [], []
    )
    made.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=deeper))


def in_list(made: onnx.ModelProto, t: TensorProto) -> None:
    node = helper.make_node("Odd", [], ["c"])
    node.attribute.append(helper.make_attribute("values", [t]))
    made.graph.node.append(node)


def in_sparse(made: onnx.ModelProto, t: TensorProto) -> None:
    made.graph.sparse_initializer.add().values.CopyFrom(t)


def in_function(made: onnx.ModelProto, t: TensorProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=t)
    made.functions.append(
        helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 18)])
    )


def in_training(made: onnx.ModelProto, t: TensorProto) -> None:
    made.training_info.add().initialization.initializer.append(t)


def in_initializer(made: onnx.ModelProto, t: TensorProto) -> None:
    made.graph.initializer.append(t)


PLACES = [in_initializer, in_constant, in_subgraph, in_list, in_sparse, in_function, in_training]


def resolved(path: Path, root: Path) -> Model:
    return registry.resolve(Workload(model=str(path), weights="file"), Cache(root / "cache"))


@pytest.mark.parametrize("place", PLACES)
def test_weights_elsewhere_are_found_wherever_they_hide(place: Place, tmp_path: Path) -> None:
    made = model()
    place(made, tensor("/etc/passwd"))
    path = tmp_path / "evil.onnx"
    path.write_bytes(made.SerializeToString())
    assert any(t.data_location == t.EXTERNAL for t in tensors(made))
    evil = resolved(path, tmp_path)
    for use in (
        lambda: evil.identity,
        lambda: evil.onnx("fp32"),
        lambda: evil.answers(np.zeros(1)),
    ):
        with pytest.raises(
            InputError, match=r"evil\.onnx.*'/etc/passwd', which is not a file beside"
        ):
            use()
    assert not list((tmp_path / "cache").rglob("*.onnx"))


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret", "a/../../secret", "sub/../../secret", "out", "round", "", ".",
     "pipe", "gone", "model.onnx", "./model.onnx", "manifest.json", "x\0y", "folder", None],
)  # fmt: skip
def test_only_files_beside_the_network(location: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"s" * 64)
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "round").symlink_to(folder / "round")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "a").mkdir()
    for name in ("model.onnx", "manifest.json"):
        (folder / name).write_bytes(b"s" * 64)
    os.mkfifo(folder / "pipe")
    made = model()
    in_initializer(made, tensor(location))
    with pytest.raises(ValueError, match="which is not a file beside it"):
        external(made, folder)
    if location == "folder":
        in_initializer(made, tensor("folder/secret"))
        del made.graph.initializer[-2]
        with pytest.raises(ValueError, match="which is not a file beside it"):
            external(made, folder)


@pytest.mark.parametrize("key", ["location", "offset", "length"])
def test_names_and_numbers_that_are_no_text(key: str, tmp_path: Path) -> None:
    """Found by coverage-guided fuzzing: protobuf gives such strings as bytes."""
    made = model()
    in_initializer(made, tensor(**({"location": "w.bin"} | {key: "@@@@"})))
    body = made.SerializeToString().replace(b"@@@@", b"\xff\xfe\xfd\xfc")
    (tmp_path / "odd.onnx").write_bytes(body)
    with pytest.raises(InputError, match=r"no UTF-8 text|not an ONNX file"):
        resolved(tmp_path / "odd.onnx", tmp_path).identity  # noqa: B018


@pytest.mark.parametrize(
    ("dims", "more"),
    [
        ((2, 2), {"offset": 60}),
        ((2, 2), {"length": 2**62}),
        ((2, 2), {"offset": 2**63, "length": 16}),
        ((2, 2), {"offset": "-1"}),
        ((2, 2), {"length": "16 "}),
        ((2, 2), {"length": "0x10"}),
        ((2, 2), {"length": "9" * 400}),
        ((2, 2), {"length": 4}),
        ((2**40, 2**40), {}),
        ((2**62, 4), {"length": 64}),
        ((-1, 2), {}),
        ((17,), {"offset": 0}),
    ],
)
def test_weights_that_reach_beyond_their_file(
    dims: tuple[int, ...], more: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(b"w" * 64)
    made = model()
    in_initializer(made, tensor("w.bin", dims=dims, **more))
    with pytest.raises(
        ValueError, match=r"needs .* of a file of 64|is no number of bytes|of shape"
    ):
        external(made, tmp_path)


@pytest.mark.parametrize(
    ("shape", "classes", "kind"),
    [
        (("n", 3, 2**40, 2**40), 5, TensorProto.FLOAT),
        ((2**40, 3, 8, 8), 5, TensorProto.FLOAT),
        ((-4, 3, 8, 8), 5, TensorProto.FLOAT),
        (("n", 3, -8, -8), 5, TensorProto.FLOAT),
        (("n", 3, 8, 8), 5, 122),
    ],
)
def test_shapes_and_types_that_no_classifier_has(
    shape: tuple[Any, ...], classes: int, kind: int, tmp_path: Path
) -> None:
    """The type without a name was found by coverage-guided fuzzing."""
    made = model()
    made.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", kind, shape))
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", 1, (shape[0], classes)))
    (tmp_path / "odd.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(InputError, match=r"odd\.onnx' input"):
        resolved(tmp_path / "odd.onnx", tmp_path).onnx("fp32")


def test_what_a_graph_says_of_its_output_is_not_believed(tmp_path: Path) -> None:
    made = model()
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", 1, ("n", 2**40)))
    (tmp_path / "odd.onnx").write_bytes(made.SerializeToString())
    assert resolved(tmp_path / "odd.onnx", tmp_path).num_classes == 5


def test_weights_beside_it_are_copied(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"w" * 64)
    (tmp_path / "link.bin").symlink_to(tmp_path / "sub" / "w.bin")
    made = model()
    in_constant(made, tensor("sub/w.bin", offset=48, length=16))
    in_initializer(made, tensor("link.bin", dims=(16,)))
    (tmp_path / "good.onnx").write_bytes(made.SerializeToString())
    copy = resolved(tmp_path / "good.onnx", tmp_path).onnx("fp32")
    assert (copy.parent / "sub" / "w.bin").read_bytes() == b"w" * 64
    assert (copy.parent / "link.bin").is_file()
    assert not (copy.parent / "link.bin").is_symlink()


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """The copy is made of what was looked at; the weights beside it must be those."""
    path = tmp_path / "x.onnx"
    path.write_bytes(model().SerializeToString())
    network = resolved(path, tmp_path)
    assert network.precision == "fp32"  # read
    evil = model()
    in_initializer(evil, tensor("../../../../../../etc/passwd"))
    path.write_bytes(evil.SerializeToString())
    copy = onnx.load(network.onnx("fp32"), load_external_data=False)
    assert not any(t.data_location == t.EXTERNAL for t in tensors(copy))


def test_a_link_of_a_hubs_cache_leads_to_its_blobs_and_nowhere_else(tmp_path: Path) -> None:
    """REPOSITORY/snapshots/REVISION/onnx/w.bin -> REPOSITORY/blobs/DIGEST."""
    blobs, deep = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "r" / "onnx"
    deep.mkdir(parents=True)
    (blobs / "sub").mkdir(parents=True)
    for place in (blobs / "1", blobs / "sub" / "2", tmp_path / "hub" / "3", tmp_path / "4"):
        place.write_bytes(b"w" * 64)
    (blobs / "5").symlink_to(tmp_path / "4")
    made = model()
    in_initializer(made, tensor("w.bin"))
    for target, right in ((blobs / "1", True), (blobs / "sub" / "2", False), (blobs / "5", False),
                          (tmp_path / "hub" / "3", False), (tmp_path / "4", False)):  # fmt: skip
        (deep / "w.bin").unlink(missing_ok=True)
        (deep / "w.bin").symlink_to(os.path.relpath(target, deep))
        if right:
            assert external(made, deep) == ["w.bin"]
        else:
            with pytest.raises(ValueError, match="which is not a file beside it"):
                external(made, deep)
    (deep / "w.bin").unlink()
    (deep / "w.bin").symlink_to(blobs / "1")
    (tmp_path / "hub" / "snapshots").rename(tmp_path / "hub" / "other")
    with pytest.raises(ValueError, match="which is not a file beside it"):
        external(made, tmp_path / "hub" / "other" / "r" / "onnx")


def test_a_file_beyond_protobuf_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "vast.onnx").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="no ONNX file is larger"):
        resolved(tmp_path / "vast.onnx", tmp_path).identity  # noqa: B018


# ------------------------------------------------------------------------------ state dicts


class Code:
    """What an attacker pickles."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HOSTILE_MARK"],)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_runs_no_code(
    wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("HOSTILE_MARK", str(tmp_path / "owned"))
    path = tmp_path / "evil.pt"
    if wrapped:
        torch.save({"state_dict": {"fc.weight": Code()}}, path)
    else:
        path.write_bytes(pickle.dumps({"fc.weight": Code()}))
    with pytest.raises(InputError, match=r"evil\.pt"):
        builder.make(Workload(weights=str(path)), tmp_path)
    assert not (tmp_path / "owned").exists()


def odd_states() -> dict[str, Any]:
    import torch

    huge = torch.zeros(1, dtype=torch.float16).expand(10**7, 10**7)
    classes = torch.zeros(1).expand(10**9, 512)
    odd = OrderedDict({"fc.weight": torch.zeros(3, 512)})
    odd._metadata = 5  # type: ignore[attr-defined]
    return {
        "keys that are numbers": {1: torch.zeros(1)},
        "a list": [torch.zeros(1)],
        "nothing": {},
        "a vast tensor in a small file": {"fc.weight": huge},
        "a billion classes": {"fc.weight": classes, "fc.bias": torch.zeros(1).expand(10**9)},
        "a classifier of rank 0": {"fc.weight": torch.zeros(())},
        "no classes": {"fc.weight": torch.zeros(0, 512)},
        "a sparse tensor": {"fc.weight": torch.zeros(3, 512).to_sparse()},
        "metadata that is none": odd,
    }


@pytest.mark.parametrize("name", list(odd_states()))
def test_state_dicts_that_are_none(name: str, tmp_path: Path) -> None:
    import torch

    torch.save(odd_states()[name], tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"odd\.pt"):
        builder.make(Workload(weights=str(tmp_path / "odd.pt")), tmp_path)


def test_damaged_state_dicts(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "cut.pt"
    torch.save({"fc.weight": torch.zeros(3, 512)}, path)
    body = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(body[: rng.integers(1, len(body))] if rng.random() < 0.3 else body)
        for _ in range(rng.integers(1, 6)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"cut\.pt"):
            builder.make(Workload(weights=str(path)), tmp_path)


# ------------------------------------------------------------------------------ the cache


def fill(at: Path) -> None:
    (at / "engine.plan").write_bytes(b"ours")


def never(at: Path) -> None:
    pytest.fail("made again")


@pytest.mark.parametrize("which", ["root", "kind", "entry"])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_folders_that_others_may_write_to_are_refused(
    which: str, mode: int, tmp_path: Path
) -> None:
    root = tmp_path / "cache"
    entry = Cache(root).get_or_make("engine", {}, fill)
    {"root": root, "kind": entry.parent, "entry": entry}[which].chmod(mode)
    with pytest.raises(CacheError, match="writable by its owner only"):
        Cache(root).get_or_make("engine", {}, never)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["root", "kind", "entry"])
def test_folders_of_others_are_refused(which: str, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    entry = Cache(root).get_or_make("engine", {}, fill)
    os.chown({"root": root, "kind": entry.parent, "entry": entry}[which], 12345, 12345)
    with pytest.raises(CacheError, match=r"uid 12345.* must belong to uid 0"):
        Cache(root).get_or_make("engine", {}, never)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_link_to_the_cache_must_be_ours(tmp_path: Path) -> None:
    Cache(tmp_path / "real")
    (tmp_path / "mine").symlink_to(tmp_path / "real")
    Cache(tmp_path / "mine")
    os.chown(tmp_path / "mine", 12345, 12345, follow_symlinks=False)
    with pytest.raises(CacheError, match="uid 12345"):
        Cache(tmp_path / "mine")


def test_an_entry_that_is_a_link_is_made_anew(tmp_path: Path) -> None:
    """Somebody's own directory, with a manifest that fits it."""
    cache = Cache(tmp_path / "cache")
    entry = cache.get_or_make("engine", {}, fill)
    entry.rename(tmp_path / "theirs")
    entry.symlink_to(tmp_path / "theirs")
    assert Cache(tmp_path / "cache").get_or_make("engine", {}, fill) == entry
    assert not entry.is_symlink()
    assert (tmp_path / "theirs" / "engine.plan").exists()


@pytest.mark.parametrize("what", ["link", "pipe", "link to a folder"])
def test_what_the_cache_never_makes_is_damage(what: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    entry = cache.get_or_make("engine", {}, fill)
    plan = entry / "engine.plan"
    if what == "link":
        plan.rename(tmp_path / "same")  # content as the manifest has it
        plan.symlink_to(tmp_path / "same")
    elif what == "pipe":
        plan.unlink()
        os.mkfifo(plan)
    else:
        (entry / "more").symlink_to(tmp_path)
    again = Cache(tmp_path / "cache").get_or_make("engine", {}, fill)
    assert stat.S_ISREG((again / "engine.plan").lstat().st_mode)
    assert not (again / "more").exists()


def test_an_engine_that_was_exchanged_after_it_was_checked(tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    tmp_path.chmod(0o700)
    plan.write_bytes(b"ours")
    (tmp_path / "engine.json").write_text('{"sha256": "0"}')
    with pytest.raises(CellFailed, match="not the engine that was written there"):
        tensorrt._read_plan(plan)


def test_kernel_timings_of_others_are_not_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.store("timing", {}, lambda before: before + b"ours")
    (content,) = (tmp_path / "cache/timing").glob("*/content")
    content.write_bytes(b"theirs" * 100)
    assert cache.stored("timing", {}) == b""
    cache.store("timing", {}, lambda before: before + b"ours")
    assert cache.stored("timing", {}) == b"ours"
    content.parent.chmod(0o777)
    with pytest.raises(CacheError, match="writable by its owner only"):
        Cache(tmp_path / "cache").stored("timing", {})

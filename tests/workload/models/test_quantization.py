from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from gpubench import plugins
from gpubench.cache import Cache
from gpubench.errors import CellFailed, InputError
from gpubench.suite.types import Cell
from gpubench.workload.data import image_file, preprocess
from gpubench.workload.models import quantization, registry
from tests.backends import tiny
from tests.backends.onnx_files import conv_net

WriteTiny = Callable[..., Path]


def _cell(model: str = "digits", **changes: object) -> Cell:
    base = {"model": model, "weights": "probe", "images": "digits", "precision": "int8"}
    return tiny.cell("onnxruntime", **(base | changes))


def _made(cache: Cache, target: quantization.Target = "cpu", **changes: object) -> Path:
    cell = _cell(**changes)  # type: ignore[arg-type]
    return quantization.onnx(cell, registry.resolve(cell.workload, cache), cache, target)


def _types(file: Path) -> set[int]:
    """ONNX's numbers of the types of zero points."""
    graph = onnx.load(file).graph
    constants = {t.name: t.data_type for t in graph.initializer}
    points = [n.input[2] for n in graph.node if n.op_type.endswith("antizeLinear") and n.input[2:]]
    return {constants[name] for name in points}


def test_what_a_file_says_of_itself(cache: Cache) -> None:
    file = _made(cache, options={"calibration": "percentile", "calibration_images": 20})
    said = quantization.facts(file)["quantised"]
    assert said["made_by"].startswith("onnxruntime 1.")
    assert (said["recipe"], said["method"]) == ("cpu", "percentile")
    assert said["images"].startswith("20 digits")
    assert len(said["images_sha256"]) == 64
    assert said["nodes"]["Conv"] == 4
    assert said["nodes"]["Gemm"] == 1
    assert not {"Conv", "Gemm"} & set(said["floating"])
    assert said["rest"] == "fp32"
    assert onnx.load(file).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_the_rest_in_half_precision_answers_alike(cache: Cache) -> None:
    import onnxruntime

    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    found = {}
    for rest, own in (("fp32", np.float32), ("fp16", np.float16)):
        cell = _cell()
        network = registry.resolve(cell.workload, cache)
        file = quantization.onnx(cell, network, cache, "tensorrt", rest)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        [given] = session.get_inputs()
        images = images[..., : given.shape[2], : given.shape[3]]
        [found[rest]] = session.run(None, {given.name: images.astype(own)})
    assert found["fp16"].dtype == np.float16
    # ONNX Runtime's kernels in fp16: of the same files 0.07 with release 1.24, 0.016 with 1.31
    most = 0.03 if plugins.serves(onnxruntime.__version__, ">=1.31") else 0.1
    assert np.abs(found["fp16"] - found["fp32"]).max() < most * np.abs(found["fp32"]).max()


def test_a_scale_is_rounded_up_and_what_fp16_does_not_hold_is_told(tmp_path: Path) -> None:
    source, to = conv_net(tmp_path / "net.onnx", "int8"), tmp_path / "half.onnx"
    network = onnx.load(source)
    numbers = {t.name: t for t in network.graph.initializer}

    def cast(name: str, number: float, rest: str = "fp16") -> float:
        numbers[name].CopyFrom(onnx.numpy_helper.from_array(np.float32(number), name))
        onnx.save(network, source)
        quantization._cast(source, to, rest)
        found = {t.name: t for t in onnx.load(to).graph.initializer}
        return float(onnx.numpy_helper.to_array(found[name]))

    for scale in (1e-9, 1e-6, 0.05, 0.0501):  # "xs" is one
        assert scale <= cast("xs", scale) <= scale * 1.001 + 6e-8
    with pytest.raises(CellFailed, match="'xs' has numbers beyond the range of fp16; say 'bf16'"):
        cast("xs", 1e6)
    assert cast("xs", 1e6, "bf16") == pytest.approx(1e6, rel=0.01)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("rest", ["fp16", "bf16"])
def test_scales_of_a_resize_stay_in_fp32(tmp_path: Path, constant: bool, rest: str) -> None:
    """As in efficientformerv2: ONNX allows them nothing else."""
    network = onnx.load(conv_net(tmp_path / "net.onnx", "int8"))
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    graph, place = network.graph, [n.op_type for n in network.graph.node].index("Relu")
    graph.node[place + 1].input[0] = "larger"
    graph.node.insert(place + 1, onnx.helper.make_node("Resize", ["r", "", "scales"], ["larger"]))
    if constant:
        graph.node.insert(0, onnx.helper.make_node("Constant", [], ["scales"], value=scales))
    else:
        graph.initializer.append(scales)
    onnx.save(network, tmp_path / "net.onnx")
    quantization._cast(tmp_path / "net.onnx", tmp_path / "half.onnx", rest)
    made = onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(made, full_check=True)
    kinds = {t.name: t.data_type for t in made.graph.initializer}
    single = onnx.TensorProto.FLOAT
    assert kinds.get("scales", single) == single
    assert kinds["f"] != single


def test_each_runtime_gets_the_recipe_that_it_can_fuse(cache: Cache) -> None:
    kind = onnx.TensorProto
    assert _types(_made(cache, "tensorrt")) == {kind.INT8}, "TensorRT takes no other"
    assert _types(_made(cache, "cpu")) == {kind.INT8, kind.INT32, kind.UINT8}
    graph = onnx.load(_made(cache, "tensorrt")).graph
    zero = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert not zero[node.input[2]].any(), "symmetric"


def _attention_net(path: Path) -> Path:
    """Patches, a layer norm, one head of attention, their mean: (batch, 3, 8, 8) -> (batch, 4)."""
    random = np.random.default_rng(0)
    sizes = {"w": (8, 3, 4, 4), "scale": (8,), "q": (8, 8), "k": (8, 8), "v": (8, 8), "f": (8, 4)}
    weights = {name: random.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["images", "w"], ["c"], strides=[4, 4]),
            node("Reshape", ["c", "flat"], ["r"]),
            node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
            node("LayerNormalization", ["t", "scale"], ["n"]),
            *(node("MatMul", ["n", name], [f"n{name}"]) for name in "qkv"),
            node("Transpose", ["nk"], ["kt"], perm=[0, 2, 1]),
            node("MatMul", ["nq", "kt"], ["qk"]),
            node("Softmax", ["qk"], ["s"]),
            node("MatMul", ["s", "nv"], ["o"]),
            node("Add", ["o", "t"], ["a"]),
            node("ReduceMean", ["a", "one"], ["m"], keepdims=0),
            node("MatMul", ["m", "f"], ["logits"]),
        ],
        "net",
        [onnx.helper.make_tensor_value_info("images", 1, ["batch", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("logits", 1, ["batch", 4])],
        [
            *(onnx.numpy_helper.from_array(array, name) for name, array in weights.items()),
            onnx.numpy_helper.from_array(np.array([0, 8, -1]), "flat"),
            onnx.numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_attention_is_quantised_where_it_is_linear(
    cache: Cache, tmp_path: Path, target: quantization.Target
) -> None:
    file = _attention_net(tmp_path / "attention.onnx")
    made = _made(cache, target, model=str(file), weights="file", images="photos")
    nodes, floating = quantization.operators(made)
    assert (nodes["Conv"], nodes["MatMul"]) == (1, 5)
    assert floating["MatMul"] == 1, "what softmax gives weights to"
    assert {"LayerNormalization", "Softmax", "Add", "ReduceMean"} <= set(floating)
    assert not {"Softmax", "Add", "LayerNormalization"} & set(nodes)


def test_a_layer_norm_of_an_old_opset_is_its_parts(tmp_path: Path) -> None:
    file, node = _attention_net(tmp_path / "old.onnx"), onnx.helper.make_node
    network = onnx.load(file)
    at = [n.op_type for n in network.graph.node].index("LayerNormalization")
    kept, last = list(network.graph.node[:at]), node("MatMul", ["n", "f"], ["logits"])
    del network.graph.node[:]
    network.graph.node.extend([*kept, node("Relu", ["t"], ["n"]), last])
    onnx.save(network, file)
    assert quantization._attention(file) is None, "a network without any is quantised throughout"
    parts = [
        node("ReduceMean", ["t"], ["mean"], axes=[-1]), node("Sub", ["t", "mean"], ["d"]),
        node("Mul", ["d", "d"], ["dd"]), node("ReduceMean", ["dd"], ["v"], axes=[-1]),
        node("Sqrt", ["v"], ["s"]), node("Div", ["d", "s"], ["n"]),
    ]  # fmt: skip
    del network.graph.node[:]
    network.graph.node.extend([*kept, *parts, last])
    onnx.save(network, file)
    assert quantization._attention(file) == []


def test_the_same_file_again_and_another_for_each_setting(cache: Cache) -> None:
    first = _made(cache)
    assert _made(cache) == first
    assert _made(cache, batch_size=8, options={"graph_optimization": "extended"}) == first
    others = [
        _made(cache, "tensorrt"),
        _made(cache, options={"calibration": "entropy"}),
        _made(cache, options={"calibration_images": 40}),
        _made(cache, images="photos"),
    ]
    assert len({first, *others}) == 5


def test_quantising_is_deterministic(cache: Cache, tmp_path: Path) -> None:
    """From the same weights: that training them is deterministic, `test_digits` says."""
    first = _made(cache)
    shutil.copytree(cache.root / "weights", tmp_path / "another" / "weights")
    again = _made(Cache(tmp_path / "another"))
    assert again != first
    assert again.read_bytes() == first.read_bytes()


def test_weights_beside_the_file_are_taken_in(
    cache: Cache, tmp_path: Path, tiny_onnx: WriteTiny
) -> None:
    file = conv_net(tmp_path / "net.onnx", external="net.data")
    made = _made(cache, model=str(file), weights="file", images="photos")
    (tmp_path / "net.data").unlink()
    assert quantization.operators(made)[0]["Conv"] == 1
    onnx.checker.check_model(onnx.load(made))


def test_a_file_with_nodes_of_its_own_is_taken_as_it_is(cache: Cache, tmp_path: Path) -> None:
    file = conv_net(tmp_path / "own.onnx", "int8")
    made = _made(cache, model=str(file), weights="file")
    assert made.read_bytes() == file.read_bytes()
    assert quantization.facts(made)["quantised"]["made_by"] == "the file"
    assert quantization.facts(made)["quantised"]["nodes"] == {"Conv": 1}
    with pytest.raises(InputError, match=r"Q/DQ nodes of its own.*leave out calibration_images"):
        _made(cache, model=str(file), weights="file", options={"calibration_images": 7})
    with pytest.raises(InputError, match=r"leave out workload.calibration"):
        _made(cache, model=str(file), weights="file", calibration=str(tmp_path))


def test_a_file_in_another_precision_is_refused(cache: Cache, tmp_path: Path) -> None:
    file = conv_net(tmp_path / "half.onnx", "fp16")
    with pytest.raises(InputError, match=r"half.onnx' is fp16: int8 is made of fp32"):
        _made(cache, model=str(file), weights="file")


def test_what_cannot_be_quantised_says_so(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Frobnicate")

    monkeypatch.setattr(quantization, "_quantise", fails)
    file = conv_net(tmp_path / "odd.onnx")
    with pytest.raises(CellFailed, match=r"odd.onnx cannot be quantised: Frobnicate") as caught:
        _made(cache, model=str(file), weights="file", images="photos")
    assert caught.value.kind == "error"


def test_a_file_with_a_fixed_batch_is_calibrated_by_such_batches(
    cache: Cache, tmp_path: Path
) -> None:
    file = conv_net(tmp_path / "fixed.onnx", batch=3)
    made = _made(cache, model=str(file), weights="file", images="photos", batch_size=3,
                 options={"calibration_images": 16})  # fmt: skip
    assert quantization.facts(made)["quantised"]["nodes"]["Conv"] == 1


def _folder(at: Path, count: int, value: int | None = None) -> Path:
    """Pictures of noise, or of one grey."""
    at.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        noise = rng.integers(0, 256, (40, 40, 3), np.uint8)
        pixels = noise if value is None else np.full_like(noise, value)
        Image.fromarray(pixels).save(at / f"{i:03}.png")
    return at


def test_pictures_of_a_folder(cache: Cache, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "noise", 9)
    made = _made(cache, calibration=str(folder), options={"calibration_images": 9})
    assert quantization.facts(made)["quantised"]["images"] == f"9 in {folder}"


def test_too_few_pictures_or_none(cache: Cache, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "few", 5)
    with pytest.raises(InputError, match=r"needs 128 pictures,? .*there are 5 in .*few"):
        _made(cache, calibration=str(folder))
    for i in range(200):
        (folder / f"not{i}.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match="there are 5 "):
        _made(cache, calibration=str(folder))
    with pytest.raises(InputError, match="nowhere"):
        _made(cache, calibration=str(tmp_path / "nowhere"))


def test_ranges_are_those_of_the_calibration_pictures(cache: Cache) -> None:
    """The scale of the input spans exactly what the pictures hold once preprocessed."""
    from io import BytesIO

    from gpubench.workload.data import datasets

    cell = _cell(options={"calibration_images": 20})
    model = registry.resolve(cell.workload, cache)
    encoded = datasets.calibration(cell.workload, cache, 20, 0).encoded
    seen = [preprocess.apply(model.spec, image_file.decode_file(BytesIO(e))) for e in encoded]
    graph = onnx.load(quantization.onnx(cell, model, cache, "cpu")).graph
    first = next(node for node in graph.node if "images" in node.input)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    span = max(s.max() for s in seen) - min(s.min() for s in seen)
    assert constants[first.input[1]] * 255 == pytest.approx(span, rel=1e-5)


def test_options_belong_to_int8() -> None:
    changed, rests = {"calibration": "entropy"}, ("fp32", "bf16")
    assert quantization.unsupported(_cell(options=changed), rests) is None
    assert quantization.unsupported(_cell(precision="fp32"), rests) is None
    words = quantization.unsupported(_cell(precision="fp32", options=changed), rests)
    assert words == "calibration is an option of int8, not of fp32"
    words = quantization.unsupported(_cell(options={"int8_rest": "fp16"}), rests)
    assert words == "int8: here the rest is computed in fp32 or bf16, not fp16: say int8_rest"


@pytest.mark.parametrize(
    ("flags", "reduced"),
    [({"avx2", "avx512_vnni"}, False), ({"avx2"}, True), ({"asimd", "i8mm"}, False)],
)
def test_cpus_that_saturate_get_7_bit_weights(
    flags: set[str], reduced: bool, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "_flags", lambda: flags)
    cpu, gpu = _made(cache), _made(cache, "tensorrt")
    assert quantization.facts(cpu)["quantised"]["reduced_range"] == reduced
    assert not quantization.facts(gpu)["quantised"]["reduced_range"]
    weights = [t for t in onnx.load(cpu).graph.initializer if len(t.dims) == 4]
    largest = max(int(np.abs(onnx.numpy_helper.to_array(t)).max()) for t in weights)
    assert largest == (64 if reduced else 127)

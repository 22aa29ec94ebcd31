"""int8 by static post-training quantisation: an fp32 ONNX file with Q/DQ nodes put into it.

Scales come from what the network's activations are on calibration pictures, which are none of those
that answers are checked on. Two recipes, since what one runtime fuses another refuses:

- ``tensorrt``: symmetric int8 throughout, weights behind Q/DQ pairs, biases left alone (TensorRT
  takes neither zero points nor int32 biases).
- ``cpu``: uint8 activations with a zero point, int8 weights, int32 biases. ONNX Runtime makes
  integer convolutions of all of ResNet-18's 20 with it, and of 9 with the other recipe.

Of networks with attention or layer normalisations only convolutions and products are quantised, as
NNCF does with ``ModelType.TRANSFORMER`` (nncf/quantization/algorithms/min_max/onnx_backend.py,
nncf/onnx/quantization/ignored_patterns.py): sums, norms, softmax and what it is multiplied by stay
in floating point, whose ranges eight bits do not hold.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from gpubench import plugins
from gpubench.errors import CellFailed, InputError
from gpubench.suite.types import Cell, Option, When
from gpubench.workload.data import datasets, image_file, preprocess
from gpubench.workload.models import onnx_export, onnx_graph
from gpubench.workload.models.given_input import Given
from gpubench.workload.models.onnx_export import FILE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.cache import Cache
    from gpubench.workload.data.datasets import Calibration
    from gpubench.workload.data.preprocess import Spec
    from gpubench.workload.models.base import Model

Target = Literal["cpu", "tensorrt"]
FORMAT = 2
"""Raised whenever `onnx` would make something else of the same recipe."""
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
"""Option ``calibration`` -> ONNX Runtime's name."""
_INT8: When = {"precision": ("int8",)}
OPTIONS = (
    # Not searched: speed is the same, entropy and percentile take minutes to build, and of
    # ResNet-50's answers they change tenths of a per cent (digits: 90.0, 88.3; minmax 89.8).
    Option.choice(
        "calibration", "int8: how ranges of activations are chosen", tuple(METHODS), when=_INT8
    ),
    Option.whole(
        "calibration_images", "int8: pictures that ranges are measured on", 128, minimum=1,
        maximum=100_000, when=_INT8,
    ),
    Option.choice(
        "int8_rest", "int8: what is not quantised is computed in", ("fp32", "tf32", "fp16", "bf16"),
        search=("fp32", "tf32", "fp16", "bf16"), when=_INT8,
    ),
)  # fmt: skip
"""Of every backend that has int8."""
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MOVED = ("Reshape", "Transpose", "Cast", "Squeeze", "Unsqueeze", "Expand")
"""What may stand between a softmax and the product with its weights."""
_ABOUT = "quantised.json"
_BATCH = 8
"""Images at a time while calibrating; histograms keep all activations of one batch."""
_SEED = 0
_HALF = {"fp16": (10, 19), "bf16": (16, 22)}
"""``int8_rest`` -> ONNX's number of the type, and the oldest opset whose operators take it."""
_DOT = ("amx_int8", "avx512_vnni", "avx_vnni")
"""Flags of x86 CPUs whose 8-bit dot products do not saturate."""


class Quantised(Struct, frozen=True, kw_only=True):
    """Where the Q/DQ nodes of a file come from, and what they leave in floating point."""

    made_by: str
    """'onnxruntime 1.31.1', or 'the file': it brought its own."""
    recipe: str = ""
    method: str = ""
    images: str = ""
    """The calibration pictures, in words: '128 digits that ...'."""
    images_sha256: str = ""
    reduced_range: bool = False
    """7-bit weights, for a CPU whose 8-bit dot products saturate."""
    nodes: dict[str, int]
    """Operators behind DequantizeLinear nodes, by type."""
    floating: dict[str, int]
    """All others, by type: what is computed in ``rest``."""
    rest: str = "fp32"


def unsupported(cell: Cell, rests: tuple[str, ...]) -> str | None:
    """Why a cell of another precision cannot have options of int8; or one of int8 another
    ``int8_rest`` than ``rests``, what the runtime can compute it in."""
    if cell.precision == "int8":
        if (rest := rest_of(cell)) in rests:
            return None
        return f"int8: here the rest is computed in {' or '.join(rests)}, not {rest}: say int8_rest"
    changed = _changed(cell, OPTIONS)
    return f"{changed[0]} is an option of int8, not of {cell.precision}" if changed else None


def rest_of(cell: Cell) -> str:
    """Option ``int8_rest``."""
    return str(cell.chosen(OPTIONS)["int8_rest"])


def _changed(cell: Cell, options: tuple[Option, ...]) -> list[str]:
    """Names of those whose values are not their defaults."""
    return [o.name for o in options if cell.options.get(o.name, o.default) != o.default]


def onnx(cell: Cell, model: Model, cache: Cache, target: Target, rest: str = "fp32") -> Path:
    """The int8 ONNX file for ``cell``, for any batch size: with Q/DQ nodes, else in ``rest``.

    A file that brings its own is taken as it is. Raises InputError for a file that is neither int8
    nor fp32, for too few usable calibration pictures, and for calibration options where nothing
    is to be calibrated; CellFailed when ONNX Runtime cannot quantise the network.
    """
    if isinstance(model, Given):  # calibrated in fp32, once, whatever the host gives
        return model.in_front(onnx(cell, model.network, cache, target, rest))
    if model.precision == "int8":
        changed = _changed(cell, OPTIONS[:2])
        if changed or cell.calibration:
            raise InputError(
                f"model {model.name!r} has Q/DQ nodes of its own, which are not calibrated here: "
                f"leave out {', '.join(changed) or 'workload.calibration'}"
            )
        own = model.onnx("int8")
        if rest not in ("fp32", "tf32", _rest(own)):
            raise InputError(
                f"model {model.name!r} has Q/DQ nodes of its own, and the rest in {_rest(own)}: "
                f"leave int8_rest = {rest!r} out"
            )
        return own
    if model.precision != "fp32":
        raise InputError(
            f"model {model.name!r} is {model.precision}: int8 is made of fp32, or brings its own "
            "Q/DQ nodes; give such a file"
        )
    source, chosen = model.onnx("fp32"), cell.chosen(OPTIONS)
    method, count = str(chosen["calibration"]), int(chosen["calibration_images"])
    found = datasets.calibration(cell.workload, cache, count, _SEED)
    reduced = target == "cpu" and _saturates()
    recipe = {
        "format": FORMAT,
        "onnx": str(source),  # an entry of the cache: its name says what is in it
        "spec": msgspec.to_builtins(model.spec),
        "target": target,
        "method": method,
        "images": found.digest,
        "reduced_range": reduced,
        "versions": {"onnxruntime": _onnxruntime()},
    }

    def make(at: Path) -> None:
        try:
            with onnx_export.quiet():
                _quantise(source, at / FILE, found, model.spec, method, target, reduced)
        except Exception as error:  # whatever the quantiser trips over, the cell cannot go on
            raise CellFailed("error", f"{model.name} cannot be quantised: {error}") from error
        nodes, floating = operators(at / FILE)
        about = Quantised(
            made_by=f"onnxruntime {_onnxruntime()}",
            recipe=target,
            method=method,
            images=found.source,
            images_sha256=found.digest,
            reduced_range=reduced,
            nodes=nodes,
            floating=floating,
        )
        (at / _ABOUT).write_bytes(msgspec.json.encode(about))

    made = cache.get_or_make("int8", recipe, make)
    if rest not in _HALF:
        return made / FILE

    def cast(at: Path) -> None:
        _cast(made / FILE, at / FILE, rest)
        about = msgspec.json.decode((made / _ABOUT).read_bytes(), type=Quantised)
        (at / _ABOUT).write_bytes(msgspec.json.encode(msgspec.structs.replace(about, rest=rest)))

    return cache.get_or_make("int8", recipe | {"rest": rest, "cast": 2}, cast) / FILE


def _cast(source: Path, target: Path, rest: str) -> None:
    """All that is float32 in a file, scales too, in ``rest``. Raises CellFailed where a number
    leaves its range."""
    import numpy as np
    import onnx
    from onnx import version_converter

    network = onnx.load(source)
    kind, opset = _HALF[rest]
    if network.opset_import[0].version < opset:
        try:
            network = version_converter.convert_version(network, opset)
        except Exception as error:  # what it has no adapter for
            words = f"int8_rest = {rest!r} needs opset {opset}: {error}"
            raise CellFailed("error", words) from error
    nodes = network.graph.node
    scales = {n.input[1] for n in nodes if n.op_type.endswith("antizeLinear")}

    def half(name: str, was: NDArray[np.float32]) -> NDArray[Any]:
        if rest == "bf16":  # to the nearest, ties to even
            bits = np.ascontiguousarray(was).view(np.uint32)
            return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        made = was.astype(np.float16)
        if name in scales:  # never down: nothing is clipped, and none becomes 0
            up = np.nextafter(made, np.float16(np.inf))
            made = np.where(made.astype(np.float32) < was, up, made)
        if not np.isfinite(made).all():
            words = f"{name!r} has numbers beyond the range of fp16"
            raise CellFailed("error", f"int8_rest = 'fp16': {words}; say 'bf16'")
        return made

    del network.graph.value_info[:]
    onnx_graph.cast(network, onnx.TensorProto.FLOAT, kind, half)
    onnx.save(network, target)


def facts(file: Path, rest: str = "") -> dict[str, Any]:
    """`Quantised` of the int8 file that `onnx` gave; ``rest``: a runtime's, if not the file's."""
    about = file.parent / _ABOUT
    if about.is_file():
        said = msgspec.json.decode(about.read_bytes(), type=Quantised)
    else:
        nodes, floating = operators(file)
        said = Quantised(made_by="the file", nodes=nodes, floating=floating, rest=_rest(file))
    if rest and said.rest == "fp32":
        said = msgspec.structs.replace(said, rest=rest)
    return {"quantised": msgspec.to_builtins(said)}


def instructions() -> list[str]:
    """What this CPU has for 8-bit dot products that do not saturate; x86 only."""
    flags = _flags()
    return [flag for flag in _DOT if flag in flags]


def operators(file: Path) -> tuple[dict[str, int], dict[str, int]]:
    """(operators fed by DequantizeLinear nodes, all others), by type; Q/DQ themselves left out."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    real = {o for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    nodes: Counter[str] = Counter()
    floating: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            inside = bool(node.input) and node.input[0] in real
            (nodes if inside else floating)[node.op_type] += 1
    return dict(nodes), dict(floating)


def _quantise(
    source: Path,
    target_file: Path,
    found: Calibration,
    spec: Spec,
    method: str,
    target: Target,
    reduced: bool,
) -> None:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    activation = quantization.QuantType.QUInt8
    extra: dict[str, Any] = {"WeightSymmetric": True}
    if target == "tensorrt":
        activation = quantization.QuantType.QInt8
        extra |= {"ActivationSymmetric": True, "AddQDQPairToWeight": True}
        extra |= {"DedicatedQDQPair": True, "QuantizeBias": False}
    linear: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=target_file.parent) as folder:
        inlined, ready = Path(folder, "inlined.onnx"), Path(folder, "ready.onnx")
        network = onnx.load(source)  # with weights kept beside it, which the next step cannot read
        [taken] = onnx_graph.inputs(network.graph)
        fixed = int(taken.type.tensor_type.shape.dim[0].dim_value)
        onnx.save(network, inlined)
        quant_pre_process(str(inlined), str(ready), skip_symbolic_shape=True)
        if (weighted := _attention(ready)) is not None:
            linear = {"op_types_to_quantize": list(_LINEAR), "nodes_to_exclude": weighted}
            extra |= {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
        quantization.quantize_static(
            str(ready),
            str(target_file),
            _Reader(found.encoded, spec, str(taken.name), fixed),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduced,
            activation_type=activation,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[METHODS[method]],
            extra_options=extra | {"CalibStridedMinMax": 1},
            **linear,
        )


def _attention(file: Path) -> list[str] | None:
    """Of a network with layer normalisations or attention, the products with softmax's weights.

    None: of another one. Nodes without a name get one.
    """
    import onnx

    network = onnx.load(file)
    weights: set[str] = set()
    products: list[str] = []
    for number, node in enumerate(network.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
        if node.op_type == "MatMul" and weights.intersection(node.input):
            products.append(node.name)
        elif node.op_type == "Softmax" or (
            node.op_type in _MOVED and node.input and node.input[0] in weights
        ):
            weights.update(node.output)
    onnx.save(network, file)
    kinds = {node.op_type for node in network.graph.node}
    layers = any("LayerNormalization" in kind for kind in kinds)
    layers |= {"ReduceMean", "Sqrt"} <= kinds  # before opset 17 a layer normalisation is its parts
    return products if layers or products else None


class _Reader:
    """A CalibrationDataReader: batches of images, read one range at a time (CalibStridedMinMax).

    ONNX Runtime would otherwise hold every activation of every image, gigabytes of them.
    """

    def __init__(self, encoded: list[bytes], spec: Spec, name: str, fixed: int) -> None:
        """``fixed``: the network's batch size, 0: any."""
        size = fixed or _BATCH
        self._parts = [encoded[at : at + size] for at in range(0, len(encoded), size)]
        while fixed and len(self._parts[-1]) < fixed:  # pictures once more change no range
            self._parts[-1] += encoded[: fixed - len(self._parts[-1])]
        self._spec, self._name = spec, name
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return len(self._parts)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self._parts[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        import numpy as np

        if (part := next(self._left, None)) is None:
            return None
        images = [image_file.decode_file(BytesIO(picture)) for picture in part]
        return {self._name: np.stack([preprocess.apply(self._spec, image) for image in images])}


def _rest(file: Path) -> str:
    """Precision of a file's input, and so of what is not quantised."""
    import onnx

    return onnx_graph.floating(onnx.load(file, load_external_data=False).graph)


def _saturates() -> bool:
    """Whether this is an x86 CPU whose 8-bit dot products saturate, and need 7-bit weights."""
    return "avx2" in _flags() and not instructions()


def _flags() -> set[str]:
    return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())


def onnxruntime_package() -> str:
    """The one that ONNX Runtime comes from: any of its builds; '': it is not here."""
    return plugins.package_of("onnxruntime", "onnxruntime-gpu", "onnxruntime")


def _onnxruntime() -> str:
    package = onnxruntime_package()
    return version(package) if package else "unknown"

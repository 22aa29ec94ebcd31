"""An ONNX file as the network: what torchvision cannot know.

It may be a stranger's. No runtime opens it where it lies: a copy of it is made in the cache, with
the weights that it keeps in other files, once these are known to lie beside it (`external`). The
copy is what every backend, the reference and a deployment run, and has one form whatever the file
has: one input of a known size, one output (batch, classes), and a batch size that is open or a
number. So nothing but this module knows of several outputs, of (N, C, 1, 1), or of names for sizes.
What a graph does not tell, one run does.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec
from msgspec import Struct

from gpubench.cache import Cache, content, digest
from gpubench.errors import InputError, Unsupported
from gpubench.workload.data import preprocess
from gpubench.workload.models import onnx_graph, outputs, preprocessor_config
from gpubench.workload.models.base import MOST_CLASSES, Model, told_by
from gpubench.workload.models.onnx_export import FILE, TYPES
from gpubench.workload.models.onnx_external_data import external
from gpubench.workload.models.registry import Look

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

    from gpubench.suite.types import Preprocess
    from gpubench.workload.data.preprocess import Inputs, Spec
    from gpubench.workload.models.onnx_graph import Input

T = TypeVar("T")
FORMAT = 4
"""Raised whenever the copy of the same file would be another."""
CARD = "network.json"
ASSUMED_SIDE = 224
"""Pixels, of a network whose file names its sizes instead of saying them."""
_SOURCE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed: ?|"
    r"/onnxruntime_src/\S+:\d+ .*?\) (?=\w)",
    re.DOTALL,
)
"""What of ONNX Runtime's errors says nothing to who gets them: places in its source and here."""


class Card(Struct, frozen=True, kw_only=True):
    """What one run of the file showed."""

    kind: outputs.Kind
    """As far as the graph says."""
    num_classes: int
    fixed_batch: int
    """0: any."""
    notes: list[str]
    """What the copy has otherwise than the file, and what was found out, in words."""


class OnnxModel(Model):
    """The user's own file, in the one precision that it has.

    ``said``: how pictures become its input, where the file does not say. ``output``: the name of
    one of several; '' where there is no choice. ``cache`` None: only to `look`. Raises InputError
    when there is no such file; when it is not an image classifier, as soon as something of its
    content is asked for.
    """

    is_onnx = True
    num_classes = told_by("_card.num_classes")
    output_kind = told_by("_card.kind")
    notes = told_by("_card.notes")

    def __init__(
        self, file: Path, cache: Cache | None, said: Preprocess | None = None, output: str = ""
    ) -> None:
        if not file.is_file():
            raise InputError(f"model {str(file)!r}: no such file")
        self.name, self.weights, self._file, self._cache = str(file), "file", file, cache
        self._said, self._output = said, output

    @property
    def identity(self) -> str:
        return content(self._entry)

    @cached_property
    def spec(self) -> Spec:
        given = self._input
        high, wide = (side or ASSUMED_SIDE for side in given.size)
        spec = preprocess.assumed(
            (high, wide),
            "grey" if given.channels == 1 else "rgb",
            given.layout,
            "uint8" if given.dtype == "uint8" else "float32",
        )
        fixed = 0 not in given.size
        try:
            spec = preprocessor_config.read(self._file, spec, fixed=fixed)
        except (OSError, ValueError) as error:
            self._bad(f"with a {preprocessor_config.NAME}: {error}; correct or remove that file")
        spec = preprocess.override(spec, self._said, f"model {self.name!r}", fixed=fixed)
        if any(own not in (0, side) for own, side in zip(given.size, spec.size, strict=True)):
            self._bad(f"has a height and width of {given.size} (0: any), not of {spec.size}")
        return spec

    @property
    def precision(self) -> str:
        """The one precision that the file has."""
        return onnx_graph.precision(self._model.graph)

    @property
    def fixed_batch(self) -> int | None:
        return self._card.fixed_batch or None

    def state(self) -> NoReturn:
        self._bad("is an ONNX file, which torch cannot run: choose another backend")

    def module(self) -> NoReturn:
        self.state()

    def look(self) -> Look:
        """What its graph says; nothing is run or written.

        Raises InputError for a file that is no classifier of images, or that cannot be run.
        """
        assert self.spec  # noqa: S101 - and so its input is looked at
        assert self._beside is not None  # noqa: S101 - likewise
        names = [value.name for value in self._model.graph.output]
        if self._output and self._output not in names:
            self._bad(f"has no output {self._output!r} (workload.output), but {_listed(names)}")
        if self.precision == "bf16":
            self._bad(
                "is bf16, which ONNX Runtime on the CPU, which makes the reference, cannot run: "
                "give an fp32 or fp16 file, or a torchvision network with precision = 'bf16'"
            )
        literal = not self._input.batch and bool(onnx_graph.literal_batches(self._model.graph))
        return Look(self.precision, self._input.batch, self.spec.dtype, literal=literal)

    def onnx(self, precision: str, batch: int | None = None) -> Path:
        own = self.precision
        if TYPES.get(precision, precision) == TYPES.get(own, own):
            precision = own
        if reason := refusal(self.name, own, self._card.fixed_batch, precision, batch):
            raise Unsupported(reason)
        return self._entry / FILE

    @property
    def engine(self) -> str:
        return f"onnxruntime CPU {self.precision}"

    def runner(self) -> Callable[[Inputs], NDArray[Any]]:
        run = self._runner(self._entry / FILE)
        return lambda images: run(images)[0]

    def first_not_finite(self, image: Inputs) -> str:
        import numpy as np
        import onnx
        from onnx import numpy_helper

        model = onnx.load(self._entry / FILE)
        broken = {
            tensor.name
            for tensor in model.graph.initializer
            if tensor.data_type in onnx_graph.FLOATING
            and not np.isfinite(numpy_helper.to_array(tensor).astype(np.float32)).all()
        }
        names = [name for node in model.graph.node for name in node.output if name]
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        if model.ByteSize() > onnx_graph.MOST_BYTES:
            return ""
        every = self._runner(model.SerializeToString(), optimised=False)
        found = every(image[[0] * (self._card.fixed_batch or 1)])
        for node in model.graph.node:
            for name in node.output:
                values = np.asarray(found[names.index(name)]) if name else np.zeros(1)
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    weights = [w for w in node.input if w in broken]
                    more = f", whose weights {weights[0]!r} are not finite" if weights else ""
                    return f"{node.op_type} {node.name or name!r}{more}"
        return ""

    # -------------------------------------------------------------------------- the copy

    @cached_property
    def _entry(self) -> Path:
        """The cache entry with the copy (and the weights that it keeps beside itself)."""
        self.look()
        folder = self._file.parent
        digests = {name: digest(folder / name) for name in self._beside}
        recipe = {
            "format": FORMAT,
            "file": self._digest,
            "beside": digests,
            "output": self._output,
            "size": self.spec.size,
        }

        def make(at: Path) -> None:
            for name in digests:
                (at / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, at / name)
                if digest(at / name) != digests[name]:
                    self._bad(f"changed while it was read ({name!r}): try again")
            (at / CARD).write_bytes(msgspec.json.encode(self._settle(at, list(digests))))

        assert self._cache  # noqa: S101
        return self._cache.get_or_make("onnx", recipe, make)

    @cached_property
    def _card(self) -> Card:
        return msgspec.json.decode((self._entry / CARD).read_bytes(), type=Card)

    def _settle(self, at: Path, beside: list[str]) -> Card:
        """Write the copy to ``at`` / FILE, and find out by running it what it answers."""
        import onnx

        model, given, notes = onnx.ModelProto(), self._input, []
        model.CopyFrom(self._model)
        if 0 in given.size:
            high, wide = self.spec.size
            notes.append(f"the file leaves height and width open, {high}x{wide} here")
        [value] = onnx_graph.inputs(model.graph)
        if value.type.tensor_type.elem_type in onnx_graph.WHOLE:
            onnx_graph.give(model, "uint8", None)
            notes.append("the file takes whole numbers, which are given as bytes and cast here")
        if onnx_graph.doubles(model):
            onnx.load_external_data_for_model(model, str(at))
            for name in beside:
                (at / name).unlink()
            onnx_graph.single(model)
            notes.append("the file is in double precision, which is computed in fp32 here")
        graph = model.graph
        own = [value.name for value in graph.output]
        before = {name: onnx_graph.before_argmax(graph, name) for name in own}
        also = dict.fromkeys(name for name in before.values() if name and name not in own)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in also)
        onnx_graph.settle(graph, given, self.spec.size, given.batch)
        at.joinpath(FILE).write_bytes(model.SerializeToString())
        fixed, size, found = self._tried(at / FILE, [*own, *also])
        name = self._chosen(own, before, found, size)
        if name in also:
            numbers = next(one for one in own if before[one] == name)
            notes.append(
                f"output {numbers!r} has the best classes only: {name!r} before it is taken"
            )
        elif len(own) > 1:
            notes.append(f"of the outputs {_listed(own)}, {name!r} is taken")
        if fixed and not given.batch:
            notes.append(f"the file says any batch size, and runs with {fixed} only")
        kind, shape = onnx_graph.kind_of(graph, name), found[name].shape[1:]
        if (classes := math.prod(shape)) == 1:
            classes = 2
            yes = "its one probability" if kind == "probabilities" else "its one logit"
            no = "what is left of 1" if kind == "probabilities" else "0"
            notes.append(f"{yes} is that of the second of two classes, that of the first is {no}")
        elif len(shape) > 1:
            notes.append(f"output {name!r}, {'x'.join(map(str, shape))} for an image, is flattened")
        onnx_graph.end_at(graph, name, found[name].dtype, fixed, shape)
        onnx_graph.settle(graph, given, self.spec.size, fixed)
        at.joinpath(FILE).write_bytes(model.SerializeToString())
        return Card(kind=kind, num_classes=classes, fixed_batch=fixed, notes=notes)

    def _tried(self, file: Path, names: list[str]) -> tuple[int, int, dict[str, NDArray[Any]]]:
        """(the only batch size that runs, or 0; that of what was found; outputs by name).

        A file whose graph says any batch size may yet hold one in what it reshapes to: so another
        is tried first, of at least two images.
        """
        import numpy as np

        given = self._input
        literal = sorted({1, *onnx_graph.literal_batches(self._model.graph)})
        run = self._runner(file, optimised=False)
        any_size = next(size for size in count(2) if size not in literal)
        refused, first = "", None
        for size in [given.batch] if given.batch else [any_size, *literal]:
            try:
                found = dict(zip(names, run(np.zeros((size, *self.spec.shape))), strict=True))
            except InputError as error:
                refused = refused or str(error)
                continue
            fixed = given.batch or (0 if size == any_size else size)
            if any(array.shape[:1] == (size,) for array in found.values()):
                return fixed, size, found
            first = first or (fixed, size, found)
        if first is None:
            raise InputError(refused)
        return first

    def _chosen(
        self,
        own: list[str],
        before: dict[str, str | None],
        found: dict[str, NDArray[Any]],
        batch: int,
    ) -> str:
        """The tensor with the answers: the output that is asked for, or the one of their shape."""

        def fits(name: str | None) -> bool:
            if name is None:
                return False
            array, classes = found[name], math.prod(found[name].shape[1:])
            flat = least <= classes <= MOST_CLASSES and classes == max((1, *array.shape[1:]))
            return array.dtype.kind == "f" and array.shape[:1] == (batch,) and flat

        asked, least = [self._output] if self._output else own, 2
        good = [name for name in asked if fits(name) and not before[name]]
        sources = dict.fromkeys(source for name in asked if (source := before[name]))
        good = good or [source for source in sources if fits(source)]
        least = 1  # yes or no, where nothing has a number for each class
        good = good or [name for name in asked if fits(name)]
        good = [name for name in good if found[name].ndim == 2] or good
        good = [name for name in good if name.lower() == "logits"] or good
        if len(good) != 1:
            shown = ", ".join(f"{name!r} {_told(found[name])}" for name in good or asked)
            if good:
                self._bad(
                    f"has several outputs with a number for each class: {shown}; say which, for "
                    f'example [workload] output = "{good[0]}", or --output-name {good[0]}'
                )
            self._bad(
                f"is no image classifier: its output {shown} is not (batch, classes); networks "
                "that detect, segment or read text are not measured here"
            )
        return good[0]

    def _runner(
        self, network: Path | bytes, *, optimised: bool = True
    ) -> Callable[[NDArray[Any]], list[NDArray[Any]]]:
        """On the CPU: images of the network's shape -> every output. Raises InputError."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is told by an exception, too
        # Q/DQ nodes as they stand, in fp32: integer kernels saturate on x86 without VNNI.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(
                network, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001 - its exceptions share no other base
            self._refused(error)

        def run(images: NDArray[Any]) -> list[NDArray[Any]]:
            try:
                found: list[NDArray[Any]] = session.run(
                    None, {self._input.name: images.astype(self._input.dtype)}
                )
            except Exception as error:  # noqa: BLE001
                self._refused(error)
            return found

        return run

    def _refused(self, error: Exception) -> NoReturn:
        reason = _SOURCE.sub("", str(error)).strip()
        self._bad(f"is refused by ONNX Runtime on the CPU, which makes the reference: {reason}")

    @cached_property
    def _model(self) -> ModelProto:
        model, self._digest = self._or_bad(onnx_graph.read, self._file)
        return model

    @cached_property
    def _input(self) -> Input:
        layout = self._said.layout if self._said else None
        return self._or_bad(onnx_graph.image_input, self._model.graph, layout)

    @property
    def _beside(self) -> list[str]:
        """Names of files with its weights."""
        return self._or_bad(external, self._model, self._file.parent)

    def _or_bad(self, ask: Callable[..., T], *of: Any) -> T:
        try:
            return ask(*of)
        except ValueError as error:
            self._bad(str(error))

    def _bad(self, what: str) -> NoReturn:
        raise InputError(f"model {self.name!r} {what}")


def refusal(name: str, own: str, fixed: int, precision: str, batch: int | None) -> str | None:
    """Why a file of precision ``own`` and batch size ``fixed`` (0: any) cannot be had so."""
    if precision != own:
        return (
            f"model {name!r} is {own}: ask for that precision, or give another file for {precision}"
        )
    if batch is not None and fixed not in (0, batch):
        return (
            f"model {name!r} has a fixed batch size of {fixed}, and cannot have {batch}: export it "
            "with an open one"
        )
    return None


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _told(array: NDArray[Any]) -> str:
    return f"({', '.join(map(str, array.shape))}) {array.dtype}"

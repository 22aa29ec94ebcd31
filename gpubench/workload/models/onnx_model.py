"""An ONNX file as the network: what torchvision cannot know.

It may be a stranger's. No runtime opens it where it lies: it is copied into the cache, with the
weights that it keeps in other files, once these are known to lie beside it (`external`).
"""

from __future__ import annotations

import hashlib
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gpubench.cache import Cache, content, digest
from gpubench.errors import InputError
from gpubench.workload.data import preprocess
from gpubench.workload.models import onnx_export, preprocessor_config
from gpubench.workload.models.base import BATCH, MOST_CLASSES, Model
from gpubench.workload.models.onnx_export import FILE, TYPES
from gpubench.workload.models.onnx_external_data import external

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, ValueInfoProto

    from gpubench.suite.types import Preprocess
    from gpubench.workload.data.preprocess import Inputs, Spec


MOST_BYTES = 2**31
"""Protobuf's limit."""
MOST_BATCH, MOST_SIDE = 65_536, 4096
"""Of its input: 64 images must fit into memory before anything says whether it is real."""


class OnnxModel(Model):
    """The user's own file, in the one precision that it has; copied into the cache unchanged.

    ``said``: how pictures become its input, where the file does not say. Raises InputError when
    there is no such file; when it is not an image classifier, as soon as something of its content
    is asked for.
    """

    is_onnx = True

    def __init__(self, file: Path, cache: Cache, said: Preprocess | None = None) -> None:
        if not file.is_file():
            raise InputError(f"model {str(file)!r}: no such file")
        self.name, self.weights, self._file, self._cache = str(file), "file", file, cache
        self._said, self._digest = said, ""

    @property
    def identity(self) -> str:
        return content(self._entry())

    @property
    def spec(self) -> Spec:
        _, _, height, width = _dimensions(self._input)
        spec = preprocess.assumed((height, width))
        try:
            spec = preprocessor_config.read(self._file, spec, fixed=True)
        except (OSError, ValueError) as error:
            self._bad(f"with a {preprocessor_config.NAME}: {error}; correct or remove that file")
        return preprocess.override(spec, self._said, f"model {self.name!r}", fixed=True)

    @property
    def num_classes(self) -> int:
        return _dimensions(self._model.graph.output[0])[1]

    @property
    def precision(self) -> str:
        """The one precision that the file has."""
        import onnx

        if any(node.op_type == "QuantizeLinear" for node in self._model.graph.node):
            return "int8"
        found = onnx_export.precision(self._model.graph)
        if found is None:
            kind = self._input.type.tensor_type.elem_type
            known = {number: name for name, number in onnx.TensorProto.DataType.items()}
            self._bad(f"input {self._input.name!r} is {known.get(kind, f'of type {kind}')}")
        return found

    @property
    def fixed_batch(self) -> int | None:
        return _dimensions(self._input)[0] or None

    def state(self) -> NoReturn:
        self._bad("is an ONNX file, which torch cannot run: choose another backend")

    def module(self) -> NoReturn:
        self.state()

    def onnx(self, precision: str, batch: int | None = None) -> Path:
        own = self.precision
        if precision != own and TYPES.get(precision) != TYPES.get(own, own):
            self._bad(f"is {own}: ask for that precision, not {precision}, or give another file")
        fixed = self.fixed_batch
        if fixed and fixed != batch:
            wanted = "any batch size" if batch is None else f"batch size {batch}"
            self._bad(f"has a fixed batch size of {fixed}, {wanted} was asked for: export it anew")
        return self._entry() / FILE

    @property
    def engine(self) -> str:
        return f"onnxruntime CPU {self.precision}"

    def answers(self, images: Inputs) -> NDArray[np.float32]:
        import numpy as np
        import onnx
        import onnxruntime

        if self.precision == "bf16":
            self._bad(
                "is bf16, which ONNX Runtime on the CPU, which makes the reference, cannot run: "
                "give an fp32 or fp16 file, or a torchvision network with precision = 'bf16'"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Q/DQ nodes as they stand, in fp32: integer kernels saturate on x86 without VNNI.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            session = onnxruntime.InferenceSession(
                self._entry() / FILE, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001 - its exceptions share no other base
            self._bad(f"is refused by ONNX Runtime on the CPU, which makes the reference: {error}")
        size = self.fixed_batch or BATCH
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self._input.type.tensor_type.elem_type)
        answers = []
        for at in range(0, len(images), size):
            part = images[np.arange(at, at + size) % len(images)]  # a full last batch, if fixed
            answers.append(session.run(None, {self._input.name: part.astype(dtype)})[0])
        return np.concatenate(answers)[: len(images)].astype(np.float32)

    def _entry(self) -> Path:
        """The cache entry with the file (and the weights that it keeps beside itself)."""
        try:
            beside = external(self._model, self._file.parent)
        except ValueError as error:
            self._bad(str(error))
        recipe = {
            "format": 1,
            "file": self._digest,
            "beside": {b: digest(self._file.parent / b) for b in beside},
        }

        def copy(at: Path) -> None:
            shutil.copyfile(self._file, at / FILE)
            for name in beside:
                (at / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._file.parent / name, at / name)
            # What runtimes will open is the copy; the original may have changed meanwhile.
            copied = {"file": digest(at / FILE), "beside": {b: digest(at / b) for b in beside}}
            if recipe != {"format": 1} | copied:
                self._bad("changed while it was read: try again")

        return self._cache.get_or_make("onnx", recipe, copy)

    @cached_property
    def _model(self) -> ModelProto:
        import onnx

        size = self._file.stat().st_size
        if size > MOST_BYTES:
            self._bad(f"has {size:,} bytes; no ONNX file is larger than {MOST_BYTES:,}")
        body = self._file.read_bytes()
        self._digest = hashlib.sha256(body).hexdigest()
        try:
            model = onnx.load_model_from_string(body)
        except Exception as error:  # noqa: BLE001 - protobuf's, which is no dependency here
            self._bad(f"is not an ONNX file ({error})")
        self._validate(model.graph)
        return model

    def _validate(self, graph: GraphProto) -> None:
        inputs, outputs = onnx_export.inputs(graph), graph.output
        if len(inputs) != 1 or len(outputs) != 1:
            self._bad(f"has {len(inputs)} inputs and {len(outputs)} outputs, not one of each")
        shape, answer = _dimensions(inputs[0]), _dimensions(outputs[0])
        square = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3]
        if not square or not 0 <= shape[0] <= MOST_BATCH or not 1 <= shape[2] <= MOST_SIDE:
            self._bad(f"input {inputs[0].name!r} is {shape}, not (batch, 3, H, H) with a fixed H")
        if len(answer) != 2 or not 2 <= answer[1] <= MOST_CLASSES:
            self._bad(f"output {outputs[0].name!r} is {answer}, not (batch, classes)")

    @property
    def _input(self) -> ValueInfoProto:
        return onnx_export.inputs(self._model.graph)[0]

    def _bad(self, what: str) -> NoReturn:
        raise InputError(f"model {self.name!r} {what}")


def _dimensions(value: ValueInfoProto) -> tuple[int, ...]:
    """The shape; 0: any."""
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)

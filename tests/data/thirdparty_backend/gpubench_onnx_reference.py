"""A complete backend: ONNX's own reference implementation, in NumPy (slow and exact)."""

from importlib.metadata import version


class OnnxReference:
    name = "onnx-reference"
    summary = "ONNX's reference implementation, in NumPy; CPU; fp32"
    options = ()  # gpubench.suite.Option(name=..., kind=..., default=..., help=...)
    preload = ("onnx.reference",)  # imported once, before worker processes are forked

    def probe(self):  # what is here; or raise gpubench.errors.Unavailable(reason, remedy)
        return {"onnx": version("onnx")}

    def unsupported(self, cell):  # why this cell cannot be done, or None
        if cell.device != "cpu" or cell.precision != "fp32":
            return "the reference implementation computes in fp32 on the CPU"
        return None

    def prepare(self, cell, model, cache):  # may be slow; gpubench keeps it for the next time
        return model.onnx("fp32")

    def open(self, cell, artefact, device):  # a session for one batch size on one device
        return Session(artefact)


class Session:
    def __init__(self, file):
        from onnx.reference import ReferenceEvaluator  # the runtime: never at module top

        self.network = ReferenceEvaluator(str(file))
        self.facts = {"opset": self.network.opsets[""]}  # what really runs

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    def copy_in(self, images):  # (batch, *model.input_shape) of model.spec.dtype
        self.inputs = {self.network.input_names[0]: images}

    def run(self):  # one batch; may return before it is done
        (self.logits,) = self.network.run(None, self.inputs)

    def sync(self):  # return when everything enqueued is done
        pass

    def copy_out(self):  # (batch, classes) float32, a fresh array
        return self.logits.copy()

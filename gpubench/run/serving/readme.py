"""The README of a deployment: what it is, and how to use it with gpubench and without."""

from __future__ import annotations

import re

from gpubench import escape, units
from gpubench.run.serving.manifest import LABELS, MANIFEST, Manifest
from gpubench.workload.data.image_file import KEPT_PIXELS

_ACTIVE = re.compile(r"[\\`*_{}\[\]<>#|&]")
_HEAD = """\
# {model}, {label}

An image classifier ({outputs} classes) that `gpubench deploy` wrote on {made}.

| | |
|---|---|
| network | {model}, weights {weights} |
| computed by | {backend}, {precision}, batches of {batch}, {replicas} replica(s) |
| made for | {machine} |
| with | {libraries} |
| answers | {agreement} of {images} as the {reference} reference's{accuracy} |
| speed | {speed} |

## In Python, with gpubench

In this folder (elsewhere, give its path):

```python
import gpubench

with gpubench.load(".") as classifier:
    for prediction in classifier(["picture.png"], top=3):
        print(prediction.label, prediction.score, prediction.top)
```

Give it one image or many: encoded bytes, paths, PIL images or arrays (H, W, 3) of uint8. It may be
called from any thread. `classifier.logits(batch)` takes preprocessed batches, float32
(N, 3, {crop}, {crop}). They are computed in batches of {batch}: what is left over is filled up
with zeros and takes as long, so ask for many images at a time, or deploy a cell of batch size 1.
Several replicas, and torch-compile, run in a process each.
"""

_PREPROCESSING = """\
def preprocess(file):
    image = Image.open(file).convert("RGB")
    factor = isqrt(image.width * image.height // {kept})
    image = image.reduce(factor) if factor > 1 else image  # as the checked preprocessing does
    wide, high = (int({resize} * side / min(image.size)) for side in image.size)
    left, top = round((wide - {crop}) / 2), round((high - {crop}) / 2)
    image = image.resize((wide, high), Image.Resampling.{filter})
    image = image.crop((left, top, left + {crop}, top + {crop}))
    pixels = np.asarray(image, np.float32) / np.float32(255)
    pixels = (pixels - np.array({mean}, np.float32)) / np.array({std}, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
"""

_ORT = """

session = onnxruntime.InferenceSession("{artefact}", providers={providers})
[source] = session.get_inputs()
images = preprocess("picture.png"){cast}
[logits] = session.run(None, {{source.name: images}})
"""

_OPENVINO = """

settings = {{"INFERENCE_PRECISION_HINT": "{hint}", "PERFORMANCE_HINT": "LATENCY"}}
model = openvino.Core().compile_model("{artefact}", "{device}", settings)
logits = model(preprocess("picture.png"))[0]
"""

_TORCH = """

about = json.loads(Path("{artefact}/model.json").read_text())
module = torchvision.models.get_model(
    about["name"], num_classes=about["num_classes"], **about["arguments"]
)
module.load_state_dict(torch.load("{artefact}/state.pt", weights_only=True))
with torch.inference_mode():
    logits = module.eval()(torch.from_numpy(preprocess("picture.png"))).numpy()
"""

_LABELS = """
labels = Path("{labels}").read_text(encoding="utf-8").splitlines()
print(labels[int(logits[0].argmax())])
"""

_BOUNDARIES = {
    "compute": "the network alone; copying, decoding and preprocessing come on top",
    "transfer": "a preprocessed batch in host memory to logits; decoding and preprocessing of\n"
    "  images come on top, in the calling thread",
    "pipeline": "encoded bytes to labels with the run's loader; here the calling thread decodes",
}

_TAIL = """
## Limits

- Made for the machine and the library versions above: others are warned of when it is loaded, or
  refused where the artefact is machine code for one device (TensorRT, torch-compile).
- Speed is that of the cell's boundary `{boundary}`: {what}.
- Requests of several callers are not combined: each takes whole batches of its own.
- A torch backend sets torch's process-wide TF32 and cuDNN switches, and its number of threads,
  while it is loaded: two of them in one process share those of the one loaded last. torch-compile
  runs in a process of its own. After a fork, load it in the new process.

## Security

- Load only what you trust: TensorRT engines and compiled code (torch-compile) are executable code.
  State dicts are read with `weights_only=True`, and ONNX files are data.
- `{manifest}` holds the SHA-256 of every file, and loading verifies them. That finds damage, not
  forgery: whoever can change a file can change its digest too.
"""


def text(made: Manifest) -> str:
    """Markdown; its snippets are to be run in the folder."""
    return _head(made) + _bare(made) + _tail(made)


def _tail(made: Manifest) -> str:
    boundary = made.cell.boundary
    return _TAIL.format(manifest=MANIFEST, boundary=boundary, what=_BOUNDARIES[boundary])


def _head(made: Manifest) -> str:
    cell, parity, where = made.cell, made.parity, made.made_for
    right = f"; accuracy {parity.correct} of {parity.labelled}" if parity.labelled else ""
    return _HEAD.format(
        model=_plain(cell.model),
        weights=_plain(cell.weights),
        label=_plain(cell.label),
        outputs=made.outputs,
        made=made.made,
        backend=cell.backend,
        precision=cell.precision,
        batch=cell.batch_size,
        replicas=cell.replicas,
        machine=_plain(where.gpu or where.cpu),
        libraries=_plain(", ".join(f"{k} {v}" for k, v in where.libraries.items())),
        agreement=f"{parity.top1_agreement:.1%}",
        images=parity.images,
        reference=parity.reference,
        accuracy=right,
        speed=_speed(made),
        crop=made.preprocessing.crop,
    )


def _speed(made: Manifest) -> str:
    found = made.measured
    if found is None:
        return f"not measured: `gpubench run` the suite {_plain(made.suite)!r}"
    words = [f"p50 {units.duration(found.p50_ns)}"] if found.p50_ns else []
    words += [f"p99 {units.duration(found.p99_ns)}"] if found.p99_ns else []
    words += [f"{found.images_per_s:.4g} images/s"] if found.images_per_s else []
    batch = f"a batch of {made.cell.batch_size}, boundary {made.cell.boundary}"
    return f"{', '.join(words)} ({batch}; {found.repeats} repeats of run {_plain(found.run_id)})"


def _bare(made: Manifest) -> str:
    """How to use the artefact without gpubench, where that is possible."""
    cell, file = made.cell, made.artefact
    cast = ".astype(np.float16)" if cell.precision == "fp16" and cell.device == "cuda" else ""
    if cell.backend == "openvino":
        hint = {"bf16": "bf16", "fp16": "f16"}.get(cell.precision, "f32")
        name = str(cell.options.get("device_name", "CPU"))
        runtime, body = "openvino", _OPENVINO.format(artefact=file, hint=hint, device=name)
    elif cell.backend == "onnxruntime" and file.endswith(".onnx") and cell.precision != "bf16":
        own = "CUDAExecutionProvider" if cell.device == "cuda" else "CPUExecutionProvider"
        body = _ORT.format(artefact=file, providers=[own], cast=cast)
        runtime = "onnxruntime"
    elif cell.backend == "torch-eager" and cell.model != "digits":
        runtime, body = "torch\nimport torchvision", _TORCH.format(artefact=file)
    else:
        return (
            f"\n## Without gpubench\n\n`{file}` is {cell.backend}'s; only gpubench loads it as it "
            "was checked. Its preprocessing is in the manifest.\n"
        )
    spec = made.preprocessing
    code = _PREPROCESSING.format(
        kept=KEPT_PIXELS, resize=spec.resize, crop=spec.crop, filter=spec.interpolation.upper(),
        mean=list(spec.mean), std=list(spec.std),
    )  # fmt: skip
    code += body + (
        _LABELS.format(labels=LABELS) if made.classes else "\nprint(int(logits[0].argmax()))\n"
    )
    first = "import json\n" if "json." in code else ""
    first += "from math import isqrt\n" + ("from pathlib import Path\n" if "Path(" in code else "")
    rest = ", with the runtime's own threads and other options"
    if runtime.startswith("torch") and cell.precision != "fp32":
        rest = f", in fp32 instead of {cell.precision}"
    imports = f"{first}\nimport numpy as np\nimport {runtime}\nfrom PIL import Image\n\n\n"
    return f"\n## Without gpubench\n\nIn this folder{rest}:\n\n```python\n{imports}{code}```\n"


def _plain(words: str) -> str:
    """Text from files, in a table of Markdown."""
    return _ACTIVE.sub(lambda found: f"\\{found[0]}", escape.line(words))

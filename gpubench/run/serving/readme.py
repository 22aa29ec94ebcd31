"""The README of a deployment: what it is, and how to use it with gpubench and without."""

from __future__ import annotations

import re
from importlib.resources import files

from gpubench import escape, units
from gpubench.run.serving.manifest import Manifest
from gpubench.suite.types import source_of
from gpubench.workload.data import preprocess
from gpubench.workload.data.image_file import KEPT_PIXELS

_ACTIVE = re.compile(r"[\\`*_{}\[\]<>#|&]")
_BOUNDARIES = {
    "compute": "the network alone; copying, decoding and preprocessing come on top",
    "transfer": "a preprocessed batch in host memory to logits; decoding and preprocessing of\n"
    "  images come on top, in the calling thread",
    "pipeline": "encoded bytes to labels with the run's loader; here the calling thread decodes",
}


def text(made: Manifest) -> str:
    """Markdown; its snippets are to be run in the folder."""
    import jinja2

    # Markdown, not HTML: `plain` escapes what acts there
    environment = jinja2.Environment(  # noqa: S701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    source = files("gpubench.run.serving").joinpath("readme.md.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        made=made,
        cell=made.cell,
        cuda=made.cell.device == "cuda",
        parity=made.parity,
        spec=made.preprocessing,
        height=made.preprocessing.size[0],
        width=made.preprocessing.size[1],
        preprocessing=preprocess.words(made.preprocessing),
        libraries=", ".join(f"{k} {v}" for k, v in made.made_for.libraries.items()),
        speed=_speed(made),
        boundary=_BOUNDARIES[made.cell.boundary],
        runtime=_runtime(made),
        kept=KEPT_PIXELS,
    )


def _speed(made: Manifest) -> str:
    found = made.measured
    if found is None:
        return f"not measured: `gpubench run` the suite {_plain(made.suite)!r}"
    words = [f"p50 {units.duration(found.p50_ns)}"] if found.p50_ns else []
    words += [f"p99 {units.duration(found.p99_ns)}"] if found.p99_ns else []
    words += [f"{units.significant(found.images_per_s, 4)} images/s"] if found.images_per_s else []
    batch = f"a batch of {made.cell.batch_size}, boundary {made.cell.boundary}"
    repeats = units.count(found.repeats, "repeat")
    return f"{', '.join(words)} ({batch}; {repeats} of run {_plain(found.run_id)})"


def _runtime(made: Manifest) -> str:
    """The package that runs the artefact without gpubench; '' where none does as it was checked."""
    cell = made.cell
    named = not source_of(cell.model) and cell.model != "digits"  # as torchvision does
    if cell.backend == "torch-eager" and named and cell.input == "float32":
        return "torch"
    if cell.backend == "aot-inductor" and cell.device == "cpu" and not cell.model.endswith(".pt2"):
        return "torch"
    onnx = made.artefact.endswith(".onnx") and cell.precision != "bf16"
    if cell.backend == "openvino" or (cell.backend == "onnxruntime" and onnx):
        return cell.backend
    return ""


def _plain(words: str) -> str:
    """Text from files, in a table of Markdown."""
    return _ACTIVE.sub(lambda found: f"\\{found[0]}", escape.line(words))

"""What a suite file may say: one JSON schema, used by editors and by gpubench's own validation.

`schema` builds it from what is installed (`Catalog`); `mistakes` checks a parsed file against it
and words every mistake for a person. Rules a schema cannot state are in `gpubench.suite.file`.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import UnionType
from typing import Any, NamedTuple, get_args

import msgspec
from msgspec import UNSET

from gpubench import escape
from gpubench.suite import types
from gpubench.suite.gate import METRICS, Metric
from gpubench.suite.types import MIN_BLOCKS, MIN_SAMPLES, Catalog, Option

Schema = dict[str, Any]

MOST = 50
"""Mistakes told of one file: a reader has enough, and a hostile file does not keep us busy."""

RENAMED = {"sample_s": "duration_s", "min_path_agreement": "min_pipeline_agreement"}
"""Keys by their former names."""
_PLAIN = re.compile(r"[\w-]{1,80}", re.ASCII)
"""Keys that TOML takes without quotes."""

MAX_INT = 2**31 - 1
MAX_NUMBER = 1e9
"""Bounds of every number in a suite, so that none overflows further down."""
BATCH_SIZE: Schema = {"type": "integer", "minimum": 1, "maximum": 65_536}
REPLICAS: Schema = {"type": "integer", "minimum": 1, "maximum": 1024}
CORES: Schema = {"type": "integer", "minimum": 1, "maximum": 4096}

_SCALARS = [{"type": kind} for kind in ("boolean", "integer", "number", "string")]
NUMBER: Schema = {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}
MOST_SIDE = 4096
SIDE: Schema = {"type": "integer", "minimum": 1, "maximum": MOST_SIDE}
"""Pixels, of a network's input."""

HELP = {
    "description": "One line for `gpubench list suites`.",
    "baseline": "The backend that speed-ups are relative to; default: the first of axes.backend.",
    "workload": "The work that every backend does.",
    "model": "A torchvision classification model (`gpubench list models`), 'digits' (a small "
    "network of gpubench's own), 'timm/NAME', 'hf/FOLDER-OR-ID', own code ('model.py:build', "
    "'pkg.models:build'), or the path of an .onnx or .pt2 file (or the "
    ".cloudpickle of a live module that `gpubench.run` has kept).",
    "weights": "'probe' (made offline from real digits), 'random' (speed only), a torchvision "
    "weights name such as DEFAULT, or the path of a state dict or checkpoint, with the key of one "
    "where it holds several ('last.ckpt#model_ema'); 'file' with an .onnx or .pt2 model; 'DEFAULT' "
    "of own code: as it returns them.",
    "images": "'digits', 'photos', 'synthetic' (speed only), a folder of images (sub-folders are "
    "classes, if the network's), or WebDataset shards: a .tar file, or a folder of them.",
    "labels": "A file with rows of file name and class. For a folder of pictures.",
    "calibration": "Folder of images that int8 is calibrated on; without it, images of the source "
    "that answers are checked on last.",
    "output": "Which output of a file, of 'hf/...' or of own code has the answers; needed where "
    "several may.",
    "arguments": "What own code is called with, by name; of other networks, their builder.",
    "preprocess": "How a picture becomes the network's input, where neither weights nor file say.",
    "size": "Of the network's input: one side, or [height, width].",
    "resize": "The shorter side before the centre is cut out; default: size x 256/224.",
    "crop": "false: each side straight to size, without keeping the aspect ratio.",
    "interpolation": "How pictures are resized; default: bilinear.",
    "mean": "Taken off each channel, after range: one number, or one for each channel.",
    "std": "What each channel is then divided by.",
    "range": "What pixel values 0 and 255 become before mean and std; default: [0, 1].",
    "channels": "Their order: rgb, bgr, or grey, a single one; mean and std follow it.",
    "layout": "What the model's file says, where that can be told from its shape.",
    "axes": "The values of every axis; the cells are their product less the exclusions.",
    "backend": "Backends to measure: `gpubench list backends`.",
    "device": "'auto' is CUDA where present, else the CPU.",
    "precision": "fp32 never uses TF32; amp is automatic mixed precision, not the same as fp16.",
    "input": "What the host gives the network. uint8: pixels as they are, a quarter of the bytes; "
    "cast, scale and normalisation are part of the network then. float16: half of the bytes.",
    "batch_size": "Images per call, per replica.",
    "replicas": "Sessions at the same time, each in a process of its own, with its own GPU or its "
    "own equal share of the cores.",
    "replicas_per_device": "Replicas that share one GPU, or one set of cores.",
    "sharing": "How replicas share a GPU: mps, through NVIDIA's service, whose daemon must run; "
    "time-slicing, in turns, even if it does; auto: as the machine is.",
    "cores": "CPU cores of one device (of one replica, unless replicas share it); 0: the machine's "
    "cores / the most devices of a cell.",
    "scenario": "latency: wait for every batch. throughput: keep the device saturated, wait once a "
    "block.",
    "boundary": "compute: inputs resident. transfer: host array in, logits out on the host. "
    "pipeline: encoded bytes in, labels and scores out.",
    "decoder": "Boundary pipeline: what decodes and preprocesses (`gpubench list decoders`).",
    "loader": "Boundary pipeline: prefetch by threads or processes; auto measures both first.",
    "loader_cores": "Boundary pipeline, CPU: of a replica's cores, those that prefetch; 0: shared "
    "out by measurement.",
    "cache": "Latency at boundary compute. warm: the same batch over and over. rotating: another "
    "each time, out of more than the last-level cache (of a GPU L2) holds. cold: that, and the "
    "cache is emptied before each batch, off the clock.",
    "dispatch": "Throughput over replicas. independent: each runs for itself. static, dynamic: one "
    "job, handed out in equal shares beforehand, or batch by batch to whoever is free.",
    "options": "Per backend, its own options: a value, or a list that becomes an axis.",
    "gate": "What `gpubench ab` and `gpubench compare` judge, and how much of it does not matter: "
    "shares (0.02 is 2 %); of accuracy and agreement percentage points.",
    "policy": "How long to measure and when to stop; times in seconds.",
    "exclude": "Drops every cell that matches all pairs of the rule; a list matches any of its "
    "values. Keys are axes or names of options.",
    "repeats": "Fresh-process executions of every cell.",
    "max_repeats": "Upper bound when the interval is still too wide; default: repeats.",
    "target_half_width": "Relative half-width of the 95 % interval to aim at: 0.02 is 2 %.",
    "budget_s": "No new round of repeats starts after this much measuring time.",
    "soak_s": "Under load for so long before the warm-up, unrecorded: what is sustained, and not a "
    "boost of the first minute.",
    "warmup_iterations": "At least this many warm-up iterations ...",
    "warmup_s": "... and at least this long; up to ten times as long, until it has settled.",
    "duration_s": f"Sampling time of one repeat; up to four times as long for {MIN_BLOCKS} "
    f"samples; longer where {MIN_SAMPLES} samples, or {MIN_BLOCKS} blocks of throughput, take "
    "longer.",
    "max_samples": "A repeat stops after this many samples, even before duration_s.",
    "block_s": "About how long a block of the throughput scenario lasts.",
    "timeout_s": "Limit of one task: open, warm up, sample, check.",
    "prepare_timeout_s": "Limit of preparing one cell: export, build, compile.",
    "parity_images": "Images checked against the reference in every repeat.",
    "max_relative_error": "Replaces the tolerance that belongs to the precision.",
    "min_top1_agreement": "Replaces the tolerance that belongs to the precision.",
    "accuracy_images": "Labelled images that accuracy is measured on; 0: those of parity.",
    "min_accuracy": "Least top-1 accuracy, 0 to 1; below it the cell fails.",
    "max_accuracy_drop": "Percentage points of accuracy below the reference's, at most.",
    "min_pipeline_agreement": "Boundary pipeline: least agreement of the whole pipeline's answers.",
    "max_latency": "Such as p99=20ms: where machines are compared, what keeps it is chosen from.",
    "seed": "Seeds the order of tasks.",
}

_NO_MODEL = (
    "of files only those called .onnx or .pt2, in small letters, are taken; trained ones (a state "
    "dict) are given as weights, their network by its name or as own code: --model resnet50 "
    "--weights FILE; TorchScript is not taken: torch.export.save(torch.export.export(module, "
    "(images,)), 'x.pt2') saves its module"
)
_MODEL = (
    r"\.onnx$|\.pt2$|\.cloudpickle$|:[^\W\d]\w*$|^[\w-]+/[^.~/].*(?<!\.pt)(?<!\.pth)(?<!\.ts)$|^hf/"
)
"""How a model is written that is more than a name; see `gpubench.suite.types.source_of`."""
_KINDS: dict[str, tuple[type | UnionType, str]] = {
    "string": (str, "a string"),
    "integer": (int, "a whole number"),
    "number": (int | float, "a number"),
    "boolean": (bool, "true or false"),
    "array": (list, "a list"),
    "object": (dict, "a table"),
}
_BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "minimum": (operator.ge, "at least"),
    "exclusiveMinimum": (operator.gt, "above"),
    "maximum": (operator.le, "at most"),
    "exclusiveMaximum": (operator.lt, "below"),
}


class Mistake(NamedTuple):
    """One thing wrong: where (dotted key), the value as written, what is expected."""

    at: str
    value: Any
    """UNSET: it says nothing, as that of an unknown key."""
    text: str

    def __str__(self) -> str:
        return f"{self.at}{'' if self.value is UNSET else f' = {show(self.value)}'}: {self.text}"


# ------------------------------------------------------------------------------ the schema


def schema(catalog: Catalog) -> Schema:
    """JSON schema (draft 7) of a suite file on this installation."""
    names = sorted(catalog.backends)
    plain = _enum(catalog.models) if catalog.models else {"type": "string", "minLength": 1}
    model = {"anyOf": [plain, {"type": "string", "pattern": _MODEL}]}
    shared = {
        "backend": _enum(names),
        "precision": _enum(get_args(types.Precision)),
        "input": _enum(get_args(types.Input)),
        "batch_size": BATCH_SIZE,
        "replicas": REPLICAS,
        "replicas_per_device": REPLICAS,
        "sharing": _enum(get_args(types.Sharing)),
        "scenario": _enum(get_args(types.Scenario)),
        "boundary": _enum(get_args(types.Boundary)),
        "dispatch": _enum(get_args(types.Dispatch)),
        "cache": _enum(get_args(types.Caches)),
        "decoder": _enum(sorted(catalog.decoders)),
        "loader": _enum(get_args(types.Loader)),
        "loader_cores": {"type": "integer", "minimum": 0, "maximum": 1024},
    }
    options = {
        name: table({o.name: scalar_or_list(option(o)) for o in catalog.backends[name]})
        for name in names
    }
    axes = {key: scalar_or_list(value) for key, value in shared.items()} | {
        "device": _enum(("auto", "cpu", "cuda")),
        "cores": {"type": "integer", "minimum": 0, "maximum": 4096},
        "options": table(options),
    }
    rule = shared | {"device": _enum(("cpu", "cuda"))} | _options_by_name(catalog)
    top = {
        "description": {"type": "string"},
        "baseline": _enum(names),
        "workload": table(
            {
                "model": model,
                "weights": {"type": "string", "minLength": 1},
                "images": {"type": "string", "minLength": 1},
                "labels": {"type": "string"},
                "calibration": {"type": "string"},
                "output": {"type": "string"},
                "arguments": {
                    "type": "object",
                    "properties": {},
                    "additionalProperties": {"anyOf": _SCALARS},
                },
                "preprocess": _preprocess(),
            }
        ),
        "axes": table(axes, required=["backend"]),
        "policy": _policy(),
        "gate": table({name: _margin(metric) for name, metric in METRICS.items()}),
        "exclude": {
            "type": "array",
            "items": table({k: scalar_or_list(v) for k, v in rule.items()}) | {"minProperties": 1},
        },
    }
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "gpubench suite"}
    return head | table(top, required=["axes"])


def option(o: Option) -> Schema:
    """The schema of one value of a backend's option."""
    kind = {"bool": "boolean", "int": "integer", "float": "number", "str": "string"}[o.kind]
    out: Schema = {"type": kind, "description": o.help, "default": o.default}
    if o.choices:
        out["enum"] = list(o.choices)
    if kind in ("integer", "number"):
        bound = MAX_INT if kind == "integer" else MAX_NUMBER
        out["minimum"] = -bound if o.minimum is None else o.minimum
        out["maximum"] = bound if o.maximum is None else o.maximum
    return out


def _options_by_name(catalog: Catalog) -> Schema:
    """Every option name of any backend, for exclusion rules; backends may differ in its type."""
    found: dict[str, list[Schema]] = {}
    for options in catalog.backends.values():
        for o in options:
            found.setdefault(o.name, []).append(option(o))
    return {name: _any(kinds) for name, kinds in found.items()}


def _policy() -> Schema:
    """The fields and ranges of `Policy`, which stays their only definition."""
    fields = msgspec.json.schema(types.Policy)["$defs"]["Policy"]["properties"]
    out = {}
    for name, field in fields.items():
        kind = {k: v for k, v in field.items() if k != "anyOf"} | field.get("anyOf", [{}])[0]
        if kind.get("default", 0) is None:  # TOML has no null: the key is absent
            del kind["default"]
        limit = MAX_INT if kind["type"] == "integer" else MAX_NUMBER
        if "exclusiveMaximum" not in kind:
            kind.setdefault("maximum", limit)
        out[name] = kind
    return table(out)


def _margin(metric: Metric) -> Schema:
    least = "exclusiveMinimum" if metric.noise == "pairs" else "minimum"
    most = 100 if metric.points else 1
    return {"type": "number", least: 0, "exclusiveMaximum": most, "description": metric.help}


def _preprocess() -> Schema:
    def each(item: Schema, least: int, most: int) -> Schema:
        return {"type": "array", "items": item, "minItems": least, "maxItems": most}

    deviation = NUMBER | {"exclusiveMinimum": 0}
    del deviation["minimum"]
    return table(
        {
            "size": {"anyOf": [SIDE, each(SIDE, 2, 2)]},
            "resize": SIDE,
            "crop": {"type": "boolean"},
            "interpolation": _enum(get_args(types.Interpolation)),
            "mean": {"anyOf": [NUMBER, each(NUMBER, 1, 3)]},
            "std": {"anyOf": [deviation, each(deviation, 1, 3)]},
            "range": each(NUMBER, 2, 2),
            "channels": _enum(get_args(types.Channels)),
            "layout": _enum(get_args(types.Layout)),
        }
    )


def _enum(values: Iterable[str]) -> Schema:
    return {"type": "string", "enum": list(values)}


def _any(schemas: list[Schema]) -> Schema:
    unique = [s for i, s in enumerate(schemas) if s not in schemas[:i]]
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def scalar_or_list(item: Schema) -> Schema:
    """A value, or a list of different ones."""
    several = {"type": "array", "items": item, "minItems": 1, "uniqueItems": True}
    help_ = {"description": item["description"]} if "description" in item else {}
    return help_ | {"anyOf": [item, several]}


def table(properties: Mapping[str, Schema], required: Iterable[str] = ()) -> Schema:
    """A table with no other keys, each described by `HELP`."""
    described = {
        key: {"description": HELP[key]} | value if key in HELP else value
        for key, value in properties.items()
    }
    out = {"type": "object", "properties": described, "additionalProperties": False}
    return out | ({"required": list(required)} if required else {})


# ------------------------------------------------------------------------------ the check


def mistakes(value: Any, rule: Schema, at: str = "") -> Iterator[Mistake]:
    """Every way in which ``value`` breaks ``rule``; ``at`` is the dotted key it stands under."""
    if "anyOf" in rule:
        branches = [list(islice(mistakes(value, b, at), MOST + 1)) for b in rule["anyOf"]]
        path = isinstance(value, str) and ("/" in value or "." in value)
        if all(branches) and path and any("pattern" in b for b in rule["anyOf"]):
            yield Mistake(at, value, _NO_MODEL)
        elif all(branches):
            fitting = [f for f, b in zip(branches, rule["anyOf"], strict=True) if _is(value, b)]
            yield from fitting[0] if fitting else [Mistake(at, value, f"expected {say(rule)}")]
    elif not _is(value, rule):
        yield Mistake(at, value, f"expected {say(rule)}")
    elif rule["type"] == "object":
        yield from _in_table(value, rule, at)
    elif rule["type"] == "array":
        yield from _in_list(value, rule, at)
    elif "enum" in rule:
        if value not in rule["enum"]:
            yield Mistake(at, value, f"unknown; {nearest(str(value), map(str, rule['enum']))}")
    elif not _in_range(value, rule):
        yield Mistake(at, value, f"expected {say(rule)}")


def _in_table(value: dict[str, Any], rule: Schema, at: str) -> Iterator[Mistake]:
    known = rule["properties"]
    for key, inner in value.items():
        name = key if _PLAIN.fullmatch(key) else show(key)
        place = f"{at}.{name}" if at else name
        if key in known or rule["additionalProperties"]:
            yield from mistakes(inner, known.get(key, rule["additionalProperties"]), place)
        else:
            what = f"unknown key; {hint(key, known)}" if known else "there are no keys here"
            yield Mistake(place, UNSET, what)
    for key in rule.get("required", ()):
        if key not in value:
            place = f"{at}.{key}" if at else key
            yield Mistake(place, UNSET, f"missing; expected {say(known[key])}")
    if len(value) < rule.get("minProperties", 0):
        yield Mistake(at, UNSET, f"empty; expected at least one of {', '.join(known)}")


def _in_list(value: list[Any], rule: Schema, at: str) -> Iterator[Mistake]:
    if len(value) < rule.get("minItems", 0):
        many = f"{len(value)} values" if value else "empty"
        yield Mistake(at, value, f"{many}; expected {_count(rule)}: {say(rule['items'])}")
    if len(value) > rule.get("maxItems", len(value)):
        yield Mistake(at, value, f"{len(value)} values; expected {_count(rule)}")
    seen: set[tuple[bool, Any]] = set()
    for i, item in enumerate(value):
        yield from mistakes(item, rule["items"], f"{at}[{i}]")
        if rule.get("uniqueItems") and not isinstance(item, dict | list):
            if (isinstance(item, bool), item) in seen:  # as `same`
                yield Mistake(f"{at}[{i}]", item, "given twice")
            seen.add((isinstance(item, bool), item))


def typed(value: Any, rule: Schema) -> Any:
    """``value`` with strings from the command line as what ``rule`` wants: 8, 0.5, true."""
    if isinstance(value, list | tuple):
        return [typed(item, rule) for item in value]
    kinds = {branch.get("type") for branch in (rule, *rule.get("anyOf", ()))}
    if isinstance(value, str) and kinds & {"integer", "number"}:
        try:
            return int(value) if "integer" in kinds else float(value)
        except ValueError:
            return value  # the check says what is wrong with it
    if isinstance(value, str) and "boolean" in kinds:
        return {"true": True, "false": False}.get(value, value)
    return value


def same(a: Any, b: Any) -> bool:
    """Equality of TOML values: ``true`` is not 1."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _is(value: Any, rule: Schema) -> bool:
    kind = rule.get("type", "object")
    return isinstance(value, _KINDS[kind][0]) and isinstance(value, bool) == (kind == "boolean")


def _in_range(value: Any, rule: Schema) -> bool:
    if isinstance(value, str):
        return bool(re.search(rule.get("pattern", ""), value)) and len(value) >= rule.get(
            "minLength", 0
        )
    finite = isinstance(value, int) or math.isfinite(value)  # an int may be too large for a float
    return finite and all(fits(value, rule[k]) for k, (fits, _) in _BOUNDS.items() if k in rule)


# ------------------------------------------------------------------------------ the words


def say(rule: Schema) -> str:
    """What ``rule`` accepts, in words."""
    if "anyOf" in rule:
        parts = dict.fromkeys(say(branch) for branch in rule["anyOf"])
        single = [p for p in parts if not p.startswith("a list of")]
        lists = len(single) < len(parts)
        return " or ".join(single) + (", or a list of those" if lists else "")
    if "enum" in rule and len(rule["enum"]) <= 8:
        return "one of " + ", ".join(show(v) for v in rule["enum"])
    if rule["type"] == "array":
        return f"a list of: {say(rule['items'])}"
    words = "a known name" if "enum" in rule else _KINDS[rule["type"]][1]
    if "pattern" in rule:
        words = "the path of an .onnx or .pt2 file, 'timm/NAME', 'hf/FOLDER' or 'model.py:build'"
    if rule.get("minLength"):
        words = "a string that is not empty"
    if "examples" in rule:
        words = f"a string such as {show(rule['examples'][0])}"
    return words + _bounds(rule)


def _count(rule: Schema) -> str:
    """How many values a list of ``rule`` has."""
    least, most = rule.get("minItems", 0), rule.get("maxItems")
    if most is None:
        return "at least one"
    return str(least) if least == most else f"{least} to {most}"


def _bounds(rule: Schema) -> str:
    given = [k for k in _BOUNDS if k in rule and abs(rule[k]) not in (MAX_INT, MAX_NUMBER)]
    figures = (str(rule[k]) if isinstance(rule[k], int) else f"{rule[k]:g}" for k in given)
    return "".join(f", {_BOUNDS[k][1]} {n}" for k, n in zip(given, figures, strict=True))


def show(value: Any) -> str:
    """``value`` as TOML would write it, on one line, at most 80 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=True, default=str)
    except (TypeError, ValueError, RecursionError):
        text = str(type(value))
    text = escape.visible("".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text))
    return text if len(text) <= 80 else text[:77] + "..."


def hint(key: str, known: Iterable[str]) -> str:
    """What a key that is not ``known`` may have meant."""
    return f"it is called {RENAMED[key]} now" if key in RENAMED else nearest(key, known)


def nearest(word: str, known: Iterable[str]) -> str:
    """'did you mean "x"?' with what is known, shortened when there is much of it."""
    names, word = list(known), word[:200]
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(
        word.lower(), lower, n=3 if len(names) > 20 else 1, cutoff=0.55
    )
    hint = f"did you mean {' or '.join(show(lower[c]) for c in close)}? " if close else ""
    tail = f"{len(names)} names" if len(names) > 20 else ", ".join(names) or "none"
    return f"{hint}(known: {tail})"

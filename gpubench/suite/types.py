"""What to run: the suite, its axes, and the cells they expand into.

Reading and validating suite files is in `gpubench.suite.file`. Nothing here knows a backend: what
exists (names, options, models) comes in as a `Catalog`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Precision = Literal["fp32", "tf32", "fp16", "bf16", "amp", "int8"]
Scenario = Literal["latency", "throughput"]
Boundary = Literal["compute", "transfer", "pipeline"]
Loader = Literal["auto", "threads", "processes"]
Input = Literal["float32", "float16", "uint8"]
Dispatch = Literal["independent", "static", "dynamic"]
Caches = Literal["warm", "rotating", "cold"]
Sharing = Literal["auto", "mps", "time-slicing"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Channels = Literal["rgb", "bgr", "grey"]
Layout = Literal["NCHW", "NHWC"]
OptionValue = bool | int | float | str
When = dict[str, tuple[OptionValue, ...]]

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
MOST_S = 604_800
"""A week, and below what the operating system's timers take (2**31 ms)."""
MOST_REPEATS, MOST_IMAGES = 1000, 100_000
MOST_ALPHA = 0.2
"""Chance of a false alarm."""
MOST_SAMPLES = 10_000_000
"""Of one repeat: each is a number in the record."""
Seconds = Annotated[float, Meta(gt=0, le=MOST_S)]
Repeats = Annotated[int, Meta(ge=1, le=MOST_REPEATS)]
Samples = Annotated[int, Meta(ge=1, le=MOST_SAMPLES)]


MIN_SAMPLES = 5
"""Samples of a repeat, however long one takes, unless `Policy.max_samples` are fewer."""
MIN_BLOCKS = 10
"""Of throughput, where a block holds several batches, and of latency where they do not take much
longer; with fewer samples, or groups of them, nobody can tell whether the machine was steady."""


def weights_file(weights: str) -> tuple[str, str]:
    """``weights`` that are a file's: its path, and which of its dicts is taken; '': what fits.

    'last.ckpt#model_ema' is the dict ``model_ema`` in last.ckpt. The name of a file that is there
    may itself hold a '#'.
    """
    path, mark, key = weights.rpartition("#")
    return (path, key) if mark and not os.path.lexists(weights) else (weights, "")


_FILES = {".onnx": "onnx", ".pt2": "pt2", ".cloudpickle": "cloudpickle"}
_CODE = re.compile(r"(?:.*\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):[^\W\d]\w*")
_UNNAMED = ("", "code", "digits", "torchvision", *_FILES.values())
"""Sources whose models are written without their name in front."""


def source_of(model: str) -> str:
    """Which source has ``model``, by how it is written: 'onnx', 'code', 'timm', ...; '': a name."""
    file = next((kind for ending, kind in _FILES.items() if model.endswith(ending)), "")
    code = "code" if _CODE.fullmatch(model) else ""
    named = model.partition("/")[0] if "/" in model else ""
    return file or code or ("" if named in _UNNAMED else named)


def model_path(model: str) -> str:
    """The file or folder that ``model`` names, or may name ('hf/...'); '': none."""
    kind = source_of(model)
    if kind == "code":
        return model.rpartition(":")[0] if model.rpartition(":")[0].endswith(".py") else ""
    return model if kind in _FILES.values() else model[3:] if kind == "hf" else ""


_BY_CONTENT = re.compile(r".*/([^/]+-[0-9a-f]{12}\.cloudpickle|images-[0-9a-f]{12}(?:/[^/]+)?)")
"""Live models and pictures that a run was given: named by what they hold, wherever that lies."""


def title(model: str) -> str:
    """``model`` for people: of a live one its class and its digest, not the run that keeps it."""
    return _BY_CONTENT.sub(r"\1", model).removesuffix(".cloudpickle")


_KEPT = r"([^/\s]+)-[0-9a-f]{12}\.cloudpickle"
_LIVE = re.compile(rf"'[^'\n]*/{_KEPT}'|\"[^\"\n]*/{_KEPT}\"|\S*/{_KEPT}")


def told(text: str) -> str:
    """``text`` in which live models are called as who holds them knows them: Net (live)."""
    return _LIVE.sub(lambda found: f"{found[found.lastindex or 0]} (live)", text)


def with_path(model: str, path: str) -> str:
    """``model`` with another `model_path`."""
    before, _, after = model.rpartition(model_path(model))
    return f"{before}{path}{after}"


def default_weights(model: str) -> str:
    """Those of a model that the suite says none for."""
    kind = source_of(model)
    own = dict.fromkeys(_FILES.values(), "file") | dict.fromkeys(("code", "hf"), "DEFAULT")
    return own.get(kind, "probe")


class Preprocess(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a suite says of how a picture becomes the network's input; each in words: `schema.HELP`.

    None: as the weights, or the model's file, say; else as it is assumed.
    """

    size: tuple[Positive, ...] | None = None
    """(height, width), or one for both."""
    resize: Positive | None = None
    crop: bool | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    """For each channel, or one for all; as ``std``."""
    std: tuple[float, ...] | None = None
    range: tuple[float, float] | None = None
    channels: Channels | None = None
    layout: Layout | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """Names of what it says."""
        return tuple(k for k, v in msgspec.structs.asdict(self).items() if v is not None)

    def plain(self, key: str) -> Any:
        """What it says of ``key``, as a suite would: 0.5, "rgb", [224, 288]."""
        value = getattr(self, key)
        several = isinstance(value, tuple)
        return value[0] if several and len(value) == 1 else list(value) if several else value


class Workload(Struct, frozen=True, forbid_unknown_fields=True):
    """The work that every backend does: which network, which weights, which images."""

    model: str = "resnet18"
    weights: str = "probe"
    images: str = "digits"
    labels: str = ""
    """'': the images' source knows their labels, or none."""
    calibration: str = ""
    """Images that int8 is calibrated on, a folder; '': the training part of ``images``."""
    output: str = ""
    """Of a file or of own code, the output that has the answers; '': found by its shape."""
    preprocess: Preprocess | None = None
    arguments: tuple[tuple[str, OptionValue], ...] = ()
    """By name, of the callable that makes the network."""


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """How long to measure and when to stop. Times in seconds; each in words: `schema.HELP`."""

    repeats: Repeats = 3
    """The pilot of the two-stage stopping rule."""
    max_repeats: Repeats = 3
    """Equal to ``repeats`` switches the second stage off."""
    target_half_width: Annotated[float, Meta(gt=0, lt=1)] = 0.02
    budget_s: Seconds = 600.0
    soak_s: Annotated[float, Meta(ge=0, le=MOST_S)] = 0.0
    warmup_iterations: Samples = 10
    warmup_s: Seconds = 0.3
    duration_s: Seconds = 1.0
    max_samples: Samples = 20_000
    block_s: Seconds = 0.25
    timeout_s: Seconds = 300.0
    prepare_timeout_s: Seconds = 1200.0
    parity_images: Annotated[int, Meta(ge=2, le=MOST_IMAGES)] = 32
    """At least two per batch slot."""
    max_relative_error: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    min_top1_agreement: Annotated[float, Meta(gt=0, le=1)] | None = None
    accuracy_images: Annotated[int, Meta(ge=0, le=MOST_IMAGES)] = 0
    min_accuracy: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_accuracy_drop: Annotated[float, Meta(ge=0, le=100)] | None = None
    min_pipeline_agreement: Annotated[float, Meta(gt=0, le=1)] = 0.9
    max_latency: Annotated[
        str,
        Meta(pattern=r"^((p\d\d?(\.\d\d?)?=)?\d+(\.\d+)?(ns|us|ms|s))?$", examples=["p99=20ms"]),
    ] = ""
    """As `gpubench.suite.goal.max_latency` reads it; '': none."""
    seed: Natural = 0


class Rule(Struct, frozen=True, kw_only=True):
    """How an interleaved A/B is judged. Effects are ratios of cost; 0.02 is 2 %.

    Records of earlier versions name what is not there any more; they are judged by this one.
    """

    delta: Annotated[float, Meta(gt=0, lt=1)] = 0.02
    """Differences up to this much do not matter."""
    alpha: Annotated[float, Meta(gt=0, le=MOST_ALPHA)] = 0.01
    """Chance of any false REGRESSED or IMPROVED in the whole suite."""
    looks: Annotated[tuple[Annotated[int, Meta(ge=4, le=500)], ...], Meta(min_length=1)] = (
        7, 9, 13, 19, 28, 41, 60, 90, 120,
    )  # fmt: skip
    """Numbers of pairs of a cell at which it is looked at, ascending; the last is the most."""
    metrics: tuple[tuple[str, Annotated[float, Meta(ge=0, lt=1)]], ...] = ()
    """What is judged beside speed, and its margin: see `gpubench.suite.gate`."""

    def __post_init__(self) -> None:
        if list(self.looks) != sorted({*self.looks}):
            raise ValueError(f"looks must ascend, not {list(self.looks)}")


class Cell(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One point of the grid. Two cells are the same cell exactly when their ``key`` is."""

    backend: str
    device: Literal["cpu", "cuda"]
    model: str
    weights: str
    images: str
    precision: Precision
    batch_size: Positive
    """Images per ``run()``, per replica."""
    replicas: Positive
    cores: Natural
    """CPU cores that one replica owns (pinned, disjoint); 0 on CUDA: not pinned."""
    scenario: Scenario
    boundary: Boundary
    options: dict[str, OptionValue] = {}
    replicas_per_device: Positive = 1
    """Replicas that share one GPU, or one set of ``cores``: replica i runs on device i // this."""
    sharing: Sharing = "auto"
    """How replicas share a GPU; auto: through MPS where its daemon runs, else in turns."""
    dispatch: Dispatch = "independent"
    """How replicas share a job of many batches."""
    decoder: str = "pil"
    """Boundary ``pipeline``: what turns encoded bytes into the network's input."""
    loader: Loader = "auto"
    """Boundary ``pipeline``: what prefetches; auto measures both first and takes threads where
    they are clearly faster."""
    loader_cores: Natural = 0
    """Of the replica's ``cores``, those that prefetch; 0: shared out by measurement."""
    cache: Caches = "warm"
    """Latency at boundary ``compute``: what the caches hold when a batch begins."""
    input: Input = "float32"
    """What the host gives; other than float32, the network itself makes what it takes of it."""
    labels: str = ""
    calibration: str = ""
    output: str = ""
    preprocess: Preprocess | None = None
    arguments: tuple[tuple[str, OptionValue], ...] = ()

    @property
    def key(self) -> str:
        """Twelve hex digits of the SHA-256 of the cell's canonical JSON.

        Fields that came later count only where they differ from their default, so that a cell keeps
        the key it had; and of what is named by its content only the name.
        """
        return _key(msgspec.json.encode(self))

    @property
    def label(self) -> str:
        """Short and unambiguous within a suite: 'onnxruntime fp32 b8 x2 latency'."""
        words = [word for word, unsaid in self.words if word != unsaid]
        return " ".join(words + [f"{k}={v}" for k, v in sorted(self.options.items())])

    @property
    def words(self) -> list[tuple[str, str]]:
        """The label's, but for options, each with what goes without saying; as many of any cell."""
        path = ("no decoder", "auto", "0 loading")
        if self.boundary == "pipeline":
            path = (self.decoder, self.loader, f"{self.loader_cores} loading")
        said = (self.backend, self.precision, f"b{self.batch_size}", f"x{self.replicas}",
                f"{self.replicas_per_device}/device", self.sharing, self.scenario, self.boundary,
                f"{self.cache} cache", f"{self.input} input", self.dispatch, *path)  # fmt: skip
        return list(zip(said, _UNSAID, strict=True))

    def chosen(self, options: Iterable[Option]) -> dict[str, OptionValue]:
        """All ``options`` of its backend, with the default where it does not say."""
        return {option.name: option.default for option in options} | self.options

    @property
    def workload(self) -> Workload:
        """The workload this cell runs."""
        return msgspec.convert(self, Workload, from_attributes=True)

    @property
    def total_batch(self) -> int:
        """Images in flight over all replicas: what strong scaling holds fixed."""
        return self.batch_size * self.replicas

    @property
    def devices(self) -> int:
        """GPUs, or disjoint sets of cores, that its replicas need."""
        return -(-self.replicas // self.replicas_per_device)


_UNSAID = ("", "", "", "", "1/device", "auto", "", "compute", "warm cache", "float32 input",
           "independent", "no decoder", "auto", "0 loading")  # fmt: skip
_LATER = {
    field.name: msgspec.json.decode(msgspec.json.encode(field.default))
    for field in msgspec.structs.fields(Cell)
    if field.default is not msgspec.NODEFAULT
}


@lru_cache(maxsize=1 << 16)
def _key(encoded: bytes) -> str:
    """Hashing costs ten times as much as encoding, and a run asks for the same keys again."""
    said = msgspec.json.decode(encoded)
    for name, default in _LATER.items():
        if said[name] == default:
            del said[name]
    for name in {"model", "images", "labels"} & said.keys():
        said[name] = _BY_CONTENT.sub(r"\1", said[name])
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()[:12]


class Option(Struct, frozen=True, kw_only=True):
    """One per-backend option: its type, range and default, declared by the backend."""

    name: str
    kind: Literal["bool", "int", "float", "str"]
    default: OptionValue
    help: str
    choices: tuple[OptionValue, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    search: tuple[OptionValue, ...] = ()
    """Values that `gpubench tune` tries, the default among them; (): it leaves the option alone."""
    when: When = {}
    """When it has an effect: fields of the cell (device, precision, scenario, boundary) or other
    options of the same backend, and the values that they must have. {}: always."""

    @classmethod
    def flag(
        cls, name: str, words: str, *, default: bool = False, searched: bool = True, **rest: Any
    ) -> Option:
        """On or off; ``searched``: both are tried."""
        search = (default, not default) if searched else ()
        return cls(name=name, kind="bool", default=default, help=words, search=search, **rest)

    @classmethod
    def choice(cls, name: str, words: str, choices: tuple[str, ...], **rest: Any) -> Option:
        """One of ``choices``, by default the first."""
        first = choices[0]
        return cls(name=name, kind="str", default=first, choices=choices, help=words, **rest)

    @classmethod
    def whole(cls, name: str, words: str, default: int, minimum: int = 0, **rest: Any) -> Option:
        """A whole number."""
        return cls(name=name, kind="int", default=default, minimum=minimum, help=words, **rest)


class Catalog(Struct, frozen=True):
    """What a suite may name on this installation."""

    backends: dict[str, tuple[Option, ...]]
    models: tuple[str, ...]
    """Empty: not known, as what has them is not installed."""
    decoders: tuple[str, ...] = ("pil",)


class Axes(Struct, frozen=True, forbid_unknown_fields=True):
    """The values of every axis; the grid is their product less the exclusions.

    Each in words: `schema.HELP`.
    """

    backend: tuple[str, ...]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: tuple[Precision, ...] = ("fp32",)
    batch_size: tuple[Positive, ...] = (1,)
    replicas: tuple[Positive, ...] = (1,)
    replicas_per_device: tuple[Positive, ...] = (1,)
    sharing: tuple[Sharing, ...] = ("auto",)
    cores: Natural = 0
    scenario: tuple[Scenario, ...] = ("latency", "throughput")
    boundary: tuple[Boundary, ...] = ("compute",)
    dispatch: tuple[Dispatch, ...] = ("independent",)
    decoder: tuple[str, ...] = ("pil",)
    loader: tuple[Loader, ...] = ("auto",)
    loader_cores: tuple[Natural, ...] = (0,)
    input: tuple[Input, ...] = ("float32",)
    cache: tuple[Caches, ...] = ("warm",)
    options: dict[str, dict[str, tuple[OptionValue, ...]]] = {}


class Suite(Struct, frozen=True, kw_only=True):
    """A validated suite. ``exclude`` drops each cell that matches all pairs of one of its rules."""

    name: str
    description: str = ""
    workload: Workload
    axes: Axes
    policy: Policy
    exclude: tuple[dict[str, OptionValue], ...] = ()
    baseline: str
    """The backend that speed-ups are relative to."""
    gate: dict[str, float] = {}
    """Metric -> margin, as the suite says it: see `gpubench.suite.gate`."""

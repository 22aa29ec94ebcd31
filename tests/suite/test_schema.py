"""Bad suites: every mistake is named with its place, the value and what is expected."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpubench.errors import SuiteError
from gpubench.measure import protocol
from gpubench.suite import file, schema, toml_file, types
from gpubench.suite.types import Axes, Catalog, Option, Policy, Workload

CATALOG = Catalog(
    backends={
        "eager": (
            Option(name="graph", kind="bool", default=False, help="Capture a graph."),
            Option(
                name="layout",
                kind="str",
                default="contiguous",
                help="Memory format.",
                choices=("contiguous", "channels_last"),
            ),
        ),
        "other": (Option(name="streams", kind="int", default=0, help="n", minimum=0, maximum=64),),
        "null": (),
    },
    models=("resnet18", "resnet50", "vit_b_16"),
)


def test_help_says_how_many_samples_a_repeat_has_at_least() -> None:
    """What `measure.protocol` takes them from says it too."""
    said = schema.HELP["duration_s"]
    assert f"{types.MIN_SAMPLES} samples" in said
    assert f"{types.MIN_BLOCKS} blocks" in said
    assert f"four times as long for {types.MIN_BLOCKS} samples" in said
    assert protocol.PATIENCE == 4
    detail = Path("docs/how-it-measures.md").read_text()
    assert f"at least {types.MIN_SAMPLES} samples, or {types.MIN_BLOCKS} blocks" in detail


def axes(extra: str = "", backend: str = '"null"') -> str:
    return f"[axes]\nbackend = {backend}\n{extra}\n"


def eager(options: str) -> str:
    return axes(f"[axes.options.eager]\n{options}", '["eager"]')


def policy(text: str) -> str:
    return f"{axes()}[policy]\n{text}"


def work(text: str) -> str:
    return f"{axes()}[workload]\n{text}"


def rule(text: str) -> str:
    return f"{axes()}[[exclude]]\n{text}"


HUNDRED = list(range(1, 102))

# text, then fragments that the message must have; the schema alone rejects these ...
WRONG_BY_SCHEMA = [
    ("", "axes: missing", "a table"),
    ("[axes]\n", "axes.backend: missing", '"null"'),
    ("polcy = 1\n" + axes(), "polcy: unknown key", 'did you mean "policy"?'),
    (
        axes() + "[policy]\nsample_s = 1\nduration_s = 1",
        "policy.sample_s: unknown key",
        "called duration_s now",
    ),
    ("axes = 3", "axes = 3", "a table"),
    ("workload = 'x'\n" + axes(), 'workload = "x"', "a table"),
    ('baseline = "nul"\n' + axes(), 'baseline = "nul"', '"null"'),
    ("description = 1\n" + axes(), "description = 1", "a string"),
    (axes("batchsize = 1"), "axes.batchsize: unknown key", '"batch_size"'),
    (axes("", '"othr"'), 'axes.backend = "othr": unknown', 'did you mean "other"?'),
    (axes("", '["null", "x"]'), 'axes.backend[1] = "x": unknown', "known: eager, null, other"),
    (axes("", "[]"), "axes.backend = []", "empty"),
    (axes('precision = "fp61"'), 'axes.precision = "fp61"', '"fp16"'),
    (axes('precision = "FP16"'), 'axes.precision = "FP16"', 'did you mean "fp16"?'),
    (axes('scenario = "lateny"'), '"lateny"', '"latency"'),
    (axes('boundary = "pipelines"'), '"pipelines"', "compute, transfer"),
    (axes('device = "gpu"'), 'axes.device = "gpu"', "auto, cpu, cuda"),
    (axes('device = ["cpu"]'), 'axes.device = ["cpu"]', 'one of "auto"'),
    (axes("batch_size = []"), "axes.batch_size = []", "empty", "whole number"),
    (axes("batch_size = 0"), "axes.batch_size = 0", "at least 1"),
    (axes("batch_size = [1, -8]"), "axes.batch_size[1] = -8", "at least 1"),
    (axes(f"batch_size = 1{'0' * 30}"), "axes.batch_size = 1000", "at most 65536"),
    (axes("batch_size = 1.5"), "axes.batch_size = 1.5", "a whole number", "or a list of those"),
    (axes("batch_size = true"), "axes.batch_size = true", "a whole number"),
    (axes("batch_size = [true]"), "axes.batch_size[0] = true", "a whole number"),
    (axes('batch_size = "8"'), 'axes.batch_size = "8"', "a whole number"),
    (axes("batch_size = 2020-01-01"), "2020-01-01", "a whole number"),
    (axes("batch_size = [1, 8, 1]"), "axes.batch_size[2] = 1", "given twice"),
    (axes("replicas = 0"), "axes.replicas = 0", "at least 1"),
    (axes("cores = -1"), "axes.cores = -1", "at least 0"),
    (axes("[axes.options.othr]"), "axes.options.othr: unknown key", '"other"'),
    (axes("[axes.options.null]\nx = 1"), "axes.options.null.x", "no keys here"),
    (eager("graf = true"), "axes.options.eager.graf: unknown key", '"graph"'),
    (eager("graph = 1"), "axes.options.eager.graph = 1", "true or false"),
    (eager("layout = 'channel_last'"), '"channel_last"', 'did you mean "channels_last"?'),
    (axes("[axes.options.other]\nstreams = [1, 65]"), "options.other.streams[1] = 65", "most 64"),
    (work("modle = 'x'"), "workload.modle: unknown key", '"model"'),
    (work("model = 'resnet19'"), 'workload.model = "resnet19"', '"resnet18"'),
    (work("weights = ''"), 'workload.weights = ""', "not empty"),
    (work("weights = 3"), "workload.weights = 3", "a string"),
    (policy("repeat = 1"), "policy.repeat: unknown key", '"repeats"'),
    (policy("repeats = 0"), "policy.repeats = 0", "at least 1"),
    (policy("repeats = 2147483647"), "policy.repeats = 2147483647", "at most 1000"),
    (policy("max_repeats = 1001"), "policy.max_repeats = 1001", "at most 1000"),
    (policy("parity_images = 1000000"), "policy.parity_images = 1000000", "at most 100000"),
    (policy("accuracy_images = 100001"), "policy.accuracy_images", "at most 100000"),
    (policy("max_samples = 100000000"), "policy.max_samples", "at most 10000000"),
    (policy("warmup_iterations = 100000000"), "policy.warmup_iterations", "at most 10000000"),
    (policy("timeout_s = 2147484"), "policy.timeout_s = 2147484", "at most 604800"),
    (policy("prepare_timeout_s = 1e8"), "policy.prepare_timeout_s", "at most 604800"),
    (policy("repeats = true"), "policy.repeats = true", "a whole number"),
    (policy("duration_s = 0"), "policy.duration_s = 0", "above 0"),
    (policy("duration_s = inf"), "policy.duration_s = Infinity", "a number"),
    (policy("target_half_width = 1"), "policy.target_half_width = 1", "below 1"),
    (policy("min_top1_agreement = 1.1"), "policy.min_top1_agreement = 1.1", "at most 1"),
    (policy("seed = -1"), "policy.seed = -1", "at least 0"),
    (policy('max_latency = "20"'), 'policy.max_latency = "20"', 'such as "p99=20ms"'),
    (axes() + "[exclude]\nreplicas = 1", "exclude = ", "a list"),
    (rule("replica = 1"), "exclude[0].replica: unknown key", '"replicas"'),
    (rule(""), "exclude[0]: empty"),
    (rule("device = 'auto'"), 'exclude[0].device = "auto"', "cpu, cuda"),
    (
        work("model = 'w.pt'"),
        'workload.model = "w.pt"',
        "only those called .onnx",
        "as weights",
        "--model resnet50 --weights FILE",
        "torch.export",
    ),
    (
        work("model = 'A.ONNX'"),
        'workload.model = "A.ONNX"',
        "only those called .onnx or .pt2, in small",
    ),
    (rule("graph = 1"), "exclude[0].graph = 1", "true or false"),
]
# ... and these need more than a schema.
WRONG_OTHERWISE = [
    ('baseline = "other"\n' + axes(), 'baseline = "other"', "not measured", "known: null"),
    (axes("[axes.options.other]"), "axes.options.other", "axes.backend does not name it"),
    (axes(f"batch_size = {HUNDRED}\nreplicas = {HUNDRED}"), "axes: more than 10,000"),
    (rule(f"batch_size = {HUNDRED}\nreplicas = {HUNDRED}"), "exclude: more than 1,000"),
    (rule("batch_size = 3"), 'exclude[0] = {"batch_size": 3}', "matches no cell"),
    (rule("scenario = 'latency'\nbatch_size = [1, 2]"), '"batch_size": 2}', "matches no cell"),
    (rule("streams = 1"), 'exclude[0] = {"streams": 1}', "matches no cell"),
    (rule("batch_size = 1"), "exclude: the rules leave no cell"),
    (work("weights = 'prob'"), 'workload.weights = "prob"', 'did you mean "probe"?'),
    (work("weights = 'PROBE'"), 'workload.weights = "PROBE"', 'did you mean "probe"?'),
    (work("weights = 'no/w.pt'"), 'workload.weights = "no/w.pt"', "no such file"),
    (work(f"weights = '{'x' * 5000}'"), "workload.weights", "no such file"),
    (work("weights = 'file'"), 'workload.weights = "file"', "only for an .onnx or .pt2 model"),
    (work("images = 'digit'"), 'workload.images = "digit"', 'did you mean "digits"?'),
    (work("images = './no'"), 'workload.images = "./no"', "no such folder"),
    (work("model = 'a.onnx'"), "workload.model", "there is no such file"),
    (policy("duration_s = nan"), "policy.duration_s = NaN", "a number"),
    (policy("repeats = 5\nmax_repeats = 4"), "policy.max_repeats = 4", "which is 5"),
    (policy("timeout_s = 1"), "policy.timeout_s = 1.0", "warmup_s + duration_s = 1.3"),
    (policy("repeats = \n"), "not valid TOML", "line 5"),
    (axes("cores = 1\ncores = 2"), "not valid TOML", "line 4"),
    (axes(f"cores = {'9' * 5000}"), "not valid TOML"),
    (f"x = {'[' * 5000}", "not valid TOML"),
]


def _id(value: Any) -> str:
    return str(value[0])[-40:] if isinstance(value, tuple) else str(value)


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    rules = file.schema(CATALOG)
    jsonschema.Draft7Validator.check_schema(rules)
    return jsonschema.Draft7Validator(rules)


@pytest.mark.parametrize("case", WRONG_BY_SCHEMA + WRONG_OTHERWISE, ids=_id)
def test_bad_suites(tmp_path: Path, case: tuple[str, ...]) -> None:
    text, *fragments = case
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SuiteError) as caught:
        file.load(str(path), CATALOG)
    message = str(caught.value)
    assert str(path) in message
    assert [f for f in fragments if f not in message] == [], message
    assert "\n" not in message  # one mistake, one line
    assert len(message) - len(str(path)) < 400


@pytest.mark.parametrize("case", WRONG_BY_SCHEMA, ids=_id)
def test_an_editor_rejects_them_too(
    validator: jsonschema.Draft7Validator, case: tuple[str, ...]
) -> None:
    data = tomllib.loads(case[0])
    assert not validator.is_valid(data)
    assert list(schema.mistakes(data, file.schema(CATALOG)))


@pytest.mark.parametrize("case", WRONG_OTHERWISE[:-4], ids=_id)
def test_what_an_editor_cannot_know_is_listed_as_such(
    validator: jsonschema.Draft7Validator, case: tuple[str, ...]
) -> None:
    assert validator.is_valid(tomllib.loads(case[0]))


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(axes('batch_size = [0, 1]\nprecision = "fp23"') + "[policy]\nseeds = 1")
    with pytest.raises(SuiteError) as caught:
        file.load(str(path), CATALOG)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("mine.toml has 3 mistakes:")
    assert [line.split()[0] for line in lines] == [
        "axes.batch_size[0]",
        "axes.precision",
        "policy.seeds:",
    ]


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"a = '\xff\xfe'")
    with pytest.raises(SuiteError, match=r"binary\.toml: not UTF-8 text: byte 5 is 0xff"):
        file.load(str(path), CATALOG)
    path.write_bytes(b"#" * (toml_file.MAX_BYTES + 1))
    with pytest.raises(SuiteError, match="larger than"):
        file.load(str(path), CATALOG)
    path.write_bytes(b"\xef\xbb\xbf" + axes().encode())  # an editor's byte-order mark
    assert file.load(str(path), CATALOG).axes.backend == ("null",)


def test_a_model_that_is_there_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "dir.onnx").mkdir()
    (tmp_path / "link.onnx").symlink_to("gone")
    for name, why in (("dir", "a folder, not a file"), ("link", "a link to a file that is not")):
        path = tmp_path / "mine.toml"
        path.write_text(work(f'model = "{name}.onnx"'))
        with pytest.raises(SuiteError, match=why):
            file.load(str(path), CATALOG)


def test_probe_with_an_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    path = tmp_path / "mine.toml"
    path.write_text(work('model = "net.onnx"\nweights = "probe"'))
    with pytest.raises(SuiteError, match=r'workload\.weights = "probe": an \.onnx file brings'):
        file.load(str(path), CATALOG)


def test_terminal_escapes_in_a_value_are_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(axes('precision = "\\u001b[31m"'))
    with pytest.raises(SuiteError) as caught:
        file.load(str(path), CATALOG)
    assert "\x1b" not in str(caught.value)


def test_every_key_is_described() -> None:
    sections = file.schema(CATALOG)["properties"]
    for name, struct in (("policy", Policy), ("workload", Workload), ("axes", Axes)):
        keys = sections[name]["properties"]
        assert keys.keys() == set(struct.__struct_fields__)
        assert [key for key, value in keys.items() if not value["description"]] == []
    options = sections["axes"]["properties"]["options"]["properties"]
    assert options["eager"]["properties"]["graph"]["description"] == "Capture a graph."


def test_many_names_are_not_listed() -> None:
    text = schema.nearest("model_7x", [f"model_{i}" for i in range(80)])
    assert "80 names" in text
    assert '"model_7"' in text
    assert len(text) < 120

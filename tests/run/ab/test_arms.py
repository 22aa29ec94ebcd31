"""What an A/B may differ in, and which cells belong together."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gpubench.cli import options
from gpubench.errors import InputError, SuiteError
from gpubench.run.ab import arms
from gpubench.suite import file
from gpubench.suite.types import Axes, Catalog, Option, Preprocess
from tests.measure.virtual import make_cell


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("backend", "expected KEY=VALUE"),
        ("=x", "expected KEY=VALUE"),
        ("backend=", "expected KEY=VALUE"),
        ("backend=a,backend=b", "given twice"),
        ("scenario=latency", "must be the same in both arms"),
        ("images=photos", "must be the same in both arms.*; use --images"),
        ("labels=x.csv", "answer different questions; use --labels"),
        ("cores=2", "must be the same in both arms.*; set axes.cores in the suite"),
    ],
)
def test_bad_specs_are_named(text: str, words: str) -> None:
    with pytest.raises(SuiteError, match=words):
        arms.parse("--candidate", [text])


def test_specs_add_up() -> None:
    spec = arms.parse("--baseline", ["backend=onnxruntime, precision=fp32", "threads=2"])
    assert spec.values == {"backend": "onnxruntime", "precision": "fp32", "threads": "2"}
    assert spec.words == "backend=onnxruntime,precision=fp32,threads=2"


def test_a_value_may_be_a_list() -> None:
    spec = arms.parse("--baseline", ["preprocess.mean=[0.1, 0.2,0.3],arguments.depth=2"])
    assert spec.values == {"preprocess.mean": "[0.1, 0.2,0.3]", "arguments.depth": "2"}


def test_what_a_deployment_is_cannot_be_asked_for(tmp_path: Path) -> None:
    spec = arms.parse("--baseline", [f"deployment={tmp_path},precision=bf16"])
    with pytest.raises(SuiteError, match="precision is the deployment's own"):
        arms.opened(spec)
    with pytest.raises(InputError, match=r"^--baseline deployment=.*gpubench deploy"):
        arms.opened(arms.parse("--baseline", [f"deployment={tmp_path}"]))


def test_decoders_are_told_apart() -> None:
    """An arm may have both, and may be one of them."""
    both = [make_cell(boundary="pipeline", decoder=name) for name in ("pil", "turbo")]
    assert len(arms.match(*specs("batch_size=1", "batch_size=1"), both, both)) == 2
    [pair] = arms.match(*specs("decoder=pil", "decoder=turbo"), both[:1], both[1:])
    assert [cell.decoder for cell in pair] == ["pil", "turbo"]


def test_arms_may_differ_in_every_axis_and_each_has_a_flag() -> None:
    axes = {field.name for field in msgspec.structs.fields(Axes)} - {"options"}
    assert {*arms.AXES} | (axes & {*arms.SAME}) == axes
    flags = {name.removeprefix("--").replace("-", "_") for name, _ in options.SELECTION}
    assert axes - flags == {"cores", "loader_cores"}  # of machines with many cores, in a file
    warm, cold = make_cell(), make_cell(cache="cold")
    assert arms.match(*specs("cache=warm", "cache=cold"), [warm], [cold]) == [(warm, cold)]


def specs(baseline: str, candidate: str) -> tuple[arms.Spec, arms.Spec]:
    return arms.parse("--baseline", [baseline]), arms.parse("--candidate", [candidate])


def test_cells_that_are_equal_but_for_the_spec_are_matched() -> None:
    before = [make_cell(backend="a", batch_size=b, options={"x": 1}) for b in (1, 2, 4)]
    after = [make_cell(backend="b", batch_size=b) for b in (4, 2)]
    found = arms.match(*specs("backend=a", "backend=b"), before, after)
    assert [(b.batch_size, c.batch_size) for b, c in found] == [(4, 4), (2, 2)]


def test_options_must_agree_unless_they_are_named_or_the_backend_is() -> None:
    before = [make_cell(options={"x": 1, "y": y}) for y in (1, 2)]
    after = [make_cell(options={"x": 2, "y": y}) for y in (2, 1)]
    found = arms.match(*specs("x=1", "x=2"), before, after)
    assert [(b.options["y"], c.options["y"]) for b, c in found] == [(2, 2), (1, 1)]


@pytest.mark.parametrize("batch_sizes", [(1, 2), (2, 4)])
def test_cores_follow_from_replicas_and_from_the_device(batch_sizes: tuple[int, ...]) -> None:
    before = [make_cell(replicas=1, cores=2, batch_size=b) for b in batch_sizes]
    after = [make_cell(replicas=2, cores=1, batch_size=b) for b in reversed(batch_sizes)]
    found = arms.match(*specs("replicas=1", "replicas=2"), before, after)
    assert [(b.batch_size, c.batch_size) for b, c in found] == [(b, b) for b in batch_sizes[::-1]]
    after = [make_cell(device="cuda", cores=0, batch_size=b) for b in batch_sizes]
    found = arms.match(*specs("device=cpu", "device=cuda"), before, after)
    assert [(b.batch_size, c.batch_size) for b, c in found] == [(b, b) for b in batch_sizes]


def test_cores_must_agree_otherwise() -> None:
    before, after = make_cell(backend="a", cores=1), make_cell(backend="b", cores=2)
    with pytest.raises(SuiteError, match="no cell in common"):
        arms.match(*specs("backend=a", "backend=b"), [before], [after])


def test_a_choice_is_refused() -> None:
    before = [make_cell(backend="a"), make_cell(backend="b")]
    after = [make_cell(backend="c")]
    with pytest.raises(SuiteError, match=r"leaves a choice between 'a fp32.*and 'b fp32"):
        arms.match(*specs("precision=fp32", "backend=c"), before, after)


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(SuiteError, match="no cell in common"):
        arms.match(
            *specs("backend=a", "backend=b"),
            [make_cell(backend="a", batch_size=1)],
            [make_cell(backend="b", batch_size=2)],
        )


CATALOG = Catalog(
    backends={
        "one": (Option(name="fast", kind="bool", default=False, help=""),),
        "two": (Option(name="level", kind="int", default=1, help="", minimum=0, maximum=3),),
    },
    models=("resnet18",),
)


def suite(tmp_path, spec: str, **chosen):  # type: ignore[no-untyped-def]
    path = tmp_path / "s.toml"
    path.write_text('[axes]\nbackend = ["one", "two"]\nscenario = "latency"\n'
                    "[axes.options.one]\nfast = [true, false]\n")  # fmt: skip
    draft = file.read(str(path), CATALOG)
    return arms.suite_of(arms.parse("--candidate", [spec]), draft, chosen)


def test_an_option_narrows_the_suite_to_the_backends_that_have_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = suite(tmp_path, "level=3")
    assert found.axes.backend == ("two",)
    assert found.axes.options["two"] == {"level": (3,)}
    assert suite(tmp_path, "fast=true,precision=bf16").axes.options["one"] == {"fast": (True,)}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nonsense=1", "^--candidate nonsense=1: nonsense='1': there is no such key"),
        ("level=9", "^--candidate level=9: .*level"),
        ("precision=fp7", "^--candidate precision=fp7: .*fp7"),
        ("preprocess.colour=1", r"^--candidate preprocess.colour=1: .*--preprocess colour"),
        ("preprocess=1", "there is no such key"),
        ("fast=true,level=1", "^--candidate fast=true,level=1: no backend has all of these"),
    ],
)
def test_impossible_specs_are_refused(tmp_path, spec: str, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SuiteError, match=words):
        suite(tmp_path, spec)


def test_the_network_may_differ(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "pictures").mkdir()
    words = f"calibration={tmp_path}/pictures,preprocess.mean=0.5,model=timm/x,arguments.depth=2"
    work = suite(tmp_path, words, preprocess={"size": 32}).workload
    assert (work.model, work.arguments) == ("timm/x", (("depth", 2),))
    assert work.calibration == f"{tmp_path}/pictures"
    assert work.preprocess == Preprocess(size=(32,), mean=(0.5,))


def test_a_mistake_of_both_arms_is_not_blamed_on_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SuiteError, match=r"^suite .*: --batch-size = 0"):
        suite(tmp_path, "level=3", batch_size=["0"])

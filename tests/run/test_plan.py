from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gpubench import plugins
from gpubench.backends.base import Device, Facts, Session
from gpubench.cache import Cache
from gpubench.cli import listings
from gpubench.errors import InputError, Unavailable
from gpubench.run import availability
from gpubench.run import plan as plan_module
from gpubench.run.availability import Lack
from gpubench.run.inventory import Node
from gpubench.run.plan import Durations, Plan, make, sampling_s, task_seconds
from gpubench.suite.types import Axes, Cell, Policy, Suite, Workload
from gpubench.workload.models import registry
from gpubench.workload.models.registry import Source
from tests.backends.onnx_files import HALF, colour_net
from tests.measure.virtual import make_cell

SUITE = Suite(
    name="s", workload=Workload(), axes=Axes(backend=("a",)), policy=Policy(), baseline="a"
)


class Stub:
    """A backend as the plan sees it."""

    name = summary = "stub"
    options = ()
    preload = ()
    casts_onnx = False

    def __init__(self, missing: bool = False, refuses: str = "", reads_onnx: bool = False) -> None:
        self._missing, self._refuses, self.reads_onnx = missing, refuses, reads_onnx

    def probe(self) -> Facts:
        if self._missing:
            raise Unavailable("not installed", "install it")
        return {}

    def unsupported(self, cell: Cell) -> str | None:
        return "no such precision" if cell.precision == self._refuses else None

    def prepare(self, cell: Cell, model: Any, cache: Any) -> Path:
        raise AssertionError

    def open(self, cell: Cell, artefact: Path, device: Device) -> Session:
        raise AssertionError


def plan(*cells: Cell, cores: int = 4, gpus: int = 0, **stub: Any) -> Plan:
    return make(SUITE, cells, {"fake": Stub(**stub)}, list(range(cores)), gpus)


def test_the_network_is_looked_at_before_a_time_is_promised(tmp_path: Path) -> None:
    """What its graph says of batch and precision; a file that is none is bad input at once."""
    file = str(colour_net(tmp_path / "net.onnx", (4, 3, 8, 8), HALF))

    def cell(**changes: Any) -> Cell:
        return make_cell(model=file, weights="file", precision="fp16", **changes)

    fits, other = cell(batch_size=4), cell(batch_size=1)
    found = plan(fits, other, replace(fits, precision="fp32"))
    assert found.cells == [fits]
    assert [(s.status, s.reason.partition("onnx' ")[2]) for s in found.skips] == [
        (
            "unsupported",
            "has a fixed batch size of 4, and cannot have 1: export it with an open one",
        ),
        ("unsupported", "is fp16: ask for that precision, or give another file for fp32"),
    ]
    Path(file).write_text("<html>404</html>")
    with pytest.raises(InputError, match="is a page of HTML"):
        plan(fits)


class Absent(Source):
    """What models come from, and is not installed."""

    name = "absent"

    def probe(self) -> dict[str, str]:
        raise Unavailable("timm is not installed", "pip install 'gpubench[timm]'")

    def look(self, workload: Workload) -> None:
        raise AssertionError

    def model(self, workload: Workload, cache: Cache) -> Any:
        raise AssertionError


def test_cells_of_a_network_whose_library_is_missing_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "of", lambda model: Absent())
    fine, odd = make_cell(), make_cell(precision="bf16")
    found = plan(fine, odd, refuses="bf16")
    assert {(s.status, s.reason, s.remedy) for s in found.skips} == {
        ("unavailable", "timm is not installed", "pip install 'gpubench[timm]'")
    }
    both = availability.lacks({"fake": Stub(missing=True)}, (), [fine.model])
    assert availability.extras(both) == ["timm"]  # of the other nothing is known
    assert len(both) == 2


@pytest.mark.parametrize(
    ("device", "backends", "decoders"),
    [
        ("cpu", ["torch-eager"], ["pil"]),
        ("cuda", ["tensorrt", "torch-eager"], ["dali", "pil"]),
    ],
)
def test_what_a_device_cannot_have_is_not_to_be_installed(
    device: str, backends: list[str], decoders: list[str]
) -> None:
    axes = Axes(backend=("torch-eager", "tensorrt"), decoder=("pil", "dali"), device=device,
                boundary=("pipeline",))  # fmt: skip
    found, decode, models = availability.of_use(replace(SUITE, axes=axes))
    assert ([*found], decode, models) == (backends, decoders, [SUITE.workload.model])


def test_models_that_cannot_be_listed_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "listed", lambda: False)
    monkeypatch.setattr(registry, "source", lambda _: Absent())
    monkeypatch.setattr(registry, "names", lambda: ("digits",))
    assert listings.models().plain == "digits"
    assert capsys.readouterr().err.endswith(
        "not listed: timm is not installed; pip install 'gpubench[timm]'\n"
    )


def test_a_backend_that_reads_onnx_needs_what_writes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = {"torch": "99", "torchvision": "99", "onnx": "99", "onnxscript": "0.3.0"}
    monkeypatch.setattr(plugins, "version", here.__getitem__)
    (skip,) = plan(make_cell(model="resnet18"), reads_onnx=True).skips
    assert skip.reason.startswith("onnxscript 0.3.0 is installed, and gpubench needs >=")
    assert skip.remedy.startswith("pip install 'onnxscript>=")
    assert plan(make_cell(model="resnet18")).cells
    file = str(colour_net(tmp_path / "net.onnx"))
    assert plan(make_cell(model=file, weights="file"), reads_onnx=True).cells


def test_a_name_is_not_known_to_be_wrong_where_torchvision_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "listed", lambda: False)
    assert availability.catalog().models == ()
    assert registry.of("resnet5O").name == "torchvision"
    with pytest.raises(InputError, match="unknown model 'nothing/x'"):
        registry.of("nothing/x")


def test_the_two_negatives_of_a_plan_are_told_apart() -> None:
    fine, odd = make_cell(), make_cell(precision="bf16")
    sorted_ = plan(fine, odd, refuses="bf16")
    assert sorted_.cells == [fine]
    assert [(s.status, s.reason) for s in sorted_.skips] == [("unsupported", "no such precision")]
    gone = plan(fine, missing=True)
    assert [(s.status, s.remedy) for s in gone.skips] == [("unavailable", "install it")]
    assert gone.planned == [fine]


def test_more_replicas_than_the_machine_holds_are_skipped_with_the_figures() -> None:
    [skip] = plan(make_cell(replicas=3, cores=2)).skips
    assert skip.reason == "3 replicas with 2 core(s) each need 6; usable: 4"
    assert skip.status == "unavailable"
    assert skip.remedy
    [skip] = plan(make_cell(replicas=1, cores=5)).skips
    assert skip.reason == "1 replica with 5 core(s) needs 5; usable: 4"
    [skip] = plan(make_cell(device="cuda", replicas=2, cores=0), gpus=1).skips
    assert skip.reason == "2 replicas need as many GPUs; visible: 1"


def test_replicas_that_share_a_device_need_fewer() -> None:
    six = make_cell(replicas=6, replicas_per_device=3, cores=2)
    assert plan(six).cells == [six]
    [skip] = plan(six, cores=3).skips
    assert skip.reason == "2 device(s) for 6 replicas with 2 core(s) each need 4; usable: 3"
    on_gpu = make_cell(device="cuda", replicas=6, replicas_per_device=3, cores=0)
    assert plan(on_gpu, gpus=2).cells == [on_gpu]
    [skip] = plan(on_gpu, gpus=1).skips
    assert "visible: 1" in skip.reason


def test_replicas_own_equal_disjoint_adjacent_cores() -> None:
    cell = make_cell(replicas=2, cores=2)
    assert plan(cell).cores_of(cell) == [(0, 1), (2, 3)]
    on_gpu = make_cell(device="cuda", replicas=2, cores=0)
    assert plan(on_gpu, gpus=2).cores_of(on_gpu) == [(), ()]
    shared = make_cell(replicas=3, replicas_per_device=2, cores=2)
    assert plan(shared).cores_of(shared) == [(0, 1), (0, 1), (2, 3)]


def test_every_round_has_its_own_order_and_the_seed_fixes_it() -> None:
    cells = [make_cell(batch_size=n) for n in range(1, 30)]
    first, again = plan(*cells), plan(*cells)
    assert first.round(0) == again.round(0) != first.round(1)
    assert sorted(c.batch_size for c in first.round(1)) == list(range(1, 30))


def test_a_known_duration_beats_the_guess(tmp_path: Path) -> None:
    cell, seen = make_cell(), Durations(tmp_path)
    big = make_cell(batch_size=64)
    assert task_seconds(big, Policy(), seen) > task_seconds(cell, Policy(), seen) > 1
    seen.note(cell, Policy(), 9.0)
    seen.save()
    again = Durations(tmp_path)
    assert task_seconds(cell, Policy(), again) == 9.0
    assert task_seconds(cell, Policy(duration_s=5), again) != 9.0


@pytest.mark.parametrize(
    ("cell", "policy", "seconds"),
    [
        ({}, {}, 1.0),
        ({"scenario": "throughput"}, {}, 2.5),
        ({"scenario": "throughput"}, {"max_samples": 5}, 1.25),
        ({"scenario": "throughput"}, {"duration_s": 3.0}, 3.0),
        ({"scenario": "throughput", "dispatch": "static"}, {}, 1.0),
    ],
)
def test_what_a_repeat_samples_at_least_is_in_the_estimate(
    cell: dict[str, Any], policy: dict[str, Any], seconds: float, tmp_path: Path
) -> None:
    one, asked = make_cell(device="cuda", **cell), Policy(**policy)
    assert sampling_s(one, asked) == seconds
    longer = task_seconds(one, replace(asked, duration_s=seconds + 2), Durations(tmp_path))
    assert longer - task_seconds(one, asked, Durations(tmp_path)) == pytest.approx(2)


@pytest.mark.parametrize(
    "junk", [b"[", b"[1]", b"\xff", b"[" * 100_000, b'{"%s": NaN}', b'{"%s": -1}', b'{"%s": 1e999}',
             b'{"%s": "x"}', b'{"%s": ' + b"9" * 400 + b"}"]
)  # fmt: skip
def test_durations_that_cannot_be_are_not_known(tmp_path: Path, junk: bytes) -> None:
    cell, seen = make_cell(), Durations(tmp_path)
    seen.note(cell, Policy(), 9.0)
    seen.save()

    def spoil(stored: bytes) -> bytes:
        [key] = json.loads(stored)
        return junk.replace(b"%s", key.encode())

    Cache(tmp_path).store(*plan_module._KEPT, spoil)
    assert Durations(tmp_path).get(cell, Policy()) is None


def test_runs_that_share_a_cache_keep_each_others_durations(tmp_path: Path) -> None:
    one, other = Durations(tmp_path), Durations(tmp_path)
    for seen, batch in ((one, 1), (other, 2)):
        seen.note(make_cell(batch_size=batch), Policy(), float(batch))
    one.save()
    other.save()
    both = Durations(tmp_path)
    assert [both.get(make_cell(batch_size=n), Policy()) for n in (1, 2)] == [1.0, 2.0]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_long_run_saves_durations_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are written anew, so once a task would be quadratic over a large plan."""
    seen = Durations(tmp_path)
    seen.note(make_cell(), Policy(), 1.0)
    assert Cache(tmp_path).info() == []
    monkeypatch.setattr(plan_module, "SAVE_EVERY_S", 0.0)
    seen.note(make_cell(), Policy(), 1.0)
    assert [usage.kind for usage in Cache(tmp_path).info()] == ["durations"]


def test_a_probe_that_raises_is_a_skip() -> None:
    class Broken(Stub):
        def probe(self) -> Facts:
            raise ZeroDivisionError("oops")

    [skip] = make(SUITE, [make_cell()], {"fake": Broken()}, [0], 0).skips
    assert skip.status == "unavailable"
    assert "oops" in skip.reason


def test_a_backend_that_raises_when_it_is_asked_about_a_cell_is_a_skip() -> None:
    class Broken(Stub):
        def unsupported(self, cell: Cell) -> str | None:
            raise ZeroDivisionError("oops")

    [skip] = make(SUITE, [make_cell()], {"fake": Broken()}, [0], 0).skips
    assert (skip.status, skip.reason) == (
        "unavailable",
        "its unsupported failed: ZeroDivisionError('oops')",
    )


def test_keys_tell_cells_apart() -> None:
    assert make_cell().key == make_cell().key
    others = [
        make_cell(batch_size=2),
        make_cell(cores=2),
        make_cell(options={"a": 1}),
        make_cell(options={"a": True}),
        make_cell(options={"a": "1"}),
    ]
    assert len({cell.key for cell in [make_cell(), *others]}) == 6
    both = make_cell(options={"a": 1, "b": 2}), make_cell(options={"b": 2, "a": 1})
    assert len({cell.key for cell in both}) == 1


@pytest.mark.parametrize(("replicas", "total"), [(1, 8), (4, 32)])
def test_total_batch(replicas: int, total: int) -> None:
    assert make_cell(batch_size=8, replicas=replicas).total_batch == total


def test_nodes_that_have_a_backend_which_rank_0_lacks_are_asked_all_the_same() -> None:
    lack = Lack("no GPU", "buy one")
    nodes = [
        Node(0, "head", 4, 0, {"fake": lack}),
        *(Node(rank, "gpus", 4, 2) for rank in (1, 2)),
    ]
    fine = make_cell(device="cuda", cores=0, replicas=4)
    odd, job = (
        replace(fine, precision="bf16"),
        replace(fine, scenario="throughput", dispatch="dynamic"),
    )
    backends = {"fake": Stub(missing=True, refuses="bf16")}
    found = make(SUITE, [fine, odd, job], backends, [], 0, nodes)
    assert found.cells == [fine]
    assert [(s.cell, s.status) for s in found.skips] == [(odd, "unsupported"), (job, "unsupported")]

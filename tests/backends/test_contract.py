"""Every registered backend, built in or not, keeps the interface of `gpubench.backends.base`."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.errors import InputError, Unavailable
from gpubench.pipeline.loader.ring_buffer import Ring
from gpubench.run.tune import options as space_options
from gpubench.suite.types import Cell, Input, Option
from gpubench.workload.models import builder, given_input
from tests.backends import contract, tiny

NAMES = base.names()
SLOW = {"torch-compile", "aot-inductor"}
TAKES_ARRAYS = {"torch-eager", "torch-compile", "aot-inductor", "onnxruntime", "openvino"}
"""As they are, of a loader; fp32 on a CPU."""
KINDS = {"bool": bool, "int": int, "float": float, "str": str}


def test_the_built_ins_are_registered() -> None:
    expected = {
        "torch-eager",
        "torch-compile",
        "aot-inductor",
        "onnxruntime",
        "tensorrt",
        "openvino",
        "null",
    }
    assert expected <= set(NAMES)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(InputError, match=r"'onxruntime'.*onnxruntime"):
        base.get("onxruntime")


@pytest.mark.parametrize("name", NAMES)
def test_declarations(name: str) -> None:
    backend = base.get(name)
    assert backend.name == name
    assert backend.summary
    assert "\n" not in backend.summary
    assert isinstance(backend.preload, tuple)
    options = [option.name for option in backend.options]
    assert len(options) == len(set(options))
    for option in backend.options:
        _check_option(option)
    space_options.check(name, backend.options)


def _check_option(option: Option) -> None:
    assert option.name.isidentifier()
    assert option.help
    assert type(option.default) is KINDS[option.kind]
    assert all(type(choice) is KINDS[option.kind] for choice in option.choices)
    assert not option.choices or option.default in option.choices
    if option.kind in ("int", "float"):
        assert isinstance(option.default, int | float)
        assert option.minimum is None or option.default >= option.minimum
        assert option.maximum is None or option.default <= option.maximum


_IMPORT = """
import sys
from gpubench.backends import base
from gpubench.errors import Unavailable
from tests.backends import tiny
for name in base.names():
    backend = base.get(name)
    backend.unsupported(tiny.cell(name))
    try:
        backend.probe()
    except Unavailable:
        pass
heavy = "numpy pandas scipy sklearn torch torchvision onnx onnxruntime openvino tensorrt".split()
print(*sorted({module.partition(".")[0] for module in sys.modules} & {*heavy, "tensorrt_rtx"}))
"""


def test_nothing_heavy_is_imported_before_prepare() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", NAMES)
def test_probe_gives_facts_or_a_remedy(name: str) -> None:
    try:
        facts = base.get(name).probe()
    except Unavailable as error:
        facts = {"reason": error.reason, "remedy": error.remedy}
        if not all(facts.values()):
            pytest.fail(f"unavailable without a word: {facts}")
    assert json.loads(json.dumps(facts)) == facts


def _cells(name: str) -> list[Cell]:
    """Every device, precision and value of each option; options one at a time."""
    settings: list[dict[str, Any]] = [{}]
    for option in base.get(name).options:
        values = option.choices or ((True, False) if option.kind == "bool" else (option.default,))
        settings += [{option.name: value} for value in values]
    precisions = ("fp32", "tf32", "fp16", "bf16", "amp", "int8")
    return [
        tiny.cell(name, device=device, precision=precision, options=options, model=model)
        for device, precision, options, model in itertools.product(
            ("cpu", "cuda"), precisions, settings, ("resnet18", "mine.onnx")
        )
    ]


@pytest.mark.parametrize("name", NAMES)
def test_unsupported_is_pure_and_cheap(name: str) -> None:
    backend, cells = base.get(name), _cells(name)
    start = time.perf_counter()
    first = [backend.unsupported(cell) for cell in cells]
    elapsed = time.perf_counter() - start
    assert elapsed / len(cells) < 1e-3
    another = base.get(name)
    assert [another.unsupported(cell) for cell in reversed(cells)] == first[::-1]
    for reason in first:
        assert reason is None or reason.strip()
    assert None in first, "a backend that supports nothing"


@pytest.mark.parametrize("given", ["float16", "uint8"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NAMES]
)
def test_sessions_are_given_what_the_cell_says(
    name: str, given: Input, stand_in: tiny.Model, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the network makes of it what it takes; also of a loader's own arrays."""
    monkeypatch.setattr(builder, "load_module", _tiny_of)
    backend, cell = base.get(name), tiny.cell(name, input=given)
    if reason := backend.unsupported(cell):
        pytest.skip(f"unsupported: {reason}")
    model: Any = given_input.Given(stand_in, given, cache)  # type: ignore[arg-type]
    try:
        backend.probe()
        artefact = backend.prepare(cell, model, cache)
        session = base.open_session(backend, cell, artefact, base.Device("cpu", 0, (0,)))
    except Unavailable as error:
        pytest.skip(f"{error.reason}; {error.remedy}")
    arrays = Ring(2, cell.batch_size, model.spec, 1, encoded=False).slots
    rng = np.random.default_rng(0)
    with session:
        taken = session.attach(arrays)
        assert taken == (name in TAKES_ARRAYS), "a host that gives bytes copies none"
        for array in (np.empty_like(arrays[0]), *arrays):
            array[...] = rng.integers(0, 256, array.shape)
            if not backend.computes:
                continue
            floats = model._normalised(array)
            assert contract.same(contract.answer(session, array), tiny.reference(floats), 1e-4)
    plain = tiny.cell(name)
    if backend.computes:
        assert backend.prepare(plain, stand_in, cache) != artefact  # type: ignore[arg-type]


def _tiny_of(state: Path) -> Any:
    """As `builder.load_module` has it."""
    from gpubench.workload.models import trial

    about, module = builder.card(state), tiny.module()
    return trial.Normalised(module, about.own, about.spec.dtype) if about.own else module


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> tiny.Model:
    return tiny.Model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NAMES]
)
def test_sessions_on_the_cpu(
    name: str, stand_in: tiny.Model, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "load_module", lambda state: tiny.module())
    backend, cell = base.get(name), tiny.cell(name)
    reason = backend.unsupported(cell)
    if reason:
        pytest.skip(f"unsupported: {reason}")
    try:
        backend.probe()
        artefact = backend.prepare(cell, stand_in, cache)  # type: ignore[arg-type]
        session = backend.open(cell, artefact, base.Device("cpu", 0, (0,)))
    except Unavailable as error:
        pytest.skip(f"{error.reason}; {error.remedy}")
    with session as entered:
        assert entered is session
        contract.check(backend, session, cell.batch_size, cell.precision)
        if name in TAKES_ARRAYS:
            assert session.attach(contract.slots(cell.batch_size))  # type: ignore[attr-defined]
    session.__exit__(None, None, None)  # leaving twice does no harm
    assert backend.prepare(cell, stand_in, cache) == artefact  # type: ignore[arg-type]

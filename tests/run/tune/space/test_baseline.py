"""Today's default."""

from __future__ import annotations

import msgspec
import pytest

from gpubench.errors import SuiteError
from gpubench.run.tune import space
from gpubench.suite.types import Catalog, Workload
from tests.run.tune.space.made import CATALOG, anything, make


def test_the_baseline_does_not_depend_on_what_is_searched() -> None:
    found = space.chosen(
        make(), {"backend": ["tiled"], "precision": ["int8"], "batch_size": [1, 8]}
    )
    cells = space.baseline({}, found, CATALOG)
    assert [(c.backend, c.precision, c.batch_size, c.replicas, c.cores) for c in cells] == [
        ("torch-eager", "fp32", 1, 1, 2),
        ("torch-eager", "fp32", 8, 1, 2),
    ]
    assert {c.key for c in cells} <= {c.key for c in space.cells(make(), CATALOG, anything)}


def test_of_an_onnx_file_it_is_onnxruntime(installed: Catalog) -> None:
    found = msgspec.structs.replace(
        make(installed), workload=Workload(model="/a.onnx", weights="file")
    )
    assert {c.backend for c in space.baseline({}, found, installed)} == {"onnxruntime"}


def test_the_baseline_may_be_another() -> None:
    words = {"backend": "tiled", "precision": "int8", "batch_size": "4", "replicas": "2"}
    words |= {"tile": "8", "fuse": "true", "depth": "2", "method": "b"}
    (cell,) = space.baseline(words, make(cores=8), CATALOG)
    assert (cell.replicas, cell.cores, cell.batch_size) == (2, 4, 4)
    assert cell.options == {"depth": 2.0, "method": "b"}
    words = {"replicas": "4", "replicas_per_device": "2", "cores": "3"}
    shared = space.baseline(words, make(cores=8), CATALOG)
    assert {(c.replicas, c.replicas_per_device, c.cores) for c in shared} == {(4, 2, 3)}
    on_gpus = make(device="cuda", gpus=4)
    assert {c.replicas for c in space.baseline({}, on_gpus, CATALOG)} == {4}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"backend": "torch"}, '--baseline backend=torch: did you mean "torch-eager"?'),
        (
            {"precison": "fp32"},
            '--baseline precison=fp32: there is no such key; did you mean "prec',
        ),
        ({"tile": "8"}, "--baseline tile=8: there is no such key"),
        ({"backend": "tiled", "tile": "x"}, "--baseline tile=x: expected a whole number"),
        ({"backend": "tiled", "fuse": "1"}, "--baseline fuse=1: expected true or false"),
        ({"backend": "tiled", "method": "c"}, "--baseline method=c: unknown"),
        (
            {"backend": "tiled", "method": "b"},
            '--baseline method=b: no effect here, only where precision is "int8"',
        ),
        ({"precision": "fp9"}, "--baseline precision=fp9: unknown"),
        ({"replicas": "3"}, "--baseline replicas=3: needs 3 cores; usable: 2"),
        ({"cores": "3"}, "--baseline cores=3: needs 3 cores; usable: 2"),
        ({"batch_size": "0"}, "--baseline batch_size=0: expected a whole number"),
    ],
)
def test_a_baseline_that_cannot_be(words: dict[str, str], message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        space.baseline(words, make(), CATALOG)
    assert str(caught.value).startswith(message)

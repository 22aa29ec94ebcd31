"""What backends declare wrongly; what the command line says."""

from __future__ import annotations

from typing import Any

import pytest

from gpubench.errors import SuiteError
from gpubench.run.tune import space
from gpubench.run.tune.space import Placement
from gpubench.suite.types import Catalog, Option
from tests.run.tune.space.made import CATALOG, OPTIONS, anything, make


def declaration(**wrong: Any) -> Option:
    return Option(**{"name": "mine", "kind": "int", "default": 1, "help": ""} | wrong)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (declaration(kind="enum"), 'kind = "enum": expected one of bool, int'),
        (declaration(search=3), "search = 3: expected a tuple"),
        (declaration(search="ab"), 'search = "ab": expected a tuple'),
        (declaration(search=(1, "2")), 'search[1] = "2": expected a whole number'),
        (declaration(search=(True, 1)), "search[0] = true: expected a whole number"),
        (declaration(search=(1, 9), maximum=8), "search[1] = 9: expected a whole number, at most"),
        (declaration(search=(2, 3)), "search = [2, 3]: the default, 1, is not among them"),
        (
            declaration(kind="str", default="a", choices=("a", "b"), search=("a", "c")),
            'search[1] = "c": unknown; ',
        ),
        (declaration(when=("device",)), 'when = ["device"]: expected a dict'),
        (declaration(when={"devise": ("cpu",)}), 'when: "devise" is unknown; did you mean "dev'),
        (declaration(when={"mine": (1,)}), 'when: "mine" is unknown'),
        (declaration(when={"device": "cpu"}), 'when["device"] = "cpu": expected a tuple'),
        (declaration(when={"device": ()}), 'when["device"] = []: expected a tuple'),
        (declaration(when={"device": ("gpu",)}), 'when["device"] = "gpu": '),
        (declaration(when={"batch_size": (1,)}), 'when: "batch_size" is unknown'),
        (declaration(when={"tile": (0,)}), 'when["tile"][0] = 0: expected a whole number, at'),
    ],
)  # fmt: skip
def test_a_wrong_declaration_names_backend_and_option(option: Option, words: str) -> None:
    catalog = Catalog(backends={"good": (), "bad": (OPTIONS[0], option)}, models=())
    found = make(catalog)
    with pytest.raises(SuiteError) as caught:
        space.cells(found, catalog, anything)
    message = str(caught.value)
    assert message.startswith('backend "bad", option "mine": ')
    assert words in message
    assert "--backend leaves it out" in message
    assert space.cells(space.chosen(found, {"backend": ["good"]}), catalog, anything)


def test_chosen_narrows_and_widens() -> None:
    found = space.chosen(
        make(cores=8),
        {
            "backend": ["null"],
            "precision": ["bf16", "bf16"],
            "input": ["float32"],
            "batch_size": [3],
            "replicas": [1, 3],
            "device": None,
        },
    )
    cells = space.cells(found, CATALOG, anything)
    assert {(c.backend, c.precision, c.batch_size) for c in cells} == {("null", "bf16", 3)}
    assert [(c.replicas, c.cores) for c in cells] == [(1, 8), (1, 4), (3, 2)]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"backend": ["tile"]}, '--backend = "tile": unknown; did you mean "tiled"?'),
        ({"precision": ["fp23"]}, '--precision = "fp23": unknown'),
        ({"batch_size": [0]}, "--batch-size = 0: expected a whole number, at least 1"),
        ({"batch_size": []}, "--batch-size: empty"),
        ({"replicas": [3]}, "--replicas 3: needs 3 cores; usable: 2"),
    ],
)
def test_chosen_refuses(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(SuiteError) as caught:
        space.chosen(make(), overrides)
    assert words in str(caught.value)


def test_chosen_on_gpus() -> None:
    found = space.chosen(make(device="cuda", gpus=2), {"replicas": [3, 6]})
    assert found.placements == (Placement(3, 0, 2), Placement(6, 0, 3))
    lonely = make(device="cuda", gpus=0)
    with pytest.raises(SuiteError, match=r"--replicas 1: needs 1 GPUs; visible: 0"):
        space.chosen(lonely, {"replicas": [1]})

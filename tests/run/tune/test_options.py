"""What backends declare wrongly."""

from __future__ import annotations

from typing import Any

import pytest

from gpubench.errors import SuiteError
from gpubench.run.tune import space
from gpubench.suite.types import Catalog, Option
from tests.run.tune.spaces import OPTIONS, anything, make


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

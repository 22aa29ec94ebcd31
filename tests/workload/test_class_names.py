from __future__ import annotations

from types import SimpleNamespace

import pytest

from gpubench.errors import InputError
from gpubench.workload import reference
from gpubench.workload.data.dataset_index import About


def model(num_classes: int, source: str | None = "folder", onnx: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        num_classes=num_classes, label_source=source, is_onnx=onnx, name="m", weights="w"
    )


WNIDS = tuple(f"n{i:08d}" for i in range(1000))


@pytest.mark.parametrize(
    ("own", "network", "first"),
    [
        (WNIDS, model(1000), "tench"),
        ((), model(1000), "tench"),
        (("0", "1"), model(1000), "tench"),
        (("trout", *WNIDS[1:]), model(1000), "trout"),
        (WNIDS, model(1000, onnx=True), "n00000000"),
        ((), model(1000, source=None), ""),
        (("ant", "bee"), model(2), "ant"),
        (("0", "1"), model(3), ""),
    ],
)
def test_names_of_classes(own: tuple[str, ...], network: SimpleNamespace, first: str) -> None:
    found = reference.class_names(own, network)  # type: ignore[arg-type]
    assert next(iter(found), "") == first
    assert len(found) in (0, network.num_classes)


def test_a_file_of_labels_must_serve() -> None:
    about = About(kind="folder", root="", classes=("a", "b"))
    for network, why in ((model(3), "the network has 3"), (model(2, "digits"), "has none that")):
        with pytest.raises(InputError, match=f"labels 'x.csv': 2 classes, but .*{why}"):
            reference.meaningful(about, network, "x.csv")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("about", "network", "fits"),
    [
        (About(kind="folder", root="", classes=("a", "b")), model(2), True),
        (About(kind="folder", root="", classes=("a", "b")), model(3), False),
        (About(kind="folder", root="", classes=("0", "1"), numbered=True), model(3), True),
        (About(kind="folder", root="", classes=("0", "1"), numbered=True), model(1), False),
        (About(kind="folder", root=""), model(3), False),
        (About(kind="folder", root="", classes=("a", "b")), model(2, "digits"), False),
        (About(kind="digits", root="", classes=("a", "b")), model(2, "digits"), True),
        (About(kind="digits", root="", classes=("a", "b")), model(2, None), False),
    ],
)
def test_labels_must_be_those_of_the_network(
    about: About, network: SimpleNamespace, fits: bool
) -> None:
    assert reference.meaningful(about, network, "") == fits  # type: ignore[arg-type]

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from gpubench.workload import reference
from gpubench.workload.data.dataset_index import About, Kind, Pictures


def model(num_classes: int, source: str | None = "folder", onnx: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        num_classes=num_classes,
        label_source=source,
        class_names=(),
        name="m",
        weights="w",
        knows_imagenet=not onnx,
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


WOODS = tuple(f"n0{i:07d}" for i in range(4))
TWELVE = tuple(sorted(map(str, range(12))))


def found(
    classes: tuple[str, ...],
    network: SimpleNamespace,
    kind: Kind = "folder",
    by: str = "folders",
    empty: tuple[str, ...] = (),
) -> reference.Labels:
    """How the labels of a data set count that has a picture of each class but the empty ones."""
    archives = ("s.tar",) if by == "shards" else ()
    about = About(kind=kind, root="", classes=classes, archives=archives)
    used = [i for i, name in enumerate(classes) if name not in empty] or [-1]
    dataset = Pictures.of(about, [f"{i}.png" for i in used], used, [1] * len(used))
    return reference.match(dataset, network, by == "file")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "numbers", "said"),
    [
        # names, in the order that they were sorted in
        (found(("a", "b"), model(2)), (0, 1), "^$"),
        (found(("a", "b", "c", "d"), model(3)), (), r"4 folders \('a', 'b', 'c', …\), and .* 3 cl"),
        (found(("a", "b"), model(3), by="file"), (), r"2 classes \('a', 'b'\), and the network"),
        (found(("a", "b", "c"), model(2), empty=("b",)), (0, -1, 1), "1 folder .'b'. without pic"),
        (found(("a", "b", "c"), model(3), empty=("b",)), (0, 1, 2), "^$"),
        (found(("c_1", "c_10", "c_2"), model(3)), (0, 1, 2), "text, .* 'c_10' before 'c_2'"),
        (found(("1", "10", "other"), model(3)), (0, 1, 2), "numbers and words: .* order of text"),
        # numbers
        (found(TWELVE, model(12)), tuple(map(int, TWELVE)), "12 folders .* are class numbers"),
        (found(TWELVE, model(12), by="file"), tuple(map(int, TWELVE)), "^$"),
        (found(("0", "1"), model(3)), (0, 1), "^$"),
        (found(("000", "007", "011"), model(12)), (0, 7, 11), "^$"),
        (found(("0.0", "2.0"), model(3)), (0, 2), "^$"),
        (found((*TWELVE, "misc"), model(12), empty=("misc", "3")), (0, 1, 10, 11, 2, -1, 4, 5, 6,
         7, 8, 9, -1), "are class numbers"),
        (found(("0", "1"), model(1)), (), "numbers from 0 to 1, and the network's 1 classes"),
        (found(("01", "1"), model(2)), (), r"2 folders \('01', '1'\): the same number"),
        (found(("1", "2", "3"), model(3)), (0, 1, 2), "'1' to '3' taken for classes 0 to 2"),
        (found(("7001", "7009"), model(2)), (0, 1), "'7001' to '7009' taken for classes 0 to 1"),
        (found(("1", "2", "3"), model(3), by="file"), (), "from 1 to 3, .* are 0 to 2"),
        (found(("1", "2", "3"), model(3), by="shards"), (), "from 1 to 3, .* are 0 to 2"),
        (found(TWELVE[1:], model(11)), (), "numbers from 1 to 11, and the network's 11 classes"),
        (found(("-1", "1"), model(2)), (0, 1), "'-1' to '1' taken for classes 0 to 1"),
        (found(("-1", "1"), model(2), by="file"), (), "numbers from -1 to 1"),
        # ImageNet's
        (found(WNIDS, model(1000)), tuple(range(1000)), "^$"),
        (found(("golden_retriever", "Tench"), model(1000)), (207, 0), "taken for .* ImageNet, by"),
        (found(("Cardigan", "tench"), model(1000)), (264, 0), "by name"),  # the dog
        (found(("cardigan", "tench"), model(1000)), (474, 0), "by name"),
        (found(("CARDIGAN", "tench"), model(1000)), (), "2 folders"),  # one of the two
        (found(("n01440764", "n03888257", "x"), model(1000), empty=("x",)), (0, 701, -1), "by nam"),
        (found(("n01440764", "n03888257"), model(1000), by="file"), (0, 701), "2 classes .*by nam"),
        (found(("n01440764", "n03888257"), model(10)), (), "2 folders"),
        (found(WOODS, model(1000)), (), "4 folders .*WordNet id .* give a file of labels with num"),
        # other labels than the network's
        (found(("a", "b"), model(2, "digits")), (), "the network knows digits only"),
        (found(("0", "1"), model(2, "digits"), "digits"), (0, 1), "^$"),
        (found(("0", "1"), model(2), "digits"), (), "'digits' are not the network's classes"),
        (found(("a", "b"), model(2, None)), (), "weights 'w' know no classes"),
        (found((), model(2), "photos"), (), "images 'photos' have no labels"),
    ],
)  # fmt: skip
def test_labels_are_those_of_the_network_or_it_is_said_why_not(
    labels: reference.Labels, numbers: tuple[int, ...], said: str
) -> None:
    assert labels.numbers == numbers
    assert re.search(said, labels.said)

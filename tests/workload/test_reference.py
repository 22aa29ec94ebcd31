"""The parity check must be able to fail: here is everything that it has to catch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from gpubench.cache import Cache
from gpubench.errors import CellFailed, ChangedError, InputError
from gpubench.records.parity import Parity, over_replicas
from gpubench.suite.types import Policy, Workload
from gpubench.workload.data import datasets
from gpubench.workload.models.registry import resolve
from gpubench.workload.parity import TOLERANCES, check
from gpubench.workload.reference import Labels, Reference, batches, build, contents, load, match
from tests.backends.onnx_files import conv_net

Outputs = list[NDArray[np.float32]]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 64, 100, 128, 256])
@pytest.mark.parametrize("pool", [2, 3, 5, 8, 64])
def test_batches_vary_in_every_slot(size: int, pool: int) -> None:
    made = batches(size, pool, 32)
    assert len(made) >= 2
    assert sum(map(len, made)) >= 32
    assert all(len(b) == size and b.min() >= 0 and b.max() < pool for b in made)
    for before, after in itertools.pairwise(made):
        assert (before != after).all()  # a stale buffer shows in every slot
    for b in made:
        assert (b[1:] != b[:-1]).all()  # so does an answer that slipped by one
        if pool > 2:
            assert (b[pool:] != b[:-pool]).all()  # and a batch that repeats its first part


def test_a_pool_of_one_tells_nothing() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        batches(4, 1, 8)


def judge(
    reference: Reference, outputs: Outputs, precision: str = "bf16", size: int = 8, **policy: Any
) -> Parity:
    return check(reference, batches(size, 64, 32), outputs, precision, Policy(**policy))


def right(reference: Reference, size: int = 8) -> Outputs:
    return [reference.logits[b].copy() for b in batches(size, 64, 32)]


def noisy(reference: Reference, error: float) -> Outputs:
    """Honest noise of this relative size in every answer."""
    rng = np.random.default_rng(0)
    outputs = right(reference)
    for z in outputs:
        noise = rng.normal(size=z.shape)
        noise -= noise.mean(1, keepdims=True)
        signal = np.linalg.norm(z - z.mean(1, keepdims=True), axis=1, keepdims=True)
        z += error * signal * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return outputs


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_exact_answers_and_honest_noise_pass(reference: Reference, precision: str) -> None:
    exact = judge(reference, right(reference), precision)
    assert exact.passed
    assert exact.relative_error == 0
    assert exact.top1_agreement == 1
    assert exact.images == 32
    assert exact.labelled == exact.correct == exact.reference_correct == 28
    largest, _ = TOLERANCES[precision]
    noise = judge(reference, noisy(reference, largest / 3), precision)
    assert noise.relative_error == pytest.approx(largest / 3, rel=1e-3)
    assert noise.passed
    assert not judge(reference, noisy(reference, largest * 1.1), precision).passed


def test_a_common_offset_and_a_failing_scale(reference: Reference) -> None:
    assert judge(reference, [z + 5 for z in right(reference)], "fp32").passed
    assert not judge(reference, [z * 1.01 for z in right(reference)], "fp32").passed


def swapped_class(outputs: Outputs) -> None:
    for z in outputs:
        z[:, [2, 5]] = z[:, [5, 2]]


def permuted_classes(outputs: Outputs) -> None:
    for z in outputs:
        z[:] = np.roll(z, 1, axis=1)


def stale_buffer(outputs: Outputs) -> None:
    outputs[1:] = [z.copy() for z in outputs[:-1]]


def never_written(outputs: Outputs) -> None:
    for z in outputs:
        z[:] = 0


def one_wrong_slot(outputs: Outputs) -> None:
    for z in outputs:
        z[5] = z[4]


def slipped_by_one(outputs: Outputs) -> None:
    for z in outputs:
        z[:] = np.roll(z, 1, axis=0)


def half_a_batch(outputs: Outputs) -> None:
    for z in outputs:
        z[4:] = z[:4]


def one_wrong_image(outputs: Outputs) -> None:
    outputs[2][5] = -outputs[2][5]


FAULTS = [
    swapped_class,
    permuted_classes,
    stale_buffer,
    never_written,
    one_wrong_slot,
    slipped_by_one,
    half_a_batch,
    one_wrong_image,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_faults_fail(
    reference: Reference, fault: Callable[[Outputs], None], precision: str
) -> None:
    outputs = right(reference)
    fault(outputs)
    parity = judge(reference, outputs, precision)
    assert not parity.passed
    if fault in (one_wrong_slot, one_wrong_image):
        assert parity.worst_slot == 5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails(reference: Reference, value: float) -> None:
    outputs = right(reference)
    outputs[1][3, 7] = value
    parity = judge(reference, outputs, max_relative_error=1e6, min_top1_agreement=0.01)
    assert not parity.passed
    assert parity.relative_error is None
    assert parity.worst_slot == 3
    assert parity.top1_agreement == 31 / 32
    stored = msgspec.json.decode(msgspec.json.encode(parity), type=Parity)
    assert stored == parity


def test_wrong_shapes_raise(reference: Reference) -> None:
    outputs = right(reference)
    for wrong, message in (
        (outputs[:-1], "3 batches"),
        ([z[:, :9] for z in outputs], r"\(8, 9\), not \(8, 10\)"),
        ([z[:4] for z in outputs], r"\(4, 10\), not \(8, 10\)"),
    ):
        with pytest.raises(CellFailed, match=message) as caught:
            judge(reference, wrong)
        assert caught.value.kind == "parity"


def test_the_policy_overrides_the_tolerance(reference: Reference) -> None:
    outputs = noisy(reference, 0.01)
    assert not judge(reference, outputs, "fp32").passed
    assert judge(reference, outputs, "fp32", max_relative_error=0.02).passed
    with pytest.raises(InputError, match=r"'fp4' has no tolerance"):
        judge(reference, outputs, "fp4")
    assert judge(reference, outputs, "fp4", max_relative_error=0.02, min_top1_agreement=0.5).passed


def test_accuracy_counts_an_image_once(reference: Reference) -> None:
    """Asked four times or more in batches of 128; wrong once is wrong."""
    picked = batches(128, 64, 256)
    outputs = [reference.logits[b].copy() for b in picked]
    labelled = int((reference.labels >= 0).sum())
    exact = check(reference, picked, outputs, "fp32", Policy())
    assert exact.images == 256
    assert exact.labelled == exact.correct == exact.reference_correct == labelled == 56
    slot = next(i for i, image in enumerate(picked[0]) if reference.labels[image] >= 0)
    outputs[0][slot] *= -1
    once = check(reference, picked, outputs, "fp32", Policy())
    assert (once.labelled, once.correct, once.reference_correct) == (56, 55, 56)


def test_the_reference_may_be_wrong_where_the_backend_is_right(reference: Reference) -> None:
    image = int(np.flatnonzero(reference.labels >= 0)[0])
    reference.labels[image] = (reference.labels[image] + 1) % 10
    picked = batches(8, 64, 64)
    outputs = [reference.logits[b].copy() for b in picked]
    for batch, z in zip(picked, outputs, strict=True):
        z[batch == image] = 9 * np.eye(10)[reference.labels[image]]
    parity = check(reference, picked, outputs, "fp32", Policy())
    assert (parity.correct, parity.reference_correct, parity.labelled) == (56, 55, 56)


def test_merging_keeps_the_worst(reference: Reference) -> None:
    good, bad = judge(reference, right(reference)), right(reference)
    one_wrong_slot(bad)
    wrong = judge(reference, bad)
    both = over_replicas([good, wrong])
    assert not both.passed
    assert (both.images, both.labelled, both.reference_correct) == (64, 28, 28)
    assert both.top1_agreement == pytest.approx((1 + wrong.top1_agreement) / 2)
    assert both.relative_error == wrong.relative_error
    assert both.correct == wrong.correct < good.correct
    assert both.worst_slot == 5
    bad[0][0, 0] = np.nan
    assert over_replicas([good, judge(reference, bad)]).relative_error is None
    assert over_replicas([good, good]).passed


def test_an_onnx_file_has_a_reference(
    tmp_path: Path, cache: Cache, tiny_onnx: Callable[..., Path]
) -> None:
    workload = Workload(model=str(tiny_onnx()), weights="file", images="photos")
    made = load(build(workload, Policy(), cache))
    assert made.engine == "onnxruntime CPU fp32"
    assert made.images.shape == (64, 3, 8, 8)
    assert made.logits.shape == (64, 5)
    assert (made.labels == -1).all()
    assert len(set(made.names)) == 64
    weight = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_allclose(made.logits, made.images.mean((2, 3)) @ weight, atol=1e-5)
    fixed = Workload(model=str(tiny_onnx("fixed.onnx", shape=(7, 3, 8, 8))), images="photos")
    np.testing.assert_allclose(load(build(fixed, Policy(), cache)).logits, made.logits, atol=1e-6)
    more = Policy(parity_images=70, seed=1)
    assert len(load(build(workload, more, cache)).images) == 70


def test_a_quantised_file_is_its_own_reference(tmp_path: Path, cache: Cache) -> None:
    """In fp32 as its nodes say, not by integer kernels; and it has a tolerance."""
    workload = Workload(model=str(conv_net(tmp_path / "q.onnx", "int8")), images="photos")
    made = load(build(workload, Policy(), cache))
    assert made.engine == "onnxruntime CPU int8"
    steps = np.clip(np.rint(made.images / np.float32(0.05)), -128, 127) * np.float32(0.05)
    plain = Workload(model=str(conv_net(tmp_path / "p.onnx")), images="photos")
    model = resolve(plain, cache)
    exact = model.answers(np.asarray(steps, np.float32))  # the weights are not quantised here
    relative = np.linalg.norm(made.logits - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert relative.max() < 0.02
    picked = batches(8, 64, 32)
    assert check(made, picked, [made.logits[b] for b in picked], "int8", Policy()).passed


def test_a_bf16_file_has_no_reference(cache: Cache, tmp_path: Path) -> None:
    workload = Workload(model=str(conv_net(tmp_path / "b.onnx", "bf16")), images="photos")
    with pytest.raises(InputError, match="is bf16, which ONNX Runtime on the CPU"):
        build(workload, Policy(), cache)


def test_labels_of_a_folder_count_when_the_classes_match(
    tmp_path: Path, cache: Cache, tiny_onnx: Callable[..., Path]
) -> None:
    from PIL import Image

    for i in range(5):
        (tmp_path / "data" / f"c{i}").mkdir(parents=True)
        Image.new("RGB", (9, 9), (i * 40, 0, 0)).save(tmp_path / "data" / f"c{i}" / "x.png")
    why = "no accuracy: 5 folders ('c0', 'c1', 'c2', …), and the network has 6 classes"
    for classes, labels, said in ((5, [0, 1, 2, 3, 4], ""), (6, [-1] * 5, why)):
        model = str(tiny_onnx(f"{classes}.onnx", classes=classes))
        workload = Workload(model=model, images=str(tmp_path / "data"))
        made = load(build(workload, Policy(), cache))
        assert (sorted(made.labels), made.facts.get("labelling", "")) == (labels, said)
    with pytest.raises(InputError, match=f"policy.min_accuracy = 0.5: .*{re.escape(why[13:])}; gi"):
        build(workload, Policy(min_accuracy=0.5), cache)


def test_labels_are_numbers_of_the_network(
    tmp_path: Path, cache: Cache, tiny_onnx: Callable[..., Path]
) -> None:
    """Wherever they come from; a network that answers by brightness would be right on all."""
    from PIL import Image

    for i in range(12):
        (tmp_path / "data" / f"{i}").mkdir(parents=True)
        Image.new("RGB", (9, 9), (i * 20, 0, 0)).save(tmp_path / "data" / f"{i}" / f"{i}.png")
    rows = "".join(f"{i}/{i}.png,{i}.0\n" for i in range(12))
    (tmp_path / "labels.csv").write_text(rows)
    for labels in ("", str(tmp_path / "labels.csv")):
        workload = Workload(
            model=str(tiny_onnx(classes=12)), images=str(tmp_path / "data"), labels=labels
        )
        made = load(build(workload, Policy(), cache))
        found = dict(zip(made.names, made.labels.tolist(), strict=True))
        assert found == {f"{i}/{i}.png": i for i in range(12)}


def test_what_paths_hold_is_told_and_a_changed_picture_is_seen(
    tmp_path: Path, cache: Cache, tiny_onnx: Callable[..., Path]
) -> None:
    from PIL import Image

    def picture(number: int, shade: int) -> None:
        Image.new("RGB", (9, 9), (shade, 0, 0)).save(tmp_path / "data" / f"{number}.png")

    (tmp_path / "data").mkdir()
    for i in range(3):
        picture(i, 40 * i)
    workload = Workload(model=str(tiny_onnx()), images=str(tmp_path / "data"))
    path = build(workload, Policy(), cache)
    before = contents(workload, path)
    assert before.keys() == {"model", "images", "preprocessing"}
    load(path).check_dataset()
    picture(1, 41)
    with pytest.raises(ChangedError, match=r"'1\.png' is not what it was"):
        load(path).check_dataset()
    after = contents(workload, build(workload, Policy(), cache))
    assert after["model"] == before["model"]
    assert after["images"] != before["images"]
    assert after["preprocessing"] == before["preprocessing"]
    Path(workload.model).with_name("preprocessor_config.json").write_text('{"size": 8}')
    other = contents(workload, build(workload, Policy(), cache))
    assert other["preprocessing"] != before["preprocessing"]
    plain = Workload(model="digits", images="digits")
    assert contents(plain, path) == {}


def test_names_of_the_networks_own_classes_have_its_numbers(tmp_path: Path) -> None:
    from PIL import Image

    class Named:
        weights, label_source, num_classes = "DEFAULT", "folder", 4
        class_names = ("zebra", "red fox, Vulpes, crane", "ant, crane", "bee")

    def matched(*folders: str) -> Labels:
        made = tmp_path / "-".join(folders)
        for name in folders:
            (made / name).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(made / name / "x.png")
        work = Workload(images=str(made))
        pictures = datasets.find(work, Cache(tmp_path / "cache"), 1)
        return match(pictures, Named(), False)  # type: ignore[arg-type]

    assert matched("Ant", "Red_Fox", "bee", "zebra") == Labels((2, 1, 3, 0))
    assert matched("bee", "zebra") == Labels((3, 0))
    assert matched("0", "3") == Labels((0, 3))
    assert matched("ant", "bee", "cow", "dog") == Labels(
        said="2 folders ('cow', 'dog') that the network does not have: it knows 4 classes "
        "('zebra', 'red fox, Vulpes, crane', 'ant, crane', …)"
    )
    assert matched("zebra", "crane").numbers == ()

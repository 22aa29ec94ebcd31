"""The project's own network: trained on first use, right, and served by every backend."""

from __future__ import annotations

import numpy as np
import pytest

from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.suite.types import Cell, Policy, Workload
from gpubench.workload.data import builtin, preprocess
from gpubench.workload.models import builder, digits_net
from gpubench.workload.models.registry import resolve
from gpubench.workload.parity import check
from gpubench.workload.reference import batches, build, load

WORKLOAD = Workload(model="digits")


def test_it_is_right_about_digits_that_it_never_saw(cache: Cache) -> None:
    model = resolve(WORKLOAD, cache)
    card = builder.card(model.state())
    assert card.held_out_accuracy is not None
    assert card.held_out_accuracy >= 0.97
    assert (model.num_classes, model.label_source) == (10, "digits")
    assert model.input_shape == (3, 32, 32)
    reference = load(build(WORKLOAD, Policy(parity_images=200), cache))
    assert (reference.logits.argmax(1) == reference.labels).mean() >= 0.97
    # Its accuracy again, as it is served: nothing was trained on what pools are drawn from.
    pixels, labels = builtin.digits()
    unseen = np.stack([preprocess.apply(model.spec, p) for p in pixels[builtin.FITTED :]])
    right = model.answers(unseen).argmax(1) == labels[builtin.FITTED :]
    assert right.mean() == pytest.approx(card.held_out_accuracy, abs=2e-3)


def test_training_is_deterministic_and_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(digits_net, "_EPOCHS", 4)

    def trained(threads: int) -> tuple[float, list[torch.Tensor]]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module = digits_net.build()
            accuracy = digits_net.fit(module, digits_net.SPEC)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        assert not module.training
        return accuracy, list(module.state_dict().values())

    (one, first), (two, second) = trained(1), trained(2)
    assert 0.2 < one < 1
    assert one == two
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_that_a_pool_holds_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    seen = []
    monkeypatch.setattr(
        digits_net, "_train", lambda _, inputs, labels: seen.append((inputs, labels))
    )
    digits_net.fit(digits_net.build(), digits_net.SPEC)
    ((inputs, labels),) = seen
    pixels, numbers = builtin.digits()
    assert len(inputs) == builtin.FITTED
    assert labels.tolist() == numbers[: builtin.FITTED]
    assert torch.equal(inputs[-1], torch.from_numpy(preprocess.apply(digits_net.SPEC, pixels[499])))


def test_random_and_state_dict_weights(cache: Cache, tmp_path: object) -> None:
    import torch

    fresh = resolve(Workload(model="digits", weights="random"), cache)
    assert (fresh.num_classes, fresh.label_source) == (10, None)
    file = f"{tmp_path}/w.pt"
    torch.save(fresh.module().state_dict(), file)
    loaded = resolve(Workload(model="digits", weights=file), cache)
    assert (loaded.num_classes, loaded.label_source) == (10, "digits")
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    assert (loaded.answers(x) == fresh.answers(x)).all()


@pytest.mark.parametrize("name", ["torch-eager", "onnxruntime", "openvino"])
def test_backends_serve_it(name: str, cache: Cache) -> None:
    policy = Policy()
    reference = load(build(WORKLOAD, policy, cache))
    backend = base.get(name)
    cell = Cell(
        backend=name, device="cpu", model="digits", weights="probe", images="digits",
        precision="fp32", batch_size=8, replicas=1, cores=1, scenario="latency",
        boundary="compute",
    )  # fmt: skip
    artefact = backend.prepare(cell, resolve(WORKLOAD, cache), cache)
    picked, outputs = batches(8, len(reference.images), 32), []
    with backend.open(cell, artefact, base.Device("cpu", 0, (0,))) as session:
        for batch in picked:
            session.copy_in(np.ascontiguousarray(reference.images[batch]))
            session.run()
            session.sync()
            outputs.append(session.copy_out())
    assert check(reference, picked, outputs, "fp32", policy).passed

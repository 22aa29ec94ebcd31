from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpubench.cache import Cache
from gpubench.suite.types import Policy, Workload
from gpubench.workload.data import builtin, preprocess
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models import builder, probe_weights
from gpubench.workload.models.registry import resolve
from gpubench.workload.parity import check
from gpubench.workload.reference import batches, build, load


@pytest.mark.slow
def test_a_probe_classifies_and_tells_right_from_wrong(cache: Cache) -> None:
    import torch

    workload, policy = Workload(), Policy()
    model = resolve(workload, cache)
    accuracy = builder.card(model.state()).held_out_accuracy
    assert accuracy is not None
    assert accuracy >= 0.9
    assert model.num_classes == 10
    path = build(workload, policy, cache)
    reference = load(path)
    assert build(workload, policy, cache) == path
    assert reference.engine == "torch-eager fp32"
    assert reference.images.shape == (64, 3, 224, 224)
    assert (reference.labels == reference.logits.argmax(1)).mean() >= 0.85
    assert min(int(Path(name).stem.split()[1]) for name in reference.names) >= builtin.FITTED
    # Photographs have no digit in them: no labels.
    assert (load(build(Workload(images="photos"), policy, cache)).labels == -1).all()

    module, picked = model.module(), batches(8, 64, 16)

    def run() -> list[np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
        with torch.inference_mode():
            return [module(torch.from_numpy(reference.images[b])).numpy() for b in picked]

    honest = check(reference, picked, run(), "fp32", policy)
    assert honest.passed
    # A weight laid out wrongly, as deep inside as can be, in one small layer.
    weight = module.layer1[0].conv1.weight
    weight.copy_(weight.flip(3))
    assert not check(reference, picked, run(), "fp32", policy).passed
    weight = module.layer4[1].conv2.weight
    weight.copy_(weight[torch.randperm(512)])
    assert not check(reference, picked, run(), "bf16", policy).passed


def test_a_network_that_sees_little_is_fitted() -> None:
    """As above on pictures of 32 pixels, in a fiftieth of the arithmetic."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = builder.build("resnet18", 10, {})
    with torch.inference_mode():
        accuracy = probe_weights.fit(module, Spec(size=(32, 32), resize=32))
        pixels, labels = builtin.digits()
        unseen = [
            preprocess.apply(Spec(size=(32, 32), resize=32), p)
            for p in pixels[builtin.FITTED :][:99]
        ]
        answers = module(torch.from_numpy(np.stack(unseen))).argmax(1).numpy()
    assert accuracy >= 0.85
    assert (answers == np.asarray(labels[builtin.FITTED :][:99])).mean() >= 0.8


def test_rectifiers_stay_nearly_linear_without_normalisations() -> None:
    """Fifteen layers deep, as SqueezeNet and VGG are: most of what a rectifier is given passes."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [nn.Conv2d(16 if at else 3, 16, 3, padding=1) for at in range(15)]
            self.plain = nn.Sequential(*(part for conv in layers for part in (conv, nn.ReLU())))
            self.last = nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.last(self.plain(x).mean((2, 3)))
            return found

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        module, spec = Net(), Spec(size=(16, 16), resize=16)
        accuracy = probe_weights.fit(module, spec)
        pixels, _ = builtin.digits()
        x = torch.from_numpy(np.stack([preprocess.apply(spec, p) for p in pixels[500:540]]))
        passed = []
        for part in module.plain:
            if isinstance(part, nn.ReLU):
                passed.append(float((x > 0).float().mean()))
            x = part(x)
    assert accuracy >= 0.5, "sixteen features"
    assert min(passed) >= 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "floor"),
    [("regnet_y_400mf", 0.8), ("mobilenet_v3_small", 0.85), ("squeezenet1_1", 0.85)],
)
def test_depth_does_not_multiply_noise(name: str, floor: float) -> None:
    """With squeeze and excitation, and without norms.

    200 digits that were not fitted; bf16 answers as fp32 does.
    """
    import torch

    module, spec = builder.build(name, 10, {}), Spec(size=(224, 224), resize=224)
    with torch.inference_mode():
        probe_weights.fit(module, spec)
        pixels, labels = builtin.digits()
        unseen = pixels[builtin.FITTED :][:200]
        images = torch.from_numpy(np.stack([preprocess.apply(spec, p) for p in unseen]))
        answers = torch.cat([module(some).argmax(1) for some in images.split(20)]).numpy()
        rounded = module.bfloat16()(images[:40].bfloat16()).argmax(1).numpy()
    assert (answers == np.asarray(labels[builtin.FITTED :][:200])).mean() >= floor
    assert (rounded == answers[:40]).mean() >= 0.8


def test_ridge_finds_a_linear_rule() -> None:
    rng = np.random.default_rng(0)
    rule = rng.normal(size=(400, 20))
    labels = rule[:, :3].argmax(1)
    target = np.eye(10)[labels]
    for middle, intercept in ((5.0, True), (0.0, False)):
        features = rule * rng.uniform(0.1, 10, 20) + middle
        features[:, 3] = 7.0 * intercept  # a dead feature
        weight, bias = probe_weights._ridge(features[:300], target[:300], intercept)
        answers = (features[300:] @ weight + bias).argmax(1)
        assert (answers == labels[300:]).mean() > 0.8
        assert bias.any() == intercept


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet18", 8), ("resnet50", 16), ("mobilenet_v2", 10), ("vgg11", 0)]
)
def test_damping_reaches_every_residual_branch(name: str, blocks: int) -> None:
    import torch

    module = builder.build(name, 10, {})
    probe_weights._damp(module.requires_grad_(False))
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    damped = [m for m in norms if (m.weight == 0.1).all()]
    assert len(damped) == blocks
    if name == "resnet50":
        assert all(block.bn3 in damped for block in module.layer1)

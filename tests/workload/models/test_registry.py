from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from gpubench.cache import Cache
from gpubench.errors import InputError, Unsupported
from gpubench.suite.types import Preprocess, Workload
from gpubench.workload.models import builder
from gpubench.workload.models.base import Model
from gpubench.workload.models.builder import load_module
from gpubench.workload.models.registry import names, resolve


def net(cache: Cache, model: str = "resnet18", weights: str = "random") -> Model:
    return resolve(Workload(model=model, weights=weights), cache)


def logits(module: Any, size: int = 64) -> np.ndarray[Any, Any]:
    import torch

    with torch.inference_mode():
        seed = torch.Generator().manual_seed(0)
        answers: np.ndarray[Any, Any] = module(torch.rand(2, 3, size, size, generator=seed)).numpy()
    return answers


def test_names_are_torchvisions_and_digits() -> None:
    import torchvision

    theirs = torchvision.models.list_models(module=torchvision.models)
    assert list(names()) == sorted([*theirs, "digits"])


def test_resolving_and_reading_imports_nothing_heavy() -> None:
    program = (
        "import sys; from gpubench import cache; from gpubench.suite.types import Workload;"
        "from gpubench.workload import reference;"
        "from gpubench.workload.data import builtin, preprocess;"
        "from gpubench.workload.models import onnx_export, registry;"
        "registry.resolve(Workload(), None); registry.names();"
        "print([m for m in ('torch', 'torchvision', 'numpy', 'onnx', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("resnet81", "probe", "'resnet81': did you mean 'resnet18'"),
        ("nothing like it", "probe", "unknown model 'nothing like it': `gpubench"),
        ("fcn_resnet50", "probe", "unknown model"),
        ("resnet18", "prob", "weights 'prob': no such file; give 'probe'"),
        ("digits", "DEFAULT", "'DEFAULT': digits has none of its own; give 'probe'"),
        ("digit", "probe", "'digit': did you mean 'digits'"),
        ("nowhere.onnx", "file", "'nowhere.onnx': no such file"),
    ],
)
def test_bad_names(cache: Cache, model: str, weights: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        net(cache, model, weights).state()


def test_random_weights_are_seeded_and_load_back_equal(cache: Cache) -> None:
    import torch
    from torchvision.models import get_model

    model = net(cache)
    assert model.input_shape == (3, 224, 224)
    assert model.num_classes == 1000
    module = model.module()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = get_model("resnet18").eval()
    assert (logits(module) == logits(expected)).all()
    assert not module.training
    assert not any(p.requires_grad or p.is_meta for p in module.parameters())
    assert net(cache).identity == model.identity != net(cache, "resnet34").identity


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["swin_v2_t", "maxvit_t", "vit_b_32", "inception_v3", "mnasnet0_5"]
)
def test_families_load_back_equal(cache: Cache, name: str) -> None:
    """Fast loading leaves no buffer or relative-position table behind."""
    import torch

    model = net(cache, name)
    state = model.state()
    card = builder.card(state)
    plain = builder.build(name, 1000, card.arguments)
    plain.load_state_dict(torch.load(state / "state.pt", weights_only=True))
    size = model.input_shape[1]
    assert (logits(load_module(state), size) == logits(plain, size)).all()


@pytest.fixture(scope="module")
def state_dict() -> dict[str, Any]:
    import torch
    from torchvision.models import get_model

    with torch.random.fork_rng():
        torch.manual_seed(5)
        state: dict[str, Any] = get_model("resnet18", num_classes=7).state_dict()
    return state


def plain(state: dict[str, Any]) -> Any:
    return state


def checkpoint(state: dict[str, Any]) -> Any:
    return {"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}


def half(state: dict[str, Any]) -> Any:
    return {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }


@pytest.mark.parametrize("form", [plain, checkpoint, half])
def test_a_state_dict_from_a_file(
    cache: Cache, tmp_path: Path, state_dict: dict[str, Any], form: Callable[[Any], Any]
) -> None:
    import torch
    from torchvision.models import get_model

    torch.save(form(state_dict), tmp_path / "w.pt")
    model = net(cache, weights=str(tmp_path / "w.pt"))
    assert model.num_classes == 7
    assert model.spec.resize == 256
    assert (model.spec.source, model.spec.assumed) == (builder.STATE_DICT, True)
    expected = get_model("resnet18", num_classes=7).eval()
    expected.load_state_dict(state_dict)
    tolerance = 1e-2 if form is half else 0
    np.testing.assert_allclose(logits(model.module()), logits(expected), atol=tolerance)


def test_files_that_are_no_weights(
    cache: Cache, tmp_path: Path, state_dict: dict[str, Any]
) -> None:
    import torch

    file = tmp_path / "w.pt"

    def fails(model: str = "resnet18") -> str:
        with pytest.raises(InputError) as caught:
            net(cache, model, str(file)).state()
        return str(caught.value)

    file.write_bytes(b"not a checkpoint")
    assert "no file of torch.save's: it begins with b'not a checkp'" in fails()
    torch.save(state_dict, file)
    assert "not resnet50's: missing: 198 of 320 tensors ('layer1.0.conv3.weight', " in (
        fails("resnet50")
    )
    assert "not vit_b_32's: missing: 152 of 152 tensors" in fails("vit_b_32")
    del state_dict["layer1.0.bn1.weight"]
    torch.save(state_dict, file)
    assert "missing: 1 of 122 tensors ('layer1.0.bn1.weight')" in fails()
    assert cache.info() is not None


def test_published_weights(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models._api as api
    from torchvision.models import get_model

    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(api, "load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=r"resnet18-\w+\.pth cannot be had .*no route.*'probe'"):
        net(cache, weights="DEFAULT").state()
    with pytest.raises(InputError, match="resnet18 has IMAGENET1K_V1, DEFAULT"):
        net(cache, weights="IMAGENET1K_V9").state()

    theirs = get_model("googlenet", init_weights=False, transform_input=True).eval()
    monkeypatch.setattr(
        api, "load_state_dict_from_url", lambda *args, **kwargs: theirs.state_dict()
    )
    model = net(cache, "googlenet", "DEFAULT")
    assert (model.num_classes, model.spec.resize, model.spec.size) == (1000, 256, (224, 224))
    assert (model.spec.source, model.spec.assumed) == ("as torchvision's weights say", False)
    assert (logits(model.module()) == logits(theirs)).all()


def test_preprocessing_given_in_a_suite_is_the_networks(cache: Cache) -> None:
    said = Preprocess(size=(24, 40), mean=(0.1,), std=(0.9,))
    work = Workload(model="digits", weights="random", preprocess=said)
    model, plain = resolve(work, cache), net(cache, "digits")
    assert (plain.spec.size, plain.spec.source) == ((32, 32), builder.HERE)
    assert model.input_shape == (3, 24, 40)
    assert (model.spec.mean, model.spec.std, model.spec.resize) == ((0.1,) * 3, (0.9,) * 3, None)
    assert model.spec.source.startswith("size, mean, std given in the suite; the rest as its")
    assert model.identity != plain.identity
    assert model.answers(np.zeros((2, 3, 24, 40), np.float32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        (
            "vit_b_16",
            Preprocess(size=(60,)),
            r"size = \[60, 60\]: vit_b_16 takes \[224, 224\], and",
        ),
        ("inception_v3", Preprocess(size=(32,)), r"size = \[32, 32\]: inception_v3 takes"),
        ("resnet18", Preprocess(layout="NHWC"), 'layout = "NHWC": resnet18 takes NCHW'),
        ("resnet18", Preprocess(channels="grey"), 'channels = "grey": resnet18 takes 3 channels'),
    ],
    ids=str,
)
def test_an_input_that_the_network_cannot_take(name: str, said: Preprocess, message: str) -> None:
    work = Workload(model=name, preprocess=said)
    source = builder.source_of(name)
    arguments = source.arguments(name)
    spec = source.spec(work, builder.build(name, 10, arguments, idle=True))
    with pytest.raises(InputError, match=f"workload.preprocess.{message}"):
        builder._override(spec, work, arguments)


def test_an_onnx_file_is_read_and_copied(cache: Cache, tiny_onnx: Callable[..., Path]) -> None:
    file = tiny_onnx()
    model = net(cache, str(file))
    assert model.is_onnx
    assert model.input_shape == (3, 8, 8)
    assert model.num_classes == 5
    copy = model.onnx("fp32")
    assert model.onnx("tf32", 4) == model.onnx("amp") == copy
    assert net(cache, str(tiny_onnx("other.onnx"))).identity == model.identity
    other = tiny_onnx("other.onnx", classes=6)
    assert net(cache, str(other)).identity != model.identity
    with pytest.raises(Unsupported, match="is fp32: ask for that precision, or give another"):
        model.onnx("fp16")
    with pytest.raises(InputError, match="torch cannot run"):
        model.module()
    with pytest.raises(InputError, match="torch cannot run"):
        model.state()


def test_an_onnx_file_with_weights_beside_it(cache: Cache, tiny_onnx: Callable[..., Path]) -> None:
    import onnxruntime

    file = tiny_onnx(external=True)
    model = net(cache, str(file))
    copy = model.onnx("fp32")
    assert (copy.parent / "tiny.onnx.data").is_file()
    before = model.identity
    session = onnxruntime.InferenceSession(copy, providers=["CPUExecutionProvider"])
    assert session.run(None, {"pixels": np.ones((2, 3, 8, 8), np.float32)})[0].shape == (2, 5)
    data = file.with_name("tiny.onnx.data")
    data.write_bytes(bytes(len(data.read_bytes())))
    assert net(cache, str(file)).identity != before
    data.unlink()
    with pytest.raises(InputError, match=r"'tiny.onnx.data', which is not a file beside it"):
        net(cache, str(file)).onnx("fp32")

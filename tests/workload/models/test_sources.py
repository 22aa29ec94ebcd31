"""Networks from wherever they come: each is a `Model` like torchvision's, or says why not."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.cache import Cache
from gpubench.errors import ChangedError, InputError, Unsupported
from gpubench.suite import types
from gpubench.suite.types import Policy, Preprocess, Workload
from gpubench.workload import reference
from gpubench.workload.data import preprocess
from gpubench.workload.models import builder, inspection, registry
from gpubench.workload.models.base import Model
from gpubench.workload.models.sources.timm import Timm

SMALL = Preprocess(size=(32,))
HEAD = """
import torch
from torch import nn

def small(classes=12, width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2),
        nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, classes))

class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small()
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Model]:
    """The network of a file with this code after `HEAD`, called ``build``."""
    count, cache = iter(range(1000)), Cache(tmp_path / "cache")

    def model(code: str = "build = small", call: str = "build", **more: Any) -> Model:
        file = tmp_path / f"own{next(count)}.py"
        file.write_text(HEAD + code)
        given = {"weights": "DEFAULT", "preprocess": SMALL} | more
        return registry.resolve(Workload(model=f"{file}:{call}", **given), cache)

    return model


@pytest.mark.parametrize(
    ("written", "source", "path", "weights"),
    [
        ("resnet50", "", "", "probe"),
        ("timm/vit_tiny_patch16_224.augreg_in21k", "timm", "", "probe"),
        ("hf/google/vit", "hf", "google/vit", "DEFAULT"),
        ("hf//models/vit", "hf", "/models/vit", "DEFAULT"),
        ("my_pkg.models:build", "code", "", "DEFAULT"),
        ("../x/model.py:build", "code", "../x/model.py", "DEFAULT"),
        ("timm/model.py:build", "code", "timm/model.py", "DEFAULT"),
        ("timm/x.onnx", "onnx", "timm/x.onnx", "file"),
        ("x.pt2", "pt2", "x.pt2", "file"),
        ("theirs/net", "theirs", "", "probe"),
        ("torchvision/resnet18", "", "", "probe"),
    ],
)
def test_how_it_is_written_says_where_it_is_from(
    written: str, source: str, path: str, weights: str
) -> None:
    assert types.source_of(written) == source
    assert types.model_path(written) == path
    assert types.default_weights(written) == weights
    if path:
        assert types.model_path(types.with_path(written, f"/new/{path}")) == f"/new/{path}"


def test_own_code_is_a_network_like_any_other(own: Callable[..., Model]) -> None:
    model = own(arguments=(("classes", 7), ("width", 6)))
    assert (model.input_shape, model.num_classes) == ((3, 32, 32), 7)
    assert model.spec.assumed
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    assert model.answers(images).shape == (3, 7)
    assert model.identity != own(arguments=(("classes", 7),)).identity
    assert own(arguments=(("classes", 7), ("width", 6))).num_classes == 7


def test_the_layout_of_own_code_is_what_the_suite_says(own: Callable[..., Model]) -> None:
    code = forward("return self.inner(x.permute(0, 3, 1, 2))")
    model = own(code, preprocess=Preprocess(size=(24, 32), layout="NHWC"))
    assert model.input_shape == (24, 32, 3)
    images = np.random.default_rng(0).normal(size=(3, 24, 32, 3)).astype(np.float32)
    turned = own(forward("return self.inner(x)"), preprocess=Preprocess(size=(24, 32)))
    expected = turned.answers(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(model.answers(images), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "code",
    [
        "build = small()",
        "def build(): return nn.DataParallel(small())",
        "def build(): return torch.compile(small())",
    ],
)
def test_a_module_in_the_place_of_its_builder_and_what_is_put_around_one(
    own: Callable[..., Model], code: str
) -> None:
    model = own("torch.manual_seed(0)\n" + code)
    assert type(model.module()).__name__ == "Sequential"
    assert model.module()[0].weight is not model.module()[0].weight


def test_random_weights_leave_no_answer_at_zero(cache: Cache) -> None:
    """Networks are born with heads and normalisations of zeros: nothing could be wrong there."""
    model = registry.resolve(Workload(model="timm/test_resnet", weights="random"), cache)
    module = model.module()
    assert all(part.weight.any() for part in module.modules() if hasattr(part, "weight"))


def test_a_file_of_a_package_is_imported_as_part_of_it(tmp_path: Path, cache: Cache) -> None:
    inner = tmp_path / "their_pkg" / "nets"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").touch()
    (inner.parent / "parts.py").write_text(HEAD)
    (inner / "net.py").write_text("from ..parts import small\nfrom . import net as again\n")
    model = registry.resolve(
        Workload(model=f"{inner / 'net.py'}:small", weights="DEFAULT", preprocess=SMALL), cache
    )
    assert model.num_classes == 12
    names = {Path(file).name for file in builder.card(model.state()).files}
    assert names == {"__init__.py", "parts.py", "net.py"}


@pytest.mark.parametrize(
    ("answer", "wanted", "note"),
    [
        ("{'features': x, 'logits': y}", "", "'logits' is taken, and 'features' not"),
        ("(y, x)", "", "0 is taken, and 1 not"),
        ("{'a': y, 'b': 2 * y}", "a", "'a' is taken, and 'b' not"),
        ("y[:, :, None, None]", "", "is flattened"),
        ("(y,)", "", ""),
        ("[y]", "0", ""),
        ("{'scores': y}", "scores", ""),
        ("Named(x, y)", "", "'scores' is taken, and 'features' not"),
        ("Named(2 * y, y)", "scores", "'scores' is taken, and 'features' not"),
        ("Held(y)", "", ""),
        ("Held(y, 2 * y)", "logits", "'logits' is taken, and 'other' not"),
        ("ImageClassifierOutput(logits=y)", "logits", ""),
    ],
)
def test_answers_are_taken_out_of_whatever_holds_them(
    own: Callable[..., Model], answer: str, wanted: str, note: str
) -> None:
    code = f"""
import typing, dataclasses
from transformers.modeling_outputs import ImageClassifierOutput

class Named(typing.NamedTuple):
    features: object
    scores: object

@dataclasses.dataclass
class Held:
    logits: object
    other: object = None

class build(Around):
    def forward(self, x):
        y = self.inner(x)
        return {answer}
"""
    model = own(code, output=wanted)
    assert model.num_classes == 12
    images = np.ones((2, 3, 32, 32), np.float32)
    plain = own("build = small").answers(images)
    np.testing.assert_allclose(model.answers(images), plain, rtol=1e-5)
    assert bool(model.notes) is bool(note)
    assert note in " ".join(model.notes)


def forward(body: str, signature: str = "self, x") -> str:
    return f"class build(Around):\n    def forward({signature}):\n        {body}\n"


STUCK = "class Stuck({0}):\n    def train(self, mode=True):\n        return super().train(True)\n"

BAD = {
    "not there": ("", "build", "'build' is not there; callables of .*own.*: small, Around"),
    "not callable": ("build = 5", "build", "'build' is int, which cannot be called"),
    "raises on import": ("1 / 0", "build", r"imported: ZeroDivisionError: .*own\d+.py:\d+\)"),
    "leaves on import": ("raise SystemExit(3)", "build", r"imported: SystemExit: 3 \(.*own"),
    "no Python": ("def (", "build", r"imported: SyntaxError: .*own\d+.py:\d+\)"),
    "an unknown import": ("import nowhere_at_all", "build", "No module named 'nowhere_at_all'"),
    "wrong arguments": ("def build(depth): ...", "build", r"build\(\) raises TypeError: .*'depth'.*"
                        r"\[workload.arguments\] are"),
    "no module": ("build = dict", "build", "build returns dict, and an nn.Module is expected"),
    "TorchScript": ("class build(torch.jit.ScriptModule):\n    pass", "build", "is TorchScript"),
    "a GPU": ("def build(): raise RuntimeError('Found no NVIDIA driver')", "build",
              r"Found no NVIDIA driver \(.*own.*\); build it on the CPU"),
    "no classifier": (forward("return x"), "build", r"no image classifier: for 2 pictures "
                      r"\(3, 32, 32\) it answers \(2, 3, 32, 32\) float32, not \(2, classes\)"),
    "yes or no": (forward("return self.inner(x)[:, :1]"), "build",
                  r"it answers \(2, 1\) float32, not \(2, classes\); of one logit"),
    "no tensor": (forward("return 'cat'"), "build", "it answers str, not"),
    "several outputs": (forward("y = self.inner(x)\n        return {'a': y, 'b': y}"), "build",
                        r"'a' \(2, 12\) float32, 'b' .*\[workload\] output = \"a\""),
    "two inputs": (forward("return self.inner(x)", "self, x, mask"), "build",
                   r"needs 2 inputs \(x, mask\)"),
    "a wrong shape": (forward("return self.inner(x[:, :1])"), "build",
                      r"layer .inner.0. \(Conv2d\) being given \(2, 1, 32, 32\) float32: Runtime"),
    "leaves in its forward": (forward("raise SystemExit(3)"), "build",
                              r"raises in its forward, build being .*: SystemExit: 3; its input"),
    "a GPU in its forward": (forward("return self.inner(x.cuda())"), "build",
                             "raises in its forward.*; build it on the CPU: gpubench moves"),
    "no batch of one": (forward("return self.inner(x).squeeze()"), "build",
                        r"answers 2 pictures with \(2, 12\) float32, and one alone with \(12\)"),
    "quantised": ("class Odd(nn.Module):\n    def get_extra_state(self): return torch.qint8\n"
                  "def build(): return nn.Sequential(small(), Odd())", "build",
                  "1._extra_state is no tensor, as in networks that torch"),
    "lazy": ("def build(): return nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten())", "build",
             "'0.weight' has no shape before the first picture"),
    "no eval mode": ("class build(Around):\n    def train(self, mode=True): raise ValueError(5)",
                     "build", r"build\(\) raises ValueError: 5 \(.*own"),
    "statistics of the batch": (
        STUCK.format("nn.BatchNorm2d") + "def build():\n    m = small()\n    m[1] = Stuck(8)\n"
        "    return m", "build", r"layer '1' \(Stuck\) normalises in eval mode"),
    "no statistics": (
        "def build():\n    m = small()\n    m[1] = nn.BatchNorm2d(8, track_running_stats=False)\n"
        "    return m", "build", r"layer '1' \(BatchNorm2d\) normalises in eval mode"),
    "dropout": (
        STUCK.format("nn.Dropout") + "def build(): return nn.Sequential(small(), Stuck())",
        "build", r"layer '1' \(Stuck\) drops out in eval mode"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_classifier_is_told_with_its_place(
    own: Callable[..., Model], case: str, tmp_path: Path
) -> None:
    code, call, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        own(code, call).state()
    assert re.search(r"model '.*own\d+\.py", str(caught.value))
    assert not [usage for usage in Cache(tmp_path / "cache").info() if usage.kind == "weights"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return self.inner(x) + torch.rand(12)", "the same images otherwise each time"),
        ("return nn.functional.dropout(self.inner(x))", "the same images otherwise each time"),
        ("x = nn.functional.batch_norm(x, None, None, training=True)\n        return self.inner(x)",
         "otherwise alone than in a batch of"),
        ("y = self.inner(x)\n        return y - y.mean(0)", "otherwise alone than in a batch of"),
    ],
)  # fmt: skip
def test_answers_that_are_another_each_time(
    own: Callable[..., Model], body: str, message: str, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    images *= np.arange(1, 6, dtype=np.float32)[:, None, None, None]
    with pytest.raises(InputError, match=message):
        own(forward(body)).answers(images)
    if "each time" in message:
        work = Workload(model=own(forward(body)).name, weights="DEFAULT", preprocess=SMALL)
        with pytest.raises(InputError, match=message):
            inspection.inspect(work, Cache(tmp_path / "cache"))


def test_a_network_in_double_or_half_precision_is_one_in_fp32(own: Callable[..., Model]) -> None:
    images = np.ones((2, 3, 32, 32), np.float32)
    expected = own().answers(images)
    for kind, most in (("double", 1e-6), ("half", 1e-2)):
        found = own(f"def build(): return small().{kind}()").answers(images)
        np.testing.assert_allclose(found, expected, rtol=most, atol=most)


def test_answers_that_are_not_finite_are_told_with_the_layer(
    own: Callable[..., Model], tmp_path: Path
) -> None:
    broken = own(
        "def build():\n    m = small()\n    m[3].weight.data[0] = float('nan')\n    return m"
    )
    work = Workload(model=broken.name, weights="DEFAULT", preprocess=SMALL, images="photos")
    with pytest.raises(InputError, match=r"own0.*not finite.*: Conv2d 3, whose weight is not fin"):
        reference.build(work, Policy(), Cache(tmp_path / "cache"))


def test_own_code_that_changes_is_another_network_or_is_told(
    own: Callable[..., Model], tmp_path: Path
) -> None:
    model = own()
    state = model.state()
    assert list(builder.card(state).files) == [str(tmp_path / "own0.py")]
    with (tmp_path / "own0.py").open("a") as file:
        file.write("\n# another\n")
    with pytest.raises(ChangedError, match=r"own0\.py' is not what it was"):
        builder.load_module(state)


def test_weights_that_own_code_reads_are_part_of_it(
    own: Callable[..., Model], tmp_path: Path
) -> None:
    import torch

    code = f"""
def build():
    m = small()
    m[8].bias.data.fill_(torch.load({str(tmp_path / "w.pt")!r}))
    return m
"""
    torch.save(1.0, tmp_path / "w.pt")
    before = own(code).module()[8].bias[0]
    torch.save(2.0, tmp_path / "w.pt")
    assert (before, own(code).module()[8].bias[0]) == (1, 2)


def test_neither_the_driver_nor_a_check_imports_own_code(tmp_path: Path) -> None:
    file = tmp_path / "marked.py"
    mark = f"pathlib.Path({str(tmp_path / 'mark')!r}).write_text(str(os.getpid()))"
    file.write_text(f"import os, pathlib\n{mark}\n")
    work = Workload(model=f"{file}:build", weights="DEFAULT")
    assert registry.seen(work) is None
    assert registry.is_file(work)
    assert not (tmp_path / "mark").exists()
    with pytest.raises(InputError):
        registry.resolve(work, Cache(tmp_path / "cache")).state()
    assert (tmp_path / "mark").read_text() == str(os.getpid())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image classifier of transformers, as save_pretrained writes it."""
    transformers = pytest.importorskip("transformers")
    at = tmp_path_factory.mktemp("hf") / "vit"
    names = {i: f"thing {i}" for i in range(12)}
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, id2label=names, label2id={v: k for k, v in names.items()},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(at)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(at)
    return at


def test_a_folder_of_transformers_is_a_network(folder: Path, cache: Cache) -> None:
    import torch
    from transformers import AutoModelForImageClassification

    work = Workload(model=f"hf/{folder}", weights="DEFAULT")
    model = registry.resolve(work, cache)
    assert (model.input_shape, model.num_classes) == ((3, 32, 32), 12)
    assert model.class_names[11] == "thing 11"
    assert (model.spec.mean, model.spec.source) == ((0.5,) * 3, "as its processor says")
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    theirs = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(images)).logits.numpy()
    np.testing.assert_allclose(model.answers(images), expected, rtol=1e-5, atol=1e-6)
    assert registry.is_file(work)
    with pytest.raises(
        InputError, match=r"no/such' cannot be had: .* give a folder that save_pret"
    ):
        registry.resolve(Workload(model="hf//no/such", weights="DEFAULT"), cache).state()


def test_a_folder_of_a_type_with_several_heads_and_one_without_a_processor(
    tmp_path: Path, cache: Cache
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DeiTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, num_labels=5,
    )  # fmt: skip
    transformers.DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path / "deit")
    bare = Workload(model=f"hf/{tmp_path / 'deit'}", weights="DEFAULT")
    with pytest.raises(InputError, match=r"or say what it does in \[workload.preprocess\]"):
        registry.resolve(bare, cache).state()
    said = Preprocess(mean=(0.5,), std=(0.5,))
    model = registry.resolve(Workload(model=bare.model, weights="DEFAULT", preprocess=said), cache)
    assert (model.input_shape, model.num_classes) == ((3, 32, 32), 5)
    assert type(model.module().network).__name__ == "DeiTForImageClassificationWithTeacher"


def test_a_folder_without_a_classifiers_weights(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folder, tmp_path / "vit")
    state = load_file(copy / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    work = Workload(model=f"hf/{copy}", weights="DEFAULT")
    with pytest.raises(
        InputError, match=r"lack 1 tensors of an image classifier .'classifier.weig"
    ):
        registry.resolve(work, Cache(tmp_path / "cache")).state()


def exported(file: Path, shape: tuple[int, ...], module: Any = None, fixed: bool = False) -> Path:
    import torch
    from torch import nn

    torch.manual_seed(0)
    module = module or nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 5))  # fmt: skip
    batch = None if fixed else ({0: torch.export.Dim("batch")},)
    made = torch.export.export(module.eval(), (torch.zeros(2, *shape),), dynamic_shapes=batch)
    torch.export.save(made, file)
    return file


@pytest.mark.parametrize(
    "sizes", ["[2, 3]", '[{"as_int": "x"}]', '[{"as_int": -4}]', '[{"as_int": 1e30}]', "null"]
)
def test_what_a_program_says_oddly_is_not_known_before_it_is_read(
    tmp_path: Path, sizes: str
) -> None:
    file = exported(tmp_path / "x.pt2", (3, 8, 8), fixed=True)
    odd = tmp_path / "odd.pt2"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(odd, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("models/model.json"):
                program = json.loads(data)
                for value in program["graph_module"]["graph"]["tensor_values"].values():
                    value["sizes"] = json.loads(sizes)
                data = json.dumps(program).encode()
            new.writestr(name, data)
    for suffix, work in (("", odd), ("encrypted", tmp_path / "locked.pt2")):
        if suffix:  # the flag of every member, in the central directory and before its data
            data = bytearray(file.read_bytes())
            for mark, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
                place = data.find(mark)
                while place >= 0:
                    data[place + at] |= 1
                    place = data.find(mark, place + 1)
            work.write_bytes(data)
        assert registry.seen(Workload(model=str(work), weights="file")) is None


@pytest.mark.parametrize("fixed", [False, True])
def test_a_program_of_torch_export_is_a_network(tmp_path: Path, cache: Cache, fixed: bool) -> None:
    file = exported(tmp_path / "x.pt2", (1, 16, 24), fixed=fixed)
    work = Workload(model=str(file), weights="file")
    assert registry.seen(work) == registry.Look("", 2 if fixed else 0, "float32")
    model = registry.resolve(work, cache)
    assert (model.input_shape, model.num_classes) == ((1, 16, 24), 5)
    assert (model.spec.channels, model.fixed_batch) == ("grey", 2 if fixed else None)
    images = np.random.default_rng(0).normal(size=(5, 1, 16, 24)).astype(np.float32)
    assert model.answers(images).shape == (5, 5)
    if fixed:
        with pytest.raises(Unsupported, match="has a fixed batch size of 2, and cannot have 3"):
            model.onnx("fp32", 3)


ELSEWHERE = """
import sys
from gpubench.errors import InputError
from gpubench.workload.models.sources.exported import Exported
import torch
print(list(Exported().build(sys.argv[1], 0, {})(torch.zeros(2, 3, 8, 8))))
try:
    Exported().build(sys.argv[2], 0, {})
except InputError as error:
    print(error)
"""


@dataclasses.dataclass
class Held:
    logits: Any


def test_a_program_that_answers_with_a_class_needs_no_import_of_the_users(tmp_path: Path) -> None:
    """Transformers' outputs are known once it is imported; of another class the remedy is told."""
    import torch
    from transformers.modeling_outputs import ImageClassifierOutput

    class Answers(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, kind: Any) -> None:
            super().__init__()
            self.kind, self.last = kind, torch.nn.Linear(192, 5)

        def forward(self, x: Any) -> Any:
            return self.kind(logits=self.last(x.flatten(1)))

    torch.export.register_dataclass(Held, serialized_type_name="own.Held")
    files = [str(exported(tmp_path / f"{kind.__name__}.pt2", (3, 8, 8), Answers(kind)))
             for kind in (ImageClassifierOutput, Held)]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *files], capture_output=True, text=True, check=True
    )
    found, refused = done.stdout.splitlines()
    assert found == "['logits']"
    assert refused.endswith("answers with a tensor, a tuple or a dict (it answers with own.Held)")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("data/aotinductor/model/x.so",), "a compiled package of AOTInductor"),
        (("constants.pkl", "data.pkl"), "is TorchScript; torch.export.save"),
        (("word/document.xml",), "is no program of torch.export; torch.export.save"),
        ((), "is no file of torch.export's: File is not a zip file"),
    ],
)
def test_files_that_are_no_programs(tmp_path: Path, parts: Any, message: str) -> None:
    file = tmp_path / "x.pt2"
    file.write_bytes(b"text")
    if parts:
        with zipfile.ZipFile(file, "w") as archive:
            for part in parts:
                archive.writestr(f"x/{part}", b"")
    with pytest.raises(InputError, match=message):
        registry.seen(Workload(model=str(file), weights="file"))


def test_weights_from_safetensors(cache: Cache, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from gpubench.workload.models import digits_net

    state = digits_net.build(7).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    work = Workload(model="digits", weights=str(tmp_path / "w.safetensors"))
    assert registry.resolve(work, cache).num_classes == 7


def test_what_a_network_is(own: Callable[..., Model], folder: Path, cache: Cache) -> None:
    model = own()
    work = Workload(model=model.name, weights="DEFAULT", preprocess=SMALL)
    found = inspection.inspect(work, cache)
    assert (found.kind, found.input_shape, found.classes) == ("Sequential", (3, 32, 32), 12)
    first, second = 2 * 15 * 15 * 8 * 27, 2 * 7 * 7 * 8 * 72
    assert found.modules == {"0": first, "3": second, "8": 2 * 8 * 12}
    assert found.flops == sum(found.modules.values())
    assert found.parameters == 8 * 27 + 8 + 16 + 8 * 72 + 8 + 16 + 8 * 12 + 12
    of_folder = inspection.inspect(Workload(model=f"hf/{folder}", weights="DEFAULT"), cache)
    assert of_folder.kind == "ViTForImageClassification"
    assert {name.split(".")[0] for name in of_folder.modules} == {"vit", "classifier"}


def test_names_that_no_source_has() -> None:
    for name, message in (
        ("tim/resnet18", "did you mean 'timm/'"),
        ("nobody/x", "unknown model 'nobody/x': `gpubench"),
        ("torchvision/resnet18", "unknown model 'torchvision/resnet18': did you mean 'resnet18'"),
        ("digits/digits", "did you mean 'digits'"),
        ("code/x", "unknown model 'code/x': `gpubench"),
        ("onnx/x", "unknown model 'onnx/x': `gpubench"),
    ):
        with pytest.raises(InputError, match=message):
            registry.of(name)
    for name, near in (("resnet500", "resnet50"), ("vit_tiny", "vit_tiny_patch16_224")):
        with pytest.raises(InputError, match=f"did you mean 'timm/{near}'"):
            builder.build(f"timm/{name}", 10, {})


def timm_with(**said: Any) -> Any:
    """A network of timm whose pictures are fitted so."""
    import timm

    said = {"input_size": (3, 56, 56)} | said
    return timm.create_model("test_resnet", pretrained_cfg_overlay=said)


OBLONG = (3, 40, 56)


@pytest.mark.parametrize(
    "said",
    [
        {"crop_mode": "center", "crop_pct": 0.9},
        {"crop_mode": "center", "crop_pct": 1.15},
        {"crop_mode": "squash", "crop_pct": 1.0},
        {"crop_mode": "squash", "crop_pct": 0.9},
        {"crop_mode": "squash", "crop_pct": 0.9, "input_size": OBLONG},
    ],
    ids=str,
)
def test_pictures_are_fitted_as_timm_does(said: dict[str, Any]) -> None:
    import timm
    from PIL import Image

    module = timm_with(**said)
    spec = Timm().spec(Workload(model="timm/test_resnet", weights="DEFAULT"), module)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
    for shape in ((61, 90), (90, 61), (70, 70)):
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        right = theirs(Image.fromarray(pixels)).numpy()
        np.testing.assert_allclose(preprocess.apply(spec, pixels), right, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "size"), [("border", (3, 56, 56)), ("border", OBLONG), ("center", OBLONG)]
)
def test_where_it_cannot_be_so_it_is_refused(mode: str, size: tuple[int, int, int]) -> None:
    module, work = timm_with(crop_mode=mode, input_size=size), Workload(model="timm/test_resnet")
    trained = replace(work, weights="DEFAULT")
    with pytest.raises(InputError, match=f"fits pictures .* in crop_mode '{mode}', .* crop = fals"):
        Timm().spec(trained, module)
    with pytest.raises(InputError, match="crop = true and resize"):
        Timm().spec(replace(trained, preprocess=Preprocess(crop=True)), module)
    for other in (work, replace(trained, preprocess=Preprocess(crop=False))):
        assert Timm().spec(other, module).size == size[1:]


def test_timm_says_how_pictures_become_its_input(cache: Cache) -> None:
    def model(**more: Any) -> Model:
        work = Workload(model="timm/test_vit", weights="random", **more)
        return registry.resolve(work, cache)

    spec = model().spec
    assert (spec.size, spec.resize, spec.mean) == ((160, 160), 160, (0.5,) * 3)
    other = model(preprocess=Preprocess(size=(96,)))
    assert other.input_shape == (3, 96, 96)
    assert other.answers(np.zeros((2, 3, 96, 96), np.float32)).shape == (2, 1000)
    with pytest.raises(InputError, match=r"\[workload.arguments\]: .* 'nonsense'"):
        model(arguments=(("nonsense", 1),)).state()

"""`gpubench deploy`: what is refused, that nothing wrong is written, and what a folder says."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image

import gpubench
from gpubench.backends import base
from gpubench.backends.onnxruntime import OnnxRuntime
from gpubench.backends.torch_compile import TorchCompile
from gpubench.cache import Cache
from gpubench.errors import GpubenchError, InputError
from gpubench.pipeline.check import difference
from gpubench.records.record import Record
from gpubench.records.writer import Writer
from gpubench.run import deploy as deploying
from gpubench.run import setup
from gpubench.run.serving import manifest, readme
from gpubench.run.serving.inputs import Preprocessing
from gpubench.run.serving.manifest import Manifest
from gpubench.run.watcher import Silent
from gpubench.workload.data import image_file, preprocess
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models import builder, digits_net
from gpubench.workload.reference import Reference
from tests.backends.onnx_files import WEIGHTS, colour_net, conv_net
from tests.pipeline.decoders import samples
from tests.report import make

Deployed = Callable[..., Path]
WriteSuite = Callable[..., Path]


def gpubench_deploy(*words: object) -> subprocess.CompletedProcess[str]:
    code = "from gpubench.cli.main import main; main()"
    command = [sys.executable, "-c", code, "deploy", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_writes_a_folder_that_loads(
    write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    out = tmp_path / "made" / "here"
    done = gpubench_deploy(write_suite(), "--batch-size", 4, "-o", out, "--cache-dir", cache_dir)
    assert done.returncode == 0, done.stderr
    assert "answers checked, 100.0% as the reference's" in done.stdout
    assert f"gpubench.load('{out}')" in done.stdout
    assert [p.name for p in out.parent.iterdir()] == ["here"], "nothing is left beside it"
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names == {"deployment.json", "README.md", "model/gpubench_fakes.py"}
    with gpubench.load(out) as classifier:
        [found] = classifier(np.zeros((20, 20, 3), np.uint8))
        assert found.label == str(found.index), "names are not known"
    again = gpubench_deploy(write_suite(), "--batch-size", 4, "-o", out, "--cache-dir", cache_dir)
    assert again.returncode == 2
    assert f"-o {out}: the folder is not empty" in again.stderr


def run(suite: Path, cache: Path, out: Path, **chosen: Any) -> Manifest:
    session = setup.session(str(suite), chosen, cache, out, False, ())
    return deploying.deploy(session, str(suite), out, Silent())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({}, InputError, r"2 cells, and one is deployed: .* \(fake fp32 b1 x1 latency\), .*--cell"),
        ({"batch_size": "[1]", "backend": '["null"]'}, InputError, "null computes nothing"),
        ({"batch_size": "[1]", "axes": '[axes.options.fake]\nfail = ["unsupported"]'}, InputError,
         "told to support nothing"),
        ({"batch_size": "[1]", "backend": '["fake-missing"]'}, GpubenchError,
         "not on this machine; remedy: pip install"),
        ({"batch_size": "[1]", "axes": '[axes.options.fake]\nfail = ["wrong"]'}, GpubenchError,
         "parity: relative error .*; nothing was written"),
        ({"batch_size": "[1]", "axes": '[axes.options.fake]\nfail = ["prepare"]'}, GpubenchError,
         "told to fail in prepare.*; nothing was written"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_nothing(
    here: None,
    write_suite: WriteSuite,
    tmp_path: Path,
    cache_dir: Path,
    changes: dict[str, str],
    error: type[Exception],
    words: str,
) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(error, match=words):
        run(write_suite(**changes), cache_dir, out)
    assert not list(tmp_path.glob("deep/*"))


def test_a_decoder_on_the_device_is_refused(
    here: None,
    write_suite: WriteSuite,
    tmp_path: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpubench_fake_decoders.Exact.on_device", True)
    path = {"boundary": '["pipeline"]', "decoder": '["fake-exact"]', "batch_size": "[1]"}
    with pytest.raises(InputError, match=r"'fake-exact' works on the GPU.*--decoder pil"):
        run(write_suite(**path), cache_dir, tmp_path / "out")


def test_a_cell_is_chosen_by_its_key(
    here: None, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite()
    cells = setup.session(str(suite), {}, cache_dir, tmp_path, False, ()).plan.cells
    made = run(suite, cache_dir, tmp_path / "out", cell=(cells[1].key,))
    assert (made.cell, made.decoder) == (cells[1], "pil")
    said = (tmp_path / "out" / "README.md").read_text()
    assert "boundary `compute`: the network alone" in said


def test_several_batches_in_flight_are_refused(
    here: None,
    write_suite: WriteSuite,
    tmp_path: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = type(base.get("fake"))
    monkeypatch.setattr(fake, "in_flight", lambda self, cell, cores: 2, raising=False)
    with pytest.raises(InputError, match="one at a time"):
        run(write_suite(batch_size="[1]"), cache_dir, tmp_path / "out")


def test_where_nothing_can_be_written_is_bad_input(
    here: None, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"-o .*file/out: cannot be written: File exists"):
        run(write_suite(batch_size="[1]"), cache_dir, tmp_path / "file" / "out")


def test_a_path_keeps_its_decoder(
    here: None, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    path = {"boundary": '["pipeline"]', "decoder": '["fake-exact"]', "batch_size": "[4]"}
    made = run(write_suite(**path), cache_dir, tmp_path / "out")
    assert made.decoder == "fake-exact"
    said = (tmp_path / "out" / "README.md").read_text()
    assert "boundary `pipeline`: encoded bytes to labels" in said
    assert {"fake", "pillow"} <= made.made_for.libraries.keys()
    with gpubench.load(tmp_path / "out") as classifier:
        assert len(classifier([np.zeros((16, 16, 3), np.uint8)] * 5)) == 5


def test_the_score_of_a_file_that_ends_in_softmax_is_its_own(
    here: None, tmp_path: Path, cache_dir: Path
) -> None:
    """And its fixed batch, its outputs and its layout are no matter of the caller's."""
    file = colour_net(
        tmp_path / "net.onnx", (2, 32, 32, 3), last=True, weights=30 * WEIGHTS,
        ends=(("ArgMax", {"axis": 1, "keepdims": 0}), ("Softmax", {})),
        outputs={"ArgMax": ("n",), "Softmax": ("n", 5)},
    )  # fmt: skip
    suite = tmp_path / "net.toml"
    suite.write_text(
        f'[workload]\nmodel = "{file}"\nimages = "photos"\n[axes]\nbackend = ["onnxruntime"]\n'
        'batch_size = 2\ndevice = "cpu"\nscenario = "latency"\ncores = 1\n'
    )
    made = run(suite, cache_dir, tmp_path / "out")
    assert (made.outputs, made.answers) == (5, "probabilities")
    picture = np.full((32, 32, 3), (210, 40, 50), np.uint8)
    means = preprocess.apply(made.preprocessing, picture).mean((0, 1)) @ (30 * WEIGHTS)
    powers = np.exp(means - means.max())
    with gpubench.load(tmp_path / "out") as classifier:
        [found] = classifier([picture])
        assert found.index == means.argmax()
        assert found.score == pytest.approx(powers.max() / powers.sum(), rel=1e-4)


def test_weights_of_a_file_that_holds_several_are_named(
    here: None, digits_suite: Path, tmp_path: Path, cache: Cache
) -> None:
    state = digits_net.build(10).state_dict()
    torch.save({"model": state, "model_ema": dict(state)}, tmp_path / "w.pth")
    made = run(
        digits_suite,
        cache.root,
        tmp_path / "out",
        weights=str(tmp_path / "w.pth"),
        backend=["torch-eager"],
    )
    taken = "'model' is taken, and 'model_ema' not: weights = 'w.pth#model_ema' takes that"
    assert made.weights_taken == taken
    assert taken.replace("_", "\\_").replace("#", "\\#") in (tmp_path / "out/README.md").read_text()


def test_a_model_without_a_suite_is_deployed(here: None, tmp_path: Path, cache_dir: Path) -> None:
    """No file says it, and no run lies beside one."""
    chosen: dict[str, Any] = {"backend": "onnxruntime", "batch_size": 4, "boundary": "compute"}
    made = gpubench.deploy("digits", tmp_path / "out", cache_dir=cache_dir, progress=False,
                           scenario="latency", device="cpu", **chosen)  # fmt: skip
    assert made.measured is None
    assert (tmp_path / "out" / manifest.MANIFEST).is_file()


def test_an_empty_folder_is_filled_and_a_file_is_not(tmp_path: Path) -> None:
    deploying.free(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    deploying.free(tmp_path / "empty")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("file", "link"):
        with pytest.raises(InputError, match=f"{name}: not a folder"):
            deploying.free(tmp_path / name)


def test_figures_are_those_of_the_run_beside_the_suite(
    write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[4]")
    session = setup.session(str(suite), {}, cache_dir, tmp_path, False, ())
    [cell] = session.plan.cells
    now = Record(cell=cell, repeat=0, status="ok", contents={"model": "a"})
    assert deploying._figures(session, str(suite), now) is None
    rng = np.random.default_rng(0)
    header = make.header([cell], fingerprint=session.header.fingerprint)
    with Writer(tmp_path, header) as writer:
        for repeat in range(3):
            writer.append(replace(make.record(cell, repeat, rng), contents=now.contents))
    found = deploying._figures(session, str(suite), now)
    assert found is not None
    assert (found.run_id, found.repeats) == (header.run_id, 3)
    assert found.p50_ns == pytest.approx(make.batch_ns(cell), rel=0.1)
    assert found.p99_ns
    assert found.p99_ns > found.p50_ns
    other = replace(session, header=replace(header, fingerprint="else"))
    assert deploying._figures(other, str(suite), now) is None, "another machine's"
    changed = replace(now, contents={"model": "b"})
    assert deploying._figures(session, str(suite), changed) is None, "another network's"


def snippets(folder: Path) -> list[str]:
    text = (folder / manifest.README).read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("given", ["float32", "uint8", "float16"])
@pytest.mark.parametrize(
    "backend", ["onnxruntime", "openvino", pytest.param("aot-inductor", marks=pytest.mark.slow)]
)
def test_the_snippets_of_the_readme_answer_as_the_reference(
    deploy: Deployed, reference: Reference, backend: str, given: str, tmp_path: Path
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(deploy(backend=[backend], input=[given]), folder)
    said = (folder / manifest.README).read_text()
    assert f"takes preprocessed batches, {given}\n(N, 3, 32, 32)" in said
    assert ("cast, scale and normalisation are part of the network" in said) == (given == "uint8")
    with_gpubench, without, _ = snippets(folder)
    assert "gpubench" not in without
    for at in (0, 1, 2):
        (folder / "picture.png").write_bytes(reference.encoded(at))
        scope: dict[str, Any] = {}
        bare = without.replace('"model/', f'"{folder}/model/').replace(
            '"labels', f'"{folder}/labels'
        )
        assert bare != without
        exec(bare.replace('"picture', f'"{folder}/picture'), scope)  # noqa: S102
        near = 1e-2 if given == "float16" else 1e-3
        np.testing.assert_allclose(scope["logits"][0], reference.logits[at], atol=near)
        assert scope["labels"] == [str(n) for n in range(10)]
    code = [sys.executable, "-c", with_gpubench]
    done = subprocess.run(code, cwd=folder, capture_output=True, text=True, check=True)
    label = str(reference.logits[2].argmax())
    assert done.stdout.startswith(f"{label} "), done.stderr


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_snippet_of_a_file_with_a_batch_size_of_its_own(
    deploy: Deployed, reference: Reference, tmp_path: Path, backend: str
) -> None:
    file = conv_net(tmp_path / "net.onnx", batch=4)
    folder = deploy(model=str(file), weights="file", backend=[backend])
    picture = tmp_path / "picture.png"
    picture.write_bytes(reference.encoded(0))
    scope: dict[str, Any] = {}
    bare = snippets(folder)[1].replace('"model/', f'"{folder}/model/')
    exec(bare.replace("picture.png", str(picture)), scope)  # noqa: S102
    with gpubench.load(folder) as served:
        [found] = served.logits(scope["preprocess"](picture))
    np.testing.assert_allclose(scope["logits"], [found] * 4, atol=1e-5)


@pytest.mark.parametrize("spec", samples.ARRANGED, ids=str)
def test_the_snippets_preprocessing_is_the_manifests(deploy: Deployed, spec: Spec) -> None:
    text = readme.text(replace(manifest.read(deploy()), preprocessing=spec))
    assert f"(N, {', '.join(map(str, spec.shape))})" in text
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1]
    scope: dict[str, Any] = {}
    exec(code.partition("session = ")[0].replace("import onnxruntime\n", ""), scope)  # noqa: S102
    data = samples.jpeg((500, 375))
    found = scope["preprocess"](BytesIO(data))
    right = preprocess.apply(spec, image_file.decode_file(BytesIO(data)))
    assert (found.shape, found.dtype) == ((1, *spec.shape), right.dtype)
    np.testing.assert_allclose(found[0], right, rtol=1e-6)


def test_the_readme_says_who_says_so_and_calls_no_assumption_checked(deploy: Deployed) -> None:
    made = manifest.read(deploy())
    assert made.preprocessing.source == builder.HERE
    assert f"mean 0.5, std 0.5 ({builder.HERE}) |" in readme.text(made)
    assert "assumed" not in readme.text(made)
    text = readme.text(replace(made, preprocessing=preprocess.assumed((8, 8))))
    assert "ImageNet's mean and std (assumed: the file does not say) |" in text
    assert "- The preprocessing is assumed, not checked" in text


def test_a_deployment_with_a_preprocessing_of_its_own(deploy: Deployed) -> None:
    said = {"size": [24, 40], "channels": "bgr", "range": [0, 255], "std": 50}
    data = samples.jpeg((500, 375))
    with gpubench.load(deploy(weights="random", preprocess=said)) as classifier:
        spec = classifier.manifest.preprocessing
        assert (spec.size, spec.resize, spec.channels) == ((24, 40), None, "bgr")
        made = preprocess.apply(spec, image_file.decode_file(BytesIO(data)))
        [logits] = classifier.logits(made[None])
        assert [p.index for p in classifier([data, np.asarray(Image.open(BytesIO(data)))])] == [
            logits.argmax()
        ] * 2
        with pytest.raises(InputError, match=r"expected \(N, 3, 24, 40\) of float32"):
            classifier.logits(np.zeros((1, 3, 32, 32), np.float32))


@pytest.mark.parametrize("name", ["pil", "torchvision", "turbo"])
def test_orientation_notes_are_not_followed_however_a_picture_comes(name: str) -> None:
    spec, data = preprocess.assumed((32, 64)), samples.KINDS["turned"]()
    made, found = Preprocessing(name, spec), np.empty((2, 3, 32, 64), np.float32)
    plain = preprocess.apply(spec, np.asarray(samples.photo(samples.SHAPE)))
    for row, picture in zip(found, (data, Image.open(BytesIO(data))), strict=True):
        made.fill(picture, row, 0)
        _, mean = difference(spec, row[None], plain[None])
        assert mean < 3, "but for JPEG's losses it is the picture as it lies in the file"


def test_the_server_of_the_readme_answers(deploy: Deployed, reference: Reference) -> None:
    folder = deploy(backend=["torch-eager"])
    scope: dict[str, Any] = {}
    exec(snippets(folder)[-1].replace('load(".")', f"load({str(folder)!r})"), scope)  # noqa: S102
    said: list[str] = []
    for data in (reference.encoded(0), b"no picture"):
        environ = {"wsgi.input": io.BytesIO(data)}
        body = scope["app"](environ, lambda status, _: said.append(status))
        said.append(b"".join(body).decode())
    scope["classifier"].close()
    label = str(reference.logits[0].argmax())
    assert said == ["200 OK", label, "400 Bad Request", "image 0: not an image"]


def test_the_readme_of_a_torchvision_network(deploy: Deployed) -> None:
    made = manifest.read(deploy(backend=["torch-eager"]))
    assert "only gpubench loads it" in readme.text(made)
    cell = replace(made.cell, model="resnet18", weights="a|b<script>`")
    text = readme.text(replace(made, cell=cell))
    assert "weights a\\|b\\<script\\>\\`" in text
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1]
    compile(code, "README", "exec")
    assert 'torch.load("model/state.pt", weights_only=True)' in code
    for model in ("timm/resnet18", "hf/resnet", "model.py:build", "model.pt2"):  # torchvision's?
        other = replace(made, cell=replace(cell, model=model))
        assert "only gpubench loads it" in readme.text(other)


def test_the_readme_says_a_rate_in_plain_digits(deploy: Deployed) -> None:
    fast = manifest.Measured(run_id="r", repeats=3, images_per_s=138_012.0)
    text = readme.text(replace(manifest.read(deploy()), measured=fast))
    assert "| speed | 138,000 images/s (a batch of 4, boundary transfer; 3 repeats of" in text


@pytest.fixture
def copy(deploy: Deployed, tmp_path: Path) -> Path:
    return Path(shutil.copytree(deploy(), tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model/onnx/model.onnx", lambda data: data[:-1], r"has [\d,]+ bytes, [\d,]+ were written"),
        ("model/onnx/model.onnx", lambda data: data[:-1] + b"!", "is not what was written"),
        ("labels.txt", lambda data: data.replace(b"1", b"2"), "is not what was written"),
        ("deployment.json", lambda data: data[:99], "not a deployment's manifest"),
        ("deployment.json", lambda data: data.replace(b'"format": 2', b'"format": 1'),
         "format 1, and this gpubench reads 2: .*or deploy again"),
        ("deployment.json", lambda data: data.replace(b'"batch_size": 4', b'"batch_size": -4'),
         "not a deployment's manifest .*batch_size"),
        ("deployment.json", lambda data: data.replace(b'"replicas": 1,', b'"replicas": 2,'),
         "cores of 1 replicas, the cell has 2"),
        ("deployment.json", lambda data: data.replace(b'"labels.txt"', b'"../labels.txt"'),
         "no file of this folder"),
        ("deployment.json", lambda data: data.replace(b'fact": "model', b'fact": "/model'),
         "no file of this folder"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(
    copy: Path, name: str, damage: Callable[[bytes], bytes], words: str
) -> None:
    path = copy / name
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    with pytest.raises(InputError, match=f"{re.escape(str(path))}.*{words}"):
        gpubench.load(copy)


def test_missing_files_are_named_and_the_readme_is_free(copy: Path) -> None:
    (copy / "README.md").unlink()
    gpubench.load(copy).close()
    model = copy / "model/onnx/model.onnx"
    model.unlink()
    with pytest.raises(InputError, match=r"model\.onnx: No such file or directory; copy the whole"):
        gpubench.load(copy)
    model.mkdir()
    with pytest.raises(InputError, match=r"model\.onnx: not a file"):
        gpubench.load(copy)
    with pytest.raises(InputError, match=r"deployment\.json: No such file.*gpubench deploy"):
        gpubench.load(copy / "model")


def test_entries_that_name_others_can_be_moved(tmp_path: Path) -> None:
    """torch-compile's, and that of ONNX Runtime's TensorRT provider: a path in a file."""
    cache = Cache(tmp_path / "cache")

    def entry(kind: str, **files: str) -> Path:
        def fill(at: Path) -> None:
            for name, body in files.items():
                (at / name.replace("_", ".")).write_text(body)

        return cache.get_or_make(kind, {"of": kind}, fill)

    state = entry("state", state_pt="tensors")
    compiled = entry("compiled", state_json=json.dumps(str(state)), inductor_so="code")
    onnx = entry("onnx", model_onnx="network", weights_bin="external")
    engine = entry("engine", onnx_json=json.dumps(str(onnx / "model.onnx")), a_engine="plan")
    for backend, made, link, target in (
        (TorchCompile(), compiled, "state.json", "state.pt"),
        (OnnxRuntime(), engine, "onnx.json", ""),
    ):
        first = tmp_path / backend.name
        found = backend.export(made, first)
        moved = first.rename(tmp_path / f"{backend.name}-moved") / found.relative_to(first)
        named = moved / json.loads((moved / link).read_text())
        assert (named / target).is_file()
        assert named.resolve().is_relative_to(tmp_path / f"{backend.name}-moved")
        assert not list(moved.rglob("manifest.json"))
    assert (moved.parent / "onnx/weights.bin").is_file()
    assert OnnxRuntime().export(onnx / "model.onnx", tmp_path / "plain").name == "model.onnx"

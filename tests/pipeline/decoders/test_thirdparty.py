"""A stranger's decoder: found by its entry point, opened, shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpubench.cli.main import cli
from gpubench.errors import InputError
from gpubench.pipeline.decoders import base
from gpubench.workload.data.preprocess import Spec
from tests.pipeline.decoders import samples

SOURCE = '''
"""A complete decoder: grey everywhere."""
class Grey:
    name = "grey"
    summary = "grey, whatever it is given"
    preload = ()  # modules to import once, before worker processes are forked
    on_device = False

    def probe(self):  # what is here; or raise gpubench.errors.Unavailable(reason, remedy)
        return {"shade": 0.5}

    def unsupported(self, device):  # why it cannot serve cells on this device, or None
        return None

    def open(self, spec, index=None):  # for one thread; heavy imports belong here
        return Preprocessor()

class Preprocessor:
    facts = {"shade": 0.5}

    def decode(self, data):  # pixels in any form; or raise image_file.Unusable
        return None

    def transform(self, pixels, out):  # into (3, crop, crop) float32
        out[...] = 0.5
'''
ENTRIES = """[gpubench.decoders]
grey = gpubench_grey:Grey
torn = gpubench_no_such_module:Torn
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installer leaves it."""
    (tmp_path / "gpubench_grey.py").write_text(SOURCE)
    about = tmp_path / "gpubench_grey-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gpubench-grey\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)


def test_it_is_found_and_works() -> None:
    assert {"grey", "torn", "turbo"} <= set(base.names())
    preprocessor = base.get("grey").open(Spec(size=(8, 8), resize=8))
    out = np.zeros((3, 8, 8), np.float32)
    preprocessor.transform(preprocessor.decode(samples.jpeg((20, 10))), out)  # type: ignore[arg-type]
    assert (out == 0.5).all()


def test_one_that_cannot_be_loaded_says_so_and_harms_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(InputError, match=r"decoder 'torn'.*gpubench_no_such_module"):
        base.get("torn")
    cli.main(["list", "decoders"], standalone_mode=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "grey, whatever it is given" in shown
    assert "cannot be loaded" in shown
    assert "turbo" in shown

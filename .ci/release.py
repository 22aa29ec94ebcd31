"""Builds the wheel and the sdist twice, and holds what is in them; with a tag, what it says too.

    python .ci/release.py DIST [--tag v1.2.3]

The second build has to be the same, byte for byte. A tag has to be the version, and CHANGELOG.md to
have a section of it, which is written to DIST/notes.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEEL = {
    "gpubench/py.typed",
    "gpubench/suites/quick.toml",
    "gpubench/report/html/templates/page.js",
}
LICENCES = {"LICENSE", "gpubench/report/html/templates/vega-license.txt"}
MOST_BYTES = {".whl": 1 << 20, ".gz": 4 << 20}


def build(at: Path) -> dict[str, str]:
    """{file: SHA-256} of what one build makes."""
    environ = os.environ | {"SOURCE_DATE_EPOCH": "1577836800"}
    command = ["uv", "build", "-q", "--out-dir", str(at)]
    subprocess.run(command, cwd=ROOT, env=environ, check=True)
    files = [*at.glob("*.whl"), *at.glob("*.tar.gz")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def wheel_faults(file: Path) -> list[str]:
    """What should not be in a wheel, or is missing."""
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
    about = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
    wanted = WHEEL | {f"{about}/licenses/{name}" for name in LICENCES}
    allowed = ("gpubench/", f"{about}/")
    return [
        *(f"{file.name} lacks {name}" for name in sorted(wanted - names)),
        *(f"{file.name} has {name}" for name in sorted(names) if not name.startswith(allowed)),
        *(f"{file.name} has {n}" for n in names if n.endswith((".pyc", ".onnx", ".pt2", ".jpg"))),
    ]


def sdist_faults(file: Path) -> list[str]:
    """The same of an sdist: from it the wheel is built again."""
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "CHANGELOG.md", "suites/quick.toml", "gpubench/py.typed", *LICENCES}
    return [
        *(f"{file.name} lacks {name}" for name in sorted(wanted - names)),
        *(f"{file.name} has {n}" for n in sorted(names) if n.startswith(("tests/", "reports/"))),
    ]


def notes(tag: str, version: str) -> str:
    """The tag's section of the change log. Raises SystemExit where there is none."""
    if tag != f"v{version}":
        raise SystemExit(f"tag {tag} is not v{version}, which gpubench/__init__.py says")
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", log,
                      re.M | re.S)  # fmt: skip
    if not found or not found[1].strip():
        raise SystemExit(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD' with contents")
    return found[1].strip() + "\n"


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path)
    parser.add_argument("--tag")
    given = parser.parse_args(words)
    init = (ROOT / "gpubench/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', init, re.M)[1]  # type: ignore[index]
    said = notes(given.tag, version) if given.tag else ""
    first = build(given.dist)
    with tempfile.TemporaryDirectory() as again:
        second = build(Path(again))
    faults = [f"{name} is not built alike twice" for name in first if first[name] != second[name]]
    for file in (given.dist / name for name in first):
        if not file.name.startswith(f"gpubench-{version}"):
            faults.append(f"{file.name} is not of version {version}")
        if file.stat().st_size > MOST_BYTES[file.suffix]:
            faults.append(f"{file.name} has {file.stat().st_size:,} bytes")
        faults += wheel_faults(file) if file.suffix == ".whl" else sdist_faults(file)
    if faults:
        raise SystemExit("\n".join(faults))
    if said:
        (given.dist / "notes.md").write_text(said, encoding="utf-8")
    for name, digest in first.items():
        print(f"{digest}  {name}")


if __name__ == "__main__":
    main(sys.argv[1:])

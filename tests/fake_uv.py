"""A stand-in for uv, and for pip: environments that share the packages of those who test."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

_UV = """#!/bin/sh
# sync [...] [--project DIR]: an environment; run WORDS: in that of this folder; else nothing
project=.
environment() {
  [ -x "$1/bin/gpubench" ] && return
  "@python@" -m venv --without-pip "$1" || exit 1
  for packages in "$1"/lib/python3.*/site-packages; do
    echo 'import site; site.addsitedir("@packages@")' > "$packages/shared.pth"
  done
  printf '#!%s\\nfrom gpubench.cli.main import main\\nmain()\\n' "$(realpath "$1")/bin/python" > "$1/bin/gpubench"
  chmod +x "$1/bin/gpubench"
}
case "$1" in
  run) environment .venv; shift; PATH="$PWD/.venv/bin:$PATH" exec "$@" ;;
  sync)
    while [ $# -gt 1 ]; do shift; [ "$1" = --project ] && project=$2; done
    environment "${UV_PROJECT_ENVIRONMENT:-$project/.venv}" ;;
esac
"""  # noqa: E501


def install(folder: Path) -> None:
    """Make ``folder``, which is then for PATH, with it."""
    folder.mkdir(parents=True)
    words = {"@python@": sys.executable, "@packages@": sysconfig.get_path("purelib")}
    body = _UV
    for name, value in words.items():
        body = body.replace(name, value)
    for name in ("uv", "pip"):
        (folder / name).write_text(body if name == "uv" else "#!/bin/sh\n", encoding="utf-8")
        (folder / name).chmod(0o755)

"""TOML files that people write, read with care."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from gpubench import files
from gpubench.errors import SuiteError

MAX_BYTES = 2**20
_DOTTED = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){20}""")
"""Of a key of n parts tomllib keeps all n^2 / 2 beginnings: 200 kB of them take 40 GB."""

Data = dict[str, Any]


def read(path: Path, what: str) -> Data:
    """The file's tables. Raises SuiteError, which calls the file a ``what``: 'suite'."""

    def wrong(text: str) -> SuiteError:
        return SuiteError(f"{what} {path}: {text}")

    try:
        with files.opened(path) as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise wrong(f"larger than {MAX_BYTES:,} bytes; this is no {what}")
    try:
        text = raw.decode("utf-8-sig")
        if _DOTTED.search(text):
            raise wrong(f"not valid TOML for a {what}: a key of 20 parts or more")
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise wrong(f"not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}") from error
    except tomllib.TOMLDecodeError as error:
        raise wrong(f"not valid TOML: {error}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 1,000 brackets
        raise wrong(f"not valid TOML: {error}") from error


def value(text: str) -> Any:
    """As a file would have it: true, 3, 0.5, [1, 2]; anything else is a string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):  # no TOML, 5,000 digits, 1,000 brackets
        return text

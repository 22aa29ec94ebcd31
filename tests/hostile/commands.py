"""The command in this process, as a shell runs it: whatever comes in, an exit code comes out."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from unittest import mock

from hypothesis import HealthCheck, settings

from gpubench.cli.main import main

EXAMPLES = float(os.environ.get("GPUBENCH_FUZZ", "1"))
"""So many times the usual number of examples, and then others in every run."""
LIMIT_MS = 20_000
"""One example: two cores that others use too, and nothing here should take a second."""


def fuzz(examples: int) -> settings:
    """The same examples every time, unless more are asked for."""
    return settings(
        max_examples=max(1, round(examples * EXAMPLES)),
        derandomize=EXAMPLES <= 1,
        deadline=LIMIT_MS,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def quiet() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def gpubench(*words: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr). Any exception but SystemExit is the test's failure."""
    told = ["gpubench", *map(str, words)]
    with mock.patch.object(sys, "argv", told), quiet() as (out, err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int), code
    return code, out.getvalue(), err.getvalue()


def told(code: int, err: str, *places: object) -> None:
    """A refusal as it must be: exit code 2, the place, one reason, nothing that acts."""
    assert code == 2, err
    assert "Traceback" not in err
    assert not acting(err)
    for place in places:
        assert str(place) in err, err


def acting(text: str) -> list[str]:
    """What of ``text`` may act on a terminal or hide from a reader, by Unicode's own classes."""
    bad = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return [
        repr(text[max(0, at - 20) : at + 20])
        for at, c in enumerate(text)
        if c != "\n" and unicodedata.category(c) in bad
    ][:5]


def commanding(text: str) -> list[str]:
    """Lines that GitHub Actions would obey."""
    return [x for x in text.splitlines() if x.lstrip().startswith("::") or "##[" in x]

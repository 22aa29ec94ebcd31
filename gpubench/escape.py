"""Text from outside (record files, names of files, libraries' errors), harmless for its reader.

Only colours are left out: what could act on a reader, or hide from one, is written as an escape.
HTML is escaped by Jinja2, which lets every value pass `visible` first; Markdown, CSV and JUnit add
what their own formats need where they are written (`gpubench.report`).
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from contextlib import suppress
from typing import Any

import msgspec

LONGEST = 4000
"""Characters of one line: a library may put a whole file into its error."""

_HIDDEN = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Control characters but for the line feed; what turns the direction of text, or cannot be seen;
halves of characters, which names of files that are not UTF-8 hold."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Of libraries' errors, which may be made for a terminal."""
_JSON_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)")
_COMMAND = re.compile(r"(?<!\S)::")


def visible(text: str) -> str:
    r"""``text`` without a character that acts or hides: escape becomes '\x1b', a tab a space."""
    return _HIDDEN.sub(_written, _COLOUR.sub("", text))


def _written(found: re.Match[str]) -> str:
    n = ord(found[0])
    if n < 0x100:
        return " " if n == 9 else f"\\x{n:02x}"
    return f"\\u{n:04x}" if n < 0x10000 else f"\\U{n:08x}"


def terminal(text: str) -> str:
    """Lines for a terminal or a log: `visible`, and no command to GitHub Actions.

    Which takes what a step prints for a command where a line begins with '::', also after spaces,
    and where one holds '##['.
    """
    return _COMMAND.sub(": :", visible(text)).replace("##[", "## [")


def line(text: str) -> str:
    """The same as one line, which stays harmless wherever it is broken between words."""
    text = " ".join(text.split())
    return terminal(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")


def tell(text: str) -> None:
    """One message on stderr; the only way there."""
    if sys.stderr:
        with suppress(OSError):  # a full disk: nobody is left to be told
            print(terminal(text), file=sys.stderr, flush=True)


ASCII = {"\u00b1": "+-", "\u00d7": "x", "\u00b7": "-", "\u00b0": "", "\u2013": "-", "\u2026": "...",
         "\u2192": "->", "\u2500": "-", "\u2501": "-", "\u2502": "|", "\u2503": "|"}  # fmt: skip
ASCII |= dict(zip("▁▂▃▄▅▆▇█", "__--==##", strict=True))
"""What our own words and tables have beyond ASCII, for who cannot show it."""
PLAIN = "gpubench.plain"
"""Errors handler of text streams: what their encoding lacks as `ASCII`, all else as escapes."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    told = (ASCII.get(c, c).encode("ascii", "backslashreplace").decode() for c in lacking)
    return "".join(told), error.end


codecs.register_error(PLAIN, _plain)


def encoded(value: Any, indent: int = -1) -> str:
    """``value`` as JSON; hidden characters as JSON's own escapes, so that it reads back equal.

    ``indent`` below 0: on one line.
    """
    body = msgspec.json.encode(value)
    text = (body if indent < 0 else msgspec.json.format(body, indent=indent)).decode()
    return _HIDDEN.sub(_escaped, text)


def document(value: Any) -> str:
    """`encoded` as the whole of a file."""
    return encoded(value, indent=1) + "\n"


def drawn(value: Any) -> str:
    """``value`` as JSON for a script that draws its text: every text reads back `visible`."""
    text = msgspec.json.encode(value).decode()
    text = _HIDDEN.sub(lambda found: _written(found).replace("\\", "\\\\"), text)
    return _JSON_ESCAPE.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    read = visible(json.loads(f'"{found[0]}"'))
    return json.dumps(read, ensure_ascii=False)[1:-1]


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

"""HTML: the page that fits: of runs, of an A/B or two runs compared, or of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpubench.analysis.summary import summarise
from gpubench.errors import InputError
from gpubench.records.record import RecordFile
from gpubench.report.html import page
from gpubench.report.sections import compare

if TYPE_CHECKING:
    from gpubench.analysis.tune.result import Evidence


def render(
    files: Sequence[RecordFile], evidence: Evidence | None = None, *, one_page: bool = False
) -> str:
    """The whole page; of the two arms of an interleaved A/B, with the verdict on top.

    Of a search alone its own page, with its ``evidence``. ``one_page``: the answers alone, for a
    screen or a sheet. Raises InputError for that of a search or an A/B.
    """
    if one_page:
        if any(f.header.search or f.header.pairing for f in files):
            raise InputError("--one-page is of runs: the page of an A/B or a search begins with "
                             "its own answer")  # fmt: skip
        return page.page(files, summarise(files), one=True)
    if len(files) == 1 and files[0].header.search:
        from gpubench.report.html import tune_page

        return tune_page.render(files[0], evidence)
    summaries, view = compare.view(files)
    return page.comparison(view) if view else page.page(files, summaries)

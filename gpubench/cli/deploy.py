"""The command that makes an artefact for serving: `gpubench deploy`.

Exit codes: 0 written; 1 it cannot be made here, or answers wrongly; 2 bad input.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from gpubench import units
from gpubench.cli import options, terminal


@click.command()
@options.suite_argument
@options.output_option("The new folder.", stdout=False, required=True)
@partial(options.selection, without=("--repeats",))
@options.quiet_option
@options.cache_option
def deploy(suite: str, output: Path, quiet: bool, **asked: Any) -> None:
    """Write a suite's one cell as a folder that serves it: model, preprocessing, labels, README.

    Its answers are checked first: what is wrong is not written. Load it with gpubench.load(DIR).

    Example: gpubench deploy reports/tune-resnet50/best.toml -o resnet50
    """
    from gpubench.analysis.tables.accuracy import doubts
    from gpubench.run import api
    from gpubench.suite.types import title
    from gpubench.workload.data import preprocess

    screen = terminal.console(quiet)

    def say(text: str) -> None:
        screen.print(text, soft_wrap=True)

    made = api.deploy(suite, output, progress=terminal.show_run(screen, quiet), **asked)
    if made.weights_taken:
        say(f"weights: {made.weights_taken}")
    parity = made.parity
    accuracy = f", accuracy {parity.correct / parity.labelled:.1%}" if parity.labelled else ""
    total = units.size(sum(file.bytes for file in made.files.values()))
    say(
        f"{output}: {title(made.cell.model)}, {made.cell.label}; {parity.images} answers checked, "
        f"{parity.top1_agreement:.1%} as the reference's{accuracy}; {total}\n"
        f"preprocessing: {preprocess.words(made.preprocessing)}\n"
        f"in Python: gpubench.load({str(output)!r}); without gpubench: {output / 'README.md'}"
    )
    for text in doubts([parity]):
        say(text)

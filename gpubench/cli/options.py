"""What the commands have in common: options, the console, writing a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

Command = Callable[..., Any]
path = click.Path(path_type=Path)


def words(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [word.strip() for word in value.split(",")]


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    listed = words(ctx, parameter, value)
    try:
        return None if listed is None else [int(word) for word in listed]
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected whole numbers, such as 1,8") from None


def suites(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Shipped suites that begin so, else files."""
    from gpubench.suite import file as suite_file

    found = [CompletionItem(p.stem) for p in suite_file.shipped() if p.stem.startswith(begun)]
    return found or [CompletionItem(begun, type="file")]


suite_argument = click.argument("suite", shell_complete=suites)


def _pairs(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, Any] | None:
    from gpubench.suite import toml_file

    found = {}
    for text in values:
        key, equals, value = (word.strip() for word in text.partition("="))
        if not (key and equals and value):
            raise click.BadParameter(f"{text!r}: expected KEY=VALUE, such as mean=0.5")
        listed = value[0] not in "[{\"'" and "," in value  # size=96,64
        several = toml_file.value(f"[{value}]") if listed else ""
        found[key] = several if isinstance(several, list) else toml_file.value(value)
    return found or None


SELECTION: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--backend", {"callback": words, "help": "Backends, comma-separated."}),
    ("--batch-size", {"callback": _numbers, "help": "Batch sizes, such as 1,8."}),
    ("--replicas", {"callback": _numbers, "help": "Numbers of replicas, such as 1,2."}),
    ("--replicas-per-device", {"callback": _numbers, "help": "Replicas sharing a device: 1,2."}),
    ("--sharing", {"callback": words, "help": "Of a GPU: auto, mps, time-slicing, or several."}),
    ("--dispatch", {"callback": words, "help": "independent, static, dynamic, or several."}),
    ("--precision", {"callback": words, "help": "Precisions, such as fp32,bf16."}),
    ("--input", {"callback": words, "help": "What the host gives: float32, float16, uint8."}),
    ("--scenario", {"callback": words, "help": "latency, throughput, or latency,throughput."}),
    ("--boundary", {"callback": words, "help": "compute, transfer, pipeline, or several."}),
    ("--decoder", {"callback": words, "help": "Of boundary pipeline, such as pil,turbo."}),
    ("--loader", {"callback": words, "help": "Of boundary pipeline: auto, threads, processes."}),
    ("--cache", {"callback": words, "help": "Before a batch: warm, rotating, cold, or several."}),
    ("--device", {"help": "auto, cuda or cpu."}),
    ("--model", {"help": "A torchvision model, digits, timm/NAME, hf/FOLDER, FILE.py:CALLABLE, "
                         "or an .onnx or .pt2 file."}),
    (
        "--weights",
        {"help": "probe, random, a name such as DEFAULT, or a checkpoint: FILE[#KEY]."},
    ),
    ("--images", {"help": "digits, photos, synthetic, a folder of images, or .tar shards."}),
    ("--labels", {"help": "A file with rows of file name and class."}),
    ("--calibration", {"help": "A folder of images that int8 is calibrated on."}),
    ("--preprocess", {"multiple": True, "callback": _pairs, "metavar": "KEY=VALUE",
                      "help": "Of workload.preprocess, such as mean=0.5; repeatable."}),
    ("--arguments", {"multiple": True, "callback": _pairs, "metavar": "KEY=VALUE",
                     "help": "Of workload.arguments, such as depth=12; repeatable."}),
    ("--output-name", {"metavar": "NAME", "help": "Of a network's outputs, the one with the "
                                                  "answers (workload.output)."}),
    ("--repeats", {"type": int, "help": "Fresh-process repeats of every cell."}),
    ("--cell", {"multiple": True, "help": "Only the cell with this key (gpubench plan --keys)."}),
)  # fmt: skip


def selection(
    command: Command, only: Collection[str] | None = None, without: Collection[str] = ()
) -> Command:
    """The options that override a suite's axes and workload."""
    names = {n for n, _ in SELECTION if only is None or n in only} - {*without}
    return _with(command, [(n, settings) for n, settings in SELECTION if n in names])


def _with(command: Command, options: Sequence[tuple[str, dict[str, Any]]]) -> Command:
    for name, settings in reversed(options):
        command = click.option(name, **settings)(command)
    return command


cache_option = click.option("--cache-dir", type=path, help="Instead of the user's cache directory.")
delta_option = click.option(
    "--delta", help="Differences up to this much do not matter.  [default: 2%]"
)


def output_option(text: str, *, stdout: bool = True, **more: Any) -> Callable[[Command], Command]:
    """``-o``; ``stdout``: '-' is standard output, as it is everywhere."""
    if stdout:
        more["callback"] = lambda _, __, value: None if value == Path("-") else value
    return click.option("-o", "--output", type=path, help=text, **more)


def format_option(formats: Sequence[str], **more: Any) -> Callable[[Command], Command]:
    """``-f``, as the argument ``form``."""
    return click.option("-f", "--format", "form", type=click.Choice(formats), **more)


def resumed(words: Sequence[str], out: Path, *instead: str) -> str:
    """The command again, to go on with what is in ``out``; ``instead``: an option and its value."""
    from gpubench.report import formatting

    drop = (*formatting.WHERE, *instead[:1])
    return formatting.again(words, drop, "--resume", "-o", str(out), *instead)


keys_option = click.option("--keys", is_flag=True, help="Keys of cells too, for --cell.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
resume_option = click.option(
    "--resume", is_flag=True, help="Go on in -o's directory, or the last in reports/ of the same."
)
require_option = click.option(
    "--require", callback=words, help="Backends whose skip is a failure (for CI)."
)
ship_option = click.option(
    "--ship", is_flag=True, help="With --ray: send model and weights files to where they lack."
)
github_option = click.option(
    "--github", is_flag=True, help="Job summary and annotations; implied on GitHub Actions."
)


NODES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--ray", {"is_flag": False, "flag_value": "", "metavar": "[ADDRESS]",
               "help": "Run on all machines of a Ray cluster: the one at ADDRESS, of RAY_ADDRESS, "
               "or that runs here."}),
    ("--insecure-cluster", {"is_flag": True, "help": "Though it asks nobody for a token."}),
)  # fmt: skip


def several(command: Command) -> Command:
    """The options of a run over several machines."""
    return _with(command, NODES)

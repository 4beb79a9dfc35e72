"""What the command line prints, and where."""

import json
import re
import sys
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape

from patchworks_pipeline.cli.advice import as_typed

OPTIONS = {
    "max_workers": "workers",
    "n_workers": "workers",
    "workers": "worker-kind",
    "write_to": "output",
    **{
        name: name.replace("_", "-")
        for name in (
            *("tile_shape", "overlap", "channel", "level", "axes", "pixel_size", "merge"),
            *("min_iou", "outline", "min_size", "max_size", "size_unit", "empty_threshold"),
            *("skip_empty", "resume", "overwrite", "tile_timeout", "worker_memory"),
        )
    },
}
"""What the library calls an argument, and the command line an option."""

_ARGUMENT = re.compile(
    rf"""(?<![\w/.'"-])({"|".join(OPTIONS)})=(\([\d, ]+\)|'\w+'|True|False|[\d.]+(?=\b))?"""
)

_TWICE = re.compile(r"(--[\w-]+(?: \S+)?) \(\1(?: on the command line)?\)")

_OVERWRITE = re.compile(r"materialize merged_labels again with overwrite")
_MATERIALIZE = re.compile(r"materialize [a-z_]+(?: of both)? (?:first|again)")
"""What a person does in the UI, and a command does here."""

console = Console()
errors = Console(stderr=True)


def in_options(text: str) -> str:
    """Return words of the library with options in place of the arguments that it speaks of.

    Examples
    --------
    >>> in_options("give overlap=8, or pass axes=, such as 'zyx'")
    "give --overlap 8, or pass --axes, such as 'zyx'"
    >>> in_options("merge='touching', tile_shape=(16, 512), resume=False")
    '--merge touching, --tile-shape 16,512, --no-resume'
    >>> in_options("choose with channel=2 (--channel 2)")
    'choose with --channel 2'
    >>> in_options("no lut.parquet; materialize global_lut first")
    "no lut.parquet; 'patchworks run IMAGE' makes it"
    """
    text = _OVERWRITE.sub("'patchworks merge IMAGE --overwrite' makes them again", text)
    text = _MATERIALIZE.sub("'patchworks run IMAGE' makes it", text)
    return _TWICE.sub(r"\1", _ARGUMENT.sub(_option, text))


def _option(argument: re.Match[str]) -> str:
    name, value = OPTIONS[argument[1]], argument[2] or ""
    if value in ("True", "False"):
        return f"--{name}" if value == "True" else f"--no-{name}"
    value = value.strip("()',").replace(" ", "")
    return f"--{name} {value}" if value else f"--{name}"


def fail(message: str, code: int) -> NoReturn:
    """End with a message and an exit code."""
    say_error(message)
    sys.exit(code)


def say_error(message: str) -> None:
    """Print an error as it is: its brackets are no markup."""
    words = escape(as_typed(in_options(message)))
    errors.print(f"[red]error[/]: {words}", highlight=False, soft_wrap=True)


def say(text: str, *, on: Console = console) -> None:
    """Print text as it is, and never break a path."""
    on.print(as_typed(text), highlight=False, soft_wrap=True, markup=False)


def say_step(text: str) -> None:
    """Say on standard error what is begun, where no progress bar shows it."""
    if not (console.is_terminal and errors.is_terminal):
        say(text, on=errors)


def say_json(values: Any) -> None:
    """Print values as JSON on one line, for a program to read."""
    print(json.dumps(values), flush=True)

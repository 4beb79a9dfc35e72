"""What the command line prints, where, and with which exit code."""

import json
import sys
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape

console = Console()
errors = Console(stderr=True)

BAD_INPUT, TILES_FAILED = 2, 3
"""Exit codes; 1 is any other failure."""


def fail(message: str, code: int) -> NoReturn:
    """End with a message and an exit code."""
    say_error(message)
    sys.exit(code)


def say_error(message: str) -> None:
    """Print an error as it is: its brackets are no markup."""
    errors.print(f"[red]error[/]: {escape(message)}", highlight=False, soft_wrap=True)


def say(text: str, *, on: Console = console) -> None:
    """Print text as it is, and never break a path."""
    on.print(text, highlight=False, soft_wrap=True, markup=False)


def say_json(values: Any) -> None:
    """Print values as JSON on one line, for a program to read."""
    print(json.dumps(values), flush=True)

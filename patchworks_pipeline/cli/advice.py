"""Commands that a person is advised to type, such as the one that stages failed tiles again."""

import re
import shlex
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

OF_A_HOME = (
    *("run", "retry", "merge", "mend", "next", "status", "ui", "demo", "submit", "stage-range"),
    *("view", "plan"),
)
"""Commands that take ``--home``."""

BUDGET_OPTIONS = {
    "workers": "--workers",
    "kind": "--worker-kind",
    "tile_timeout": "--tile-timeout",
    "worker_memory": "--worker-memory",
}
"""Options that set fields of `ComputeBudget`; they hold for the call, not for the image."""

home_of_call: ContextVar[str | None] = ContextVar("patchworks_home_of_call", default=None)
"""What ``--home`` says of the command that runs; None where it was left out."""

_COMMAND = re.compile(rf"'(patchworks (?:{'|'.join(OF_A_HOME)})\b[^'\n]*)'")


def as_typed(text: str) -> str:
    """Return words with ``--home`` in every command that they name, where it was given.

    Examples
    --------
    >>> token = home_of_call.set("plates")
    >>> as_typed("'patchworks merge a --overwrite' makes it again")
    "'patchworks merge a --overwrite --home plates' makes it again"
    >>> home_of_call.reset(token)
    """
    home = home_of_call.get()
    if home is None:
        return text
    shown = home if shlex.quote(home) == home else f'"{home}"'

    def at_home(command: re.Match[str]) -> str:
        return command[0] if "--home" in command[1] else f"'{command[1]} --home {shown}'"

    return _COMMAND.sub(at_home, text)


def command_on(folder: Any, name: str, *options: str) -> str:
    """Return a command on the image, or segmentation of it, whose folder it is."""
    return shlex.join(["patchworks", name, folder.key, *only_of(folder), *options])


def planned_anew(folder: Any) -> str:
    """Say that jobs were written of another plan of an image, and what to do."""
    return (
        f"{folder.title} was planned anew since these jobs were written; write them again with "
        "'patchworks submit'"
    )


def only_of(folder: Any) -> list[str]:
    """Return the options that say which segmentation of an image a folder is of."""
    return ["--only", folder.segmentation] if folder.segmentation else []


def options_of(budget: Mapping[str, Any]) -> list[str]:
    """Return the options of a command that set fields of `ComputeBudget`."""
    return [f"{BUDGET_OPTIONS[name]}={_number(value)}" for name, value in budget.items()]


def _number(value: Any) -> Any:
    """Return a number as it is typed."""
    return int(value) if isinstance(value, float) and value.is_integer() else value

"""How a command ends that cannot do what it was asked: one line, and an exit code.

No command catches the errors of the project by itself. What is an error of the code passes, with
its traceback.
"""

import re
import sys
from typing import Any

from typer.core import TyperGroup

from patchworks_core.errors import TilesFailedError
from patchworks_core.files.locations import CREDENTIALS, is_of_object_store
from patchworks_core.machine.interrupts import EXIT_CODE_OF_INTERRUPT, ended_by_sigterm
from patchworks_pipeline.cli.advice import home_of_call
from patchworks_pipeline.cli.exit_codes import OTHER_FAILURE, code_of
from patchworks_pipeline.cli.terminal import fail
from patchworks_pipeline.image_faults import IMAGE_FAULTS, words_of

_PYDANTIC = re.compile(r"^Input should\b")
"""How pydantic begins to say what is allowed."""


class Commands(TyperGroup):
    """All commands of patchworks."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and say in one line why it could not do what it was asked."""
        home_of_call.set(None)
        try:
            with ended_by_sigterm():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(EXIT_CODE_OF_INTERRUPT)
        except BrokenPipeError:  # who read the output has seen enough; click ends it quietly
            raise
        except TilesFailedError as error:
            fail(_without_traceback(error), code_of(error))
        except IMAGE_FAULTS as error:
            fail(words_of(error), code_of(error))
        except Exception as error:
            if type(error).__name__ == "BadParameter":
                _name_value(error)
            if not is_of_object_store(error):
                raise
            fail(f"an object store refuses: {words_of(error)}; {CREDENTIALS}", OTHER_FAILURE)


def _name_value(error: Any) -> None:
    """Let what is said of an option that cannot be repeat the value, where pydantic refused it."""
    mistakes: list[Any] = getattr(error.__cause__, "errors", list)()
    if mistakes and repr(mistakes[0]["input"]) not in error.message:
        words = _PYDANTIC.sub("must", error.message)
        error.message = f"{words}, got {mistakes[0]['input']!r}"


def _without_traceback(error: TilesFailedError) -> str:
    """Return which tiles failed and why; a traceback in one line is none."""
    words = str(error).replace(error.traceback, "") if error.traceback else str(error)
    return "\n".join(line.rstrip() for line in words.splitlines() if line.strip())

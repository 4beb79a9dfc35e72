"""What came of running one image, and the exit code that says so."""

from collections.abc import Sequence
from dataclasses import dataclass

from upath import UPath

from patchworks_pipeline.automation.in_process import JobError
from patchworks_pipeline.cli.exit_codes import (
    BAD_INPUT,
    DONE,
    OTHER_FAILURE,
    TILES_FAILED,
    code_of_step,
)
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.tile_failures import TileFailure


@dataclass(frozen=True, slots=True)
class ImageRun:
    """What came of running one image."""

    folder: ImageFolder
    steps: tuple[str, ...]
    """Jobs that ran; empty where nothing was missing."""

    failures: tuple[TileFailure, ...]
    """Tiles that failed."""

    error: str | None
    """Why a job failed other than by tiles."""

    stopped: str | None = None
    """Why tiles were not tried: too many others had failed."""

    code_of_error: int = OTHER_FAILURE
    """Exit code where there is an `error`."""

    relations: tuple[UPath, ...] = ()
    """Tables of relations to other segmentations that were made, as CSV."""

    @classmethod
    def of_job(
        cls,
        folder: ImageFolder,
        steps: Sequence[str],
        error: JobError | None,
        failures: Sequence[TileFailure] = (),
    ) -> "ImageRun":
        """Return what came of an image whose last step ended so."""
        if error is None:
            return cls(folder, tuple(steps), (), None)
        code = code_of_step(error.error_type)
        return cls(folder, tuple(steps), tuple(failures), error.message, error.stopped, code)

    @classmethod
    def left(cls, folder: ImageFolder, why: str, steps: Sequence[str] = ()) -> "ImageRun":
        """Return what came of an image whose results are left as somebody changed them."""
        return cls(folder, tuple(steps), (), why, code_of_error=BAD_INPUT)

    @property
    def is_complete(self) -> bool:
        """True where the image has its merged labels."""
        return not self.failures and self.error is None

    @property
    def exit_code(self) -> int:
        """Of a command that ran this image alone."""
        if self.failures:
            return TILES_FAILED
        return DONE if self.error is None else self.code_of_error

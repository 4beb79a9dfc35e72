"""The error classes of the core.

Every message names the rule, what was got, where, and the way out.
"""

from __future__ import annotations


class ImageError(ValueError):
    """An image cannot be opened, or is not what was asked for."""


class PlanError(ValueError):
    """A plan cannot be made from these values, or two plans differ."""


class SegmentationError(ValueError):
    """A segmentation function cannot be found, or its parameters are wrong."""


class TileOutputError(ValueError):
    """A segmentation function returned something that is not a label image of its tile."""


class ClusterError(PlanError, RuntimeError):
    """A Dask cluster cannot take tiles: its workers are in this process, or there are none."""


class StageError(RuntimeError):
    """A stage is missing, incomplete, or belongs to another plan."""


class StorageError(OSError):
    """A place cannot be written to: its disk is full, it is not ours, or it is gone."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number


class WorkerLostError(RuntimeError):
    """The process that worked on a tile is gone: it crashed, ended itself, or was killed."""


class WorkerMemoryError(WorkerLostError):
    """The process that worked on a tile took more memory than a worker may, and was ended."""


class TileTimeoutError(WorkerLostError):
    """A tile was not done within its time, and the process that worked on it was ended."""


class TilesFailedError(RuntimeError):
    """Some tiles could not be staged; every other tile was.

    Attributes
    ----------
    failures : dict of str to str
        Block key and the error text of each tile block that failed.
    traceback : str
        Where the first one came from, which stands in the message too.
    """

    def __init__(self, message: str, failures: dict[str, str], traceback: str = "") -> None:
        super().__init__(message)
        self.failures = failures
        self.traceback = traceback

"""Why a tile block failed: one record per tile block in the folder of its image."""

from dataclasses import dataclass

from upath import UPath

from patchworks_core.files.records import mapping_of
from patchworks_core.machine.engine import Outcome
from patchworks_core.stage.staging import StagedBlock
from patchworks_core.tiles.grid import TileBlock, TileGrid

UNREADABLE = "UnreadableRecord"
"""In place of the error's class, where the record of a failure cannot be read."""


@dataclass(frozen=True, slots=True)
class TileFailure:
    """Why one tile block failed."""

    block: str
    error_type: str
    message: str
    traceback: str
    kind: str = "other"
    """As `patchworks_core.machine.faults` tells them apart."""

    attempts: int = 1
    """Tries in all."""

    box: str = ""
    """Pixels of the tile in the image, per axis."""

    @property
    def is_transient(self) -> bool:
        """True where the tile may pass at another time."""
        return self.kind in ("transient", "killed")

    @property
    def is_unreadable(self) -> bool:
        """True where the record itself cannot be read."""
        return self.error_type == UNREADABLE

    @classmethod
    def read(cls, path: UPath) -> "TileFailure":
        """Read a record; one that cannot be read says so in place of why the tile failed."""
        try:
            record = mapping_of(path.read_bytes())
            if record is not None and record.keys() >= {"block", "error_type", "message"}:
                return cls(**record)
            reason = "it is damaged"
        except TypeError as error:
            reason = f"it has other fields ({error})"
        except OSError as error:
            reason = f"{type(error).__name__}: {error.strerror or error}"
        return cls(
            block=path.name.removesuffix(".json"),
            error_type=UNREADABLE,
            message=f"why the tile failed cannot be read from {path}: {reason}; stage it again",
            traceback="",
        )

    @classmethod
    def of(cls, outcome: Outcome[TileBlock, StagedBlock], grid: TileGrid) -> "TileFailure":
        """Record why a tile block failed."""
        block, failure = outcome.item, outcome.failure
        assert failure is not None
        return cls(
            block=block.key,
            error_type=failure.error_type,
            message=f"{failure.line}: {failure.message}" if failure.line else failure.message,
            traceback=failure.traceback,
            kind=failure.kind,
            attempts=outcome.attempts,
            box=grid.box(block.core),
        )

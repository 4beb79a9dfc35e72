"""How fast images go through: staging of each image, and what a day brought.

Kept beside the data, because events of the instance carry pictures and are slow to add up::

    <image>/staging.json               tiles and seconds of all staging runs of the present plan
    <store>/.days/2026-11-20/<image>   what was finished on a day, by UTC
"""

import json
from dataclasses import asdict, dataclass
from datetime import date
from math import prod
from typing import Any

from upath import UPath

from patchworks_core.files.records import read_mapping
from patchworks_core.files.storage import remove_parts, write_text
from patchworks_core.stage.plan import Plan
from patchworks_pipeline.records import ImageFolder

STAGING = "staging.json"

DAYS = ".days"


@dataclass(frozen=True, slots=True)
class Work:
    """Pixels and tiles that were worked on, and how long it took."""

    n_tiles: int = 0
    n_pixels: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.n_tiles + other.n_tiles,
            self.n_pixels + other.n_pixels,
            self.seconds + other.seconds,
        )

    def speed(self) -> dict[str, float]:
        """Return how fast it went.

        Examples
        --------
        >>> Work(n_tiles=10, n_pixels=5_000_000, seconds=2).speed()
        {'seconds': 2, 'tiles_per_second': 5.0, 'megapixels_per_second': 2.5}
        """
        seconds = max(self.seconds, 1e-3)
        return {
            "seconds": round(self.seconds, 3),
            "tiles_per_second": round(self.n_tiles / seconds, 3),
            "megapixels_per_second": round(self.n_pixels / seconds / 1e6, 3),
        }


@dataclass(frozen=True, slots=True)
class StagingFigures:
    """What a run adds to what was staged of the same plan before; written as it goes on.

    So a run that is killed after days loses minutes of its figures.
    """

    folder: ImageFolder
    plan: Plan
    before: Work

    @classmethod
    def begin(cls, folder: ImageFolder, plan: Plan) -> "StagingFigures":
        """Begin to add, before the first tile is staged."""
        figures = cls(folder, plan, staging_of(folder, plan))
        figures.write(Work())
        return figures

    def write(self, work: Work) -> None:
        """Write what the run has done so far; time in which no tile was done is not counted."""
        total = self.before + (work if work.n_tiles else Work())
        record = {"plan": self.plan.fingerprint, **asdict(total)}
        write_text(self.folder.path / STAGING, json.dumps(record) + "\n")


def staging_of(folder: ImageFolder, plan: Plan) -> Work:
    """Return what was staged of a plan, in all runs; nothing where there is no record of it."""
    if not folder.has(STAGING):
        return Work()
    # It counts how fast it went: one that is damaged begins again at nothing.
    record = read_mapping(folder.path / STAGING) or {}
    if record.pop("plan", None) != plan.fingerprint or record.keys() != asdict(Work()).keys():
        return Work()
    return Work(**record)


def finish(store: UPath, image: str, plan: Plan, day: date) -> dict[str, Any]:
    """Enter an image as finished on a day; return what that day has brought so far.

    An image that is finished twice on one day counts once.
    """
    folder = store / DAYS / day.isoformat()
    write_text(folder / f"{image}.json", json.dumps({"n_pixels": _n_pixels(plan)}) + "\n")
    remove_parts(folder, of_the_dead=True, is_deep=False)
    # What was written of another image may be damaged: it counts as an image of no pixels.
    paths = [path for path in folder.iterdir() if path.suffix == ".json"]
    n_pixels = [(read_mapping(path) or {}).get("n_pixels") for path in paths]
    return {
        "images_today": len(paths),
        "megapixels_today": round(sum(n for n in n_pixels if isinstance(n, int)) / 1e6, 3),
    }


def figures_of(folder: ImageFolder, plan: Plan) -> dict[str, Any]:
    """Return the figures of one image that a person follows from image to image."""
    staged = staging_of(folder, plan)
    if staged.n_tiles == 0:
        return {"megapixels": round(_n_pixels(plan) / 1e6, 3)}
    speed = {f"staging_{name}": value for name, value in staged.speed().items()}
    return {"megapixels": round(_n_pixels(plan) / 1e6, 3), **speed}


def _n_pixels(plan: Plan) -> int:
    return prod(plan.grid.shape)

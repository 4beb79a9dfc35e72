"""The pilot: which halo and which rule a function needs, tried on a few regions of the image.

1. `pilot_samples.sample_regions` draws boxes of 2 x 2 (x 2) tiles and keeps those with most signal
   where their tiles meet.
2. The function runs on each region untiled; that gives the reference, and the size of the objects.
3. It runs in tiles with halos of 0, a quarter, a half and one object (`_try_halo`); every rule
   merges those same labels, and the result is held against the reference.
4. `_recommend` takes the smallest halo that is as good as no tiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, prod
from typing import Any

from patchworks_core.calls.spellings import also_spelled
from patchworks_core.calls.values import Values, html_table
from patchworks_core.errors import PlanError
from patchworks_core.images.image import open_image
from patchworks_core.images.image_source import ImageSource
from patchworks_core.machine.progress import Progress, no_progress
from patchworks_core.pilot.agreement import Agreement
from patchworks_core.pilot.in_memory import TilesInMemory
from patchworks_core.pilot.samples import (
    MAX_PIXELS,
    Sample,
    object_extent,
    pilot_grid,
    sample_regions,
)
from patchworks_core.plugins.segmentation import LabelFunction, Segmentation, segmentation_of
from patchworks_core.seams.rules import BY_OVERLAP, MergeOptions, MergeRule
from patchworks_core.statistics.measuring import measure
from patchworks_core.statistics.statistics import ImageStatistics
from patchworks_core.tiles.grid import TileGrid, plan_grid
from patchworks_core.tiles.regions import Region

FRACTIONS = (0.0, 0.25, 0.5, 1.0)
"""Halos that are tried, in extents of a large object."""

ENOUGH, ENOUGH_AT_SEAMS = 0.99, 0.95
"""Object F1 against untiled that is as good as no tiles: over all objects, and over those at seams.
All alone would say little where objects are small and few of them meet a seam."""

ASSUMED_HALO = 32
"""Halo where there is nothing to go by: no trial yet, or no object to try with."""

SURE, FAIRLY_SURE = 100, 30
"""Objects at seams from which a recommendation is sure, and fairly sure."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One halo and one rule against the function without tiles."""

    overlap: tuple[int, ...]
    """Halo on each side, pixels per axis."""

    rule: MergeRule

    f1: float
    """Object F1 over all objects."""

    seam_f1: float
    """Object F1 over the objects that meet a seam."""

    seconds: float
    """To segment the regions in tiles."""

    read_factor: float
    """Pixels the function would see of the whole image, as a multiple of its pixels."""

    @property
    def is_enough(self) -> bool:
        """True where tiles cost nothing in quality."""
        return self.f1 >= ENOUGH and self.seam_f1 >= ENOUGH_AT_SEAMS


@dataclass(frozen=True, slots=True, eq=False)
class PilotReport(Values):
    """What the trials say."""

    axes: str
    tile_shape: tuple[int, ...]
    """Tiles of the pilot, per axis: those asked for, or smaller where regions had to be."""

    regions: tuple[Region, ...]
    extent: tuple[int, ...]
    """Extent of a large object, pixels per axis."""

    n_objects: int
    n_at_seams: int
    """Objects of the untiled result that meet a seam."""

    trials: tuple[Trial, ...]
    recommended: Trial | None
    """None where no object meets a seam, so that nothing can be said."""

    seconds: float
    """What the pilot took."""

    @property
    def overlap(self) -> tuple[int, ...] | None:
        """Halo that is recommended; None where nothing is, or it is not good enough."""
        best = self.recommended
        return best.overlap if best is not None and best.is_enough else None

    @property
    def scores(self) -> dict[tuple[int, ...], float]:
        """Object F1 of the best rule with each halo that was tried."""
        best: dict[tuple[int, ...], float] = {}
        for trial in self.trials:
            best[trial.overlap] = max(trial.f1, best.get(trial.overlap, 0.0))
        return best

    @property
    def where(self) -> str:
        """How many regions were looked at, in words."""
        return f"{len(self.regions)} region{'' if len(self.regions) == 1 else 's'}"

    @property
    def confidence(self) -> str:
        """How sure the recommendation is, in words."""
        evidence = f"{self.n_at_seams} objects at seams in {self.where}"
        if self.recommended is None:
            return f"no recommendation: {evidence}; try more regions, or smaller tiles"
        if not self.recommended.is_enough:
            return (
                f"not good enough: the best that was tried, over {evidence}; first try an overlap "
                "of one diameter of a large object, then a function that takes global statistics"
            )
        # Rule of three: what n objects without an error leave open at 95 %.
        share = min(1.0, 1 - self.recommended.seam_f1 + 3 / self.n_at_seams)
        if self.n_at_seams >= SURE and len(self.regions) > 1:
            how = "sure"
        else:
            how = "fairly sure" if self.n_at_seams >= FAIRLY_SURE else "not sure, few objects"
        return f"{how}: {evidence}; up to {share:.0%} of all objects at seams may still be wrong"

    def _repr_html_(self) -> str:
        names = ("overlap", "rule", "f1", "seam_f1", "seconds", "read_factor")
        rows = [[getattr(trial, name) for name in names] for trial in self.trials]
        return f"<p>{self.confidence}; overlap {self.overlap}</p>{html_table(names, rows)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {**asdict(self), "confidence": self.confidence}


def pilot(
    image: ImageSource,
    segmentation: str | LabelFunction | Segmentation,
    *,
    tile_shape: Sequence[int] | int,
    overlaps: Sequence[Sequence[int] | int] | None = None,
    n_regions: int = 3,
    seed: int = 0,
    options: MergeOptions | None = None,
    statistics: ImageStatistics | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> PilotReport:
    """Try halos and rules on a few regions of an image, and recommend one of each.

    Parameters
    ----------
    image : Image, or what `open_image` opens
    segmentation : str, callable or Segmentation
    tile_shape : int or tuple of int
        As in `plan_grid`.
    overlaps : sequence, optional
        Halos to try, each as in `plan_grid`. By default 0, a quarter, a half and one extent of a
        large object, as the untiled result shows it.
    n_regions : int
        Regions of 2 x 2 (x 2) tiles; fewer where the image has no more that are disjoint.
    seed : int
        The same seed draws the same regions.
    options : MergeOptions, optional
        A rule other than ``auto`` is the only one tried; ``min_iou`` and ``connectivity`` apply.
    statistics : ImageStatistics, optional
        Of the whole image, for a function that asks for them. By default they are measured: on
        the image where it is small, else on the places that were probed for signal.
    max_pixels : int
        Largest region.
    progress : callable, optional
        ``progress(step, done, total)``.

    Returns
    -------
    PilotReport

    Raises
    ------
    PlanError
        If the image is one tile, so that there is no seam to try.
    TileOutputError
        If the function returned what are no labels.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import ndimage
    >>> rng = np.random.default_rng(0)
    >>> mask = ndimage.gaussian_filter(rng.random((64, 64)), 2) > 0.5
    >>> report = pilot(mask, lambda tile: ndimage.label(tile)[0], tile_shape=16)
    >>> report.recommended.rule, report.recommended.overlap
    ('touching', (0, 0))
    """
    start, tell = time.perf_counter(), progress or no_progress
    opened = open_image(image)
    labeller = segmentation_of(segmentation)
    if labeller.other_channels:
        raise PlanError(
            f"a pilot tries one channel, not {labeller.other_channels!r} too; give overlap"
        )
    grid = pilot_grid(opened, tile_shape, max_pixels)
    regions, probes = sample_regions(opened, grid, n_regions, seed)
    if labeller.wants_statistics and statistics is None:
        places = [t.core for t in grid.tiles()] if prod(opened.shape) <= 8 * max_pixels else probes
        statistics = measure(opened, places)
    function = labeller.bind(statistics)
    samples = []
    for region in regions:
        samples.append(Sample.of(opened, function, region, grid))
        tell("untiled", len(samples), len(regions))
    extent = object_extent(grid, samples)
    n_at_seams = sum(len(s.at_seams) for s in samples)
    halos = _halos(grid, overlaps, extent) if n_at_seams else []
    trials: list[Trial] = []
    for n, halo in enumerate(halos, start=1):
        full = plan_grid(opened.axes, opened.shape, tile_shape=tile_shape, overlap=halo)
        trials += _try_halo(samples, labeller, function, halo, options or MergeOptions(), full)
        tell("halos", n, len(halos))
    return PilotReport(
        axes=grid.axes,
        tile_shape=grid.tile_shape,
        regions=tuple(regions),
        extent=extent,
        n_objects=sum(int(s.untiled.max()) for s in samples),
        n_at_seams=n_at_seams,
        trials=tuple(trials),
        recommended=_recommend(trials, labeller.merge),
        seconds=time.perf_counter() - start,
    )


@also_spelled(
    {"candidates": "overlaps", "stitch": "merge"},
    values={"stitch": {"touch": "touching", "iou": "overlap"}},
    absent={
        "region": "the regions with most signal are drawn; crop the image for another",
        "crop_tiles": "a region is 2 x 2 (x 2) tiles; n_regions= draws more of them",
        "target": "what counts as enough is fixed; trials has the F1 of each",
    },
)
def suggest_overlap(
    image: ImageSource,
    fn: str | LabelFunction | Segmentation,
    tile_shape: Sequence[int] | int,
    *,
    overlaps: Sequence[Sequence[int] | int] | None = None,
    merge: MergeRule = "auto",
    n_regions: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> PilotReport:
    """Try halos and merge rules on a few regions of an image, and recommend one of each.

    Parameters
    ----------
    image : array, path, URL or Image
        As in `tile_process`; open it with `open_image` to choose channel and level.
    fn : callable or str
        As in `tile_process`.
    tile_shape : int or tuple of int
        As in `plan_grid`.
    overlaps : sequence, optional
        Halos to try, each as in `plan_grid`; by default 0, a quarter, a half and one extent of a
        large object.
    merge : {"auto", "overlap", "touching", "none"}
        A rule other than ``auto`` is the only one tried.
    n_regions : int
        Regions of 2 x 2 (x 2) tiles.
    seed : int
        The same seed draws the same regions.
    progress : callable, optional
        ``progress(step, done, total)``.

    Returns
    -------
    PilotReport
        ``overlap`` is the halo, ``recommended`` the trial with its rule, ``trials`` all of them.

    Raises
    ------
    PlanError
        If the image is one tile, so that there is no seam to try.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import ndimage
    >>> rng = np.random.default_rng(0)
    >>> mask = ndimage.gaussian_filter(rng.random((64, 64)), 2) > 0.5
    >>> suggest_overlap(mask, lambda tile: ndimage.label(tile)[0], 16)["overlap"]
    (0, 0)
    """
    return pilot(
        image,
        fn,
        tile_shape=tile_shape,
        overlaps=overlaps,
        n_regions=n_regions,
        seed=seed,
        options=MergeOptions(merge),
        progress=progress,
    )


def recommend_overlap(
    image: ImageSource,
    segmentation: str | LabelFunction | Segmentation,
    overlap: str = "auto",
    *,
    tile_shape: Sequence[int] | int,
    say: Callable[[str], object] = lambda text: None,
    **choices: Any,
) -> tuple[PilotReport, Trial]:
    """Run a pilot that must come to a halo and a rule, and return the report and those.

    Where the function finds no object, as in an empty well, there is nothing to try. Then no halo
    is taken if the pilot saw all of the image, else `ASSUMED_HALO` in case there are objects where
    it did not look; the report recommends nothing.

    Parameters
    ----------
    image, segmentation, tile_shape, choices
        As in `pilot`.
    overlap : str
        What was asked for; anything but ``auto`` is refused.
    say : callable
        Is told in words where a halo was taken without a trial.

    Raises
    ------
    PlanError
        If no halo that was tried is good enough, or there are objects and none meets a seam.
    """
    if overlap != "auto":
        raise PlanError(f"overlap must be pixels or 'auto', got {overlap!r}")
    opened = open_image(image)
    report = pilot(opened, segmentation, tile_shape=tile_shape, **choices)
    if report.n_objects == 0:
        assumed = _untried(report, opened.shape, tile_shape, choices.get("options"))
        say(
            f"overlap 'auto' takes {assumed.overlap!r} without a trial: the function finds no "
            f"object in {report.where}"
        )
        return report, assumed
    best = report.recommended
    if best is None or not best.is_enough:
        raise PlanError(
            f"overlap 'auto' found none to recommend ({report.confidence}); give overlap in pixels"
        )
    return report, best


def _untried(
    report: PilotReport,
    shape: tuple[int, ...],
    tile_shape: Sequence[int] | int,
    options: MergeOptions | None,
) -> Trial:
    """Return the smallest sensible halo for an image in which no object was found."""
    saw_all = sum(region.size for region in report.regions) == prod(shape)
    halo = 0 if saw_all else ASSUMED_HALO
    grid = plan_grid(report.axes, shape, tile_shape=tile_shape, overlap=halo)
    rule: MergeRule = "auto" if options is None else options.rule
    return Trial(grid.halo, rule, 1.0, 1.0, 0.0, grid.read_factor)


def _halos(
    grid: TileGrid, overlaps: Sequence[Sequence[int] | int] | None, extent: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Return the halos to try, each once, in the order given; smallest first by default."""
    sizes: Sequence[Sequence[int] | int] = (
        [tuple(ceil(f * e) for e in extent) for f in FRACTIONS] if overlaps is None else overlaps
    )
    halos = (
        plan_grid(grid.axes, grid.shape, tile_shape=grid.tile_shape, overlap=halo).halo
        for halo in sizes
    )
    return list(dict.fromkeys(halos))


def _try_halo(
    samples: Sequence[Sample],
    segmentation: Segmentation,
    function: LabelFunction,
    halo: tuple[int, ...],
    options: MergeOptions,
    full: TileGrid,
) -> list[Trial]:
    """Segment every region in tiles, and merge by each rule."""
    rules: tuple[MergeRule, ...] = (
        ("overlap", "touching") if options.rule == "auto" else (options.rule,)
    )
    scores: dict[MergeRule, list[tuple[Agreement, Agreement]]] = {rule: [] for rule in rules}
    seconds = 0.0
    for sample in samples:
        grid = plan_grid(
            sample.axes, sample.pixels.shape, tile_shape=sample.tile_shape, overlap=halo
        )
        start = time.perf_counter()
        tiles = TilesInMemory.stage(sample.pixels, lambda pixels, tile: function(pixels), grid)
        seconds += time.perf_counter() - start
        for rule in rules:
            is_drawn = rule in BY_OVERLAP
            outline = options.outline if is_drawn or options.rule == rule else "auto"
            trial_options = replace(options, rule=rule, min_size=0, max_size=None, outline=outline)
            resolved = trial_options.resolve(
                grid,
                declared=segmentation.merge,
                connectivity=segmentation.connectivity,
                outline=segmentation.outline,
            )
            scores[rule].append(sample.compare(tiles.merged(resolved)))
    return [
        Trial(
            overlap=halo,
            rule=rule,
            f1=_sum([all_objects for all_objects, _ in score]).f1,
            seam_f1=_sum([at_seams for _, at_seams in score]).f1,
            seconds=seconds,
            read_factor=full.read_factor,
        )
        for rule, score in scores.items()
    ]


def _sum(agreements: Sequence[Agreement]) -> Agreement:
    """Add up the objects of several regions."""
    return Agreement(
        sum(a.n_truth for a in agreements),
        sum(a.n_found for a in agreements),
        sum(a.n_matched for a in agreements),
    )


def _recommend(trials: Sequence[Trial], declared: str) -> Trial | None:
    """Return the smallest halo that is enough, else the best trial.

    Of two rules that are enough at that halo, the one that the function declares, then the better.
    """
    enough = [trial for trial in trials if trial.is_enough]
    if enough:
        return min(enough, key=lambda t: (t.read_factor, t.rule != declared, -t.seam_f1, -t.f1))
    return max(trials, key=lambda t: (t.seam_f1, t.f1, -t.read_factor), default=None)

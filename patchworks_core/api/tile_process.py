"""The façade: segment an image tile by tile and get one label image back."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import numpy as np
import numpy.typing as npt
from upath import UPath

from patchworks_core.api.arguments import (
    TileShape,
)
from patchworks_core.api.estimate import Estimate, estimate
from patchworks_core.api.job import Job, Resume
from patchworks_core.api.options import TileOptions, planned_job
from patchworks_core.calls.spellings import also_spelled
from patchworks_core.files.replacing import component_path
from patchworks_core.files.storage import Location, as_path, open_array
from patchworks_core.images.calibration import LengthUnit
from patchworks_core.images.image import DEFAULT_CHANNEL, DEFAULT_LEVEL
from patchworks_core.images.image_source import ImageSource
from patchworks_core.images.units import PixelSize
from patchworks_core.machine.devices import Gpus
from patchworks_core.machine.limits import Auto
from patchworks_core.machine.progress import Progress, progress_of
from patchworks_core.machine.workers import WorkerKind
from patchworks_core.plugins.segmentation import LabelFunction, Segmentation
from patchworks_core.seams.rules import MergeRule, Outline
from patchworks_core.stage.plan import Plan

if TYPE_CHECKING:
    import dask.array as da


@overload
def tile_process(
    image: ImageSource,
    fn: str | LabelFunction | Segmentation,
    *,
    dry_run: Literal[True],
    write_to: Location | None = None,
    output_component: str = "labels",
    compute: bool = False,
    progress: bool | Progress = False,
    **options: Unpack[TileOptions],
) -> Estimate: ...
@overload
def tile_process(
    image: ImageSource,
    fn: str | LabelFunction | Segmentation,
    *,
    write_to: Location,
    compute: Literal[False] = False,
    output_component: str = "labels",
    progress: bool | Progress = False,
    dry_run: Literal[False] = False,
    **options: Unpack[TileOptions],
) -> da.Array: ...
@overload
def tile_process(
    image: ImageSource,
    fn: str | LabelFunction | Segmentation,
    *,
    write_to: Location,
    compute: Literal[True],
    output_component: str = "labels",
    progress: bool | Progress = False,
    dry_run: Literal[False] = False,
    **options: Unpack[TileOptions],
) -> npt.NDArray[np.integer[Any]]: ...
@overload
def tile_process(
    image: ImageSource,
    fn: str | LabelFunction | Segmentation,
    *,
    write_to: None = None,
    compute: bool = False,
    output_component: str = "labels",
    progress: bool | Progress = False,
    dry_run: Literal[False] = False,
    **options: Unpack[TileOptions],
) -> npt.NDArray[np.integer[Any]]: ...
@also_spelled(
    {"stitch": "merge", "iou_threshold": "min_iou"},
    values={"stitch": {"touch": "touching", "iou": "overlap"}},
    absent={
        "log_file": "what is done is told to logging's 'patchworks_core'; give it a FileHandler",
        "plan_sample": "dry_run=True segments a few tiles of itself",
        "pyramid_levels": "segment_to_ome_zarr writes a pyramid, of as many levels as it takes",
        "pyramid_downscale": "segment_to_ome_zarr writes a pyramid, by 2 in x and y",
    },
)
def tile_process(
    image: ImageSource,
    fn: str | LabelFunction | Segmentation,
    *,
    tile_shape: TileShape = None,
    overlap: Sequence[int] | int | Literal["auto"] = 0,
    channel: int | str | None = DEFAULT_CHANNEL,
    level: int = DEFAULT_LEVEL,
    axes: str | None = None,
    pixel_size: PixelSize | None = None,
    parameters: Mapping[str, Any] | None = None,
    use_gpu: bool = False,
    gpus: Gpus = None,
    max_workers: int | None = None,
    workers: WorkerKind = "threads",
    tile_timeout: float | Auto | None = "auto",
    worker_memory: int | str | None = "auto",
    client: Any = None,
    compute: bool = False,
    progress: bool | Progress = False,
    verbose: bool = False,
    write_to: Location | None = None,
    output_component: str = "labels",
    overwrite: bool = False,
    sequential_labels: bool = True,
    skip_empty: bool = False,
    empty_threshold: float | None = None,
    stage_dir: Location | None = None,
    keep_stage: bool = False,
    merge: MergeRule = "auto",
    connectivity: int | None = None,
    min_iou: float = 0.3,
    outline: Outline = "auto",
    min_size: float = 0,
    max_size: float | None = None,
    size_unit: LengthUnit = "pixels",
    resume: Resume = "auto",
    dry_run: bool = False,
) -> Any:
    """Segment an image tile by tile; an object has one id however many tiles it crosses.

    Parameters
    ----------
    image : array, path, URL or Image
        NumPy, dask or Zarr array, or anything `open_image` opens; axes ``tczyx`` or some of them.
    fn : callable or str
        ``fn(tile) -> labels``: the pixels of one tile (spatial axes only) to whole numbers >= 0 of
        the same shape. Or the name of a built-in function, or ``module:function``.
    tile_shape : None, "auto", int, tuple of int, or callable
        Pixels of a tile without halo. None is the image's own chunks; ``auto`` what fits the memory
        of each worker (`auto_tile_shape`); -1 the whole axis; a shorter tuple applies to the last
        axes; a callable is given ``(shape, dtype)`` of the image and returns any of these.
    overlap : int, tuple of int, or "auto"
        Halo on *each side* of a tile, pixels. ``auto`` asks a pilot
        (`patchworks_core.pilot.trials`), which settles the rule too where `merge` is ``auto``.
        Where the function finds no object, it is 0, or 32 if the pilot did not see all of it.
    channel : int, str or None
        Channel to segment, by position or name; None segments each channel.
    level : int
        Resolution level of a multiscale image, 0 is full.
    axes : str, optional
        Axes of the image in its own order, where its metadata does not say.
    pixel_size : mapping, sequence of float, or float, optional
        Micrometers per pixel, over what the metadata say; as in `open_image`.
    parameters : mapping, optional
        Keyword arguments of `fn`.
    use_gpu : bool
        One worker process per GPU that this process may use, with a dashboard; the CPU, with a
        warning, where there is none.
    gpus : int, or sequence of int or str, optional
        Which GPUs: the first so many that this process may use, or some of them by their place
        among those or by UUID; implies `use_gpu`, and it is an error where there is none of them.
    max_workers : int, optional
        Tiles at once. None is as many as the granted cores (less one) and 80 % of the granted
        memory allow, going by what the first tile was seen to take. A Dask client has its own
        number of workers.
    workers : {"threads", "processes"}
        ``processes`` for functions that hold the GIL, or that may crash or hang: such a tile fails
        by name, its worker is replaced, and the other tiles finish. Threads cannot be ended, and a
        crash in one ends this process.
    tile_timeout : float, "auto" or None
        Seconds after which a tile fails and its worker process is ended. ``auto`` goes by the tiles
        that passed: 50 times the slowest, at least half an hour; six hours while none has passed.
        None is no limit. With processes, and on Dask.
    worker_memory : int, str or None
        Bytes, or text such as ``"8GB"``, beyond which a worker process is ended and its tile fails.
        ``auto`` is 95 % of the granted memory, on Dask a thread's share of the worker's
        ``memory_limit``; None is no limit. With processes, and on Dask.
    client : distributed.Client, optional
        Dask client whose workers take the tiles; None is the active one, if there is one. With
        ``workers="processes"`` or a limit, each thread of a worker has a process beneath it, which
        is ended when its tile hangs, crashes or takes too much.
    compute : bool
        Return a NumPy array even when it was written.
    progress : bool or callable
        True draws progress bars in a terminal; ``progress(step, done, total)`` is called.
    verbose : bool
        Say on standard error what was decided, and place, shape and labels of each tile.
    write_to : path or URL, optional
        Zarr group to write the labels into. The stage is kept beside it while the work is not
        complete.
    output_component : str
        Name of the label array in `write_to`.
    overwrite : bool
        Replace whatever has that name. Otherwise only what patchworks wrote there, and nobody
        changed since, is replaced.
    sequential_labels : bool
        True numbers the objects 1..N; False leaves gaps but keeps ids when other objects change.
    skip_empty : bool
        Do not segment tiles that read no pixel above `empty_threshold`.
    empty_threshold : float, optional
        Brightest value that is background; by default how bright the noise of the background gets
        (`patchworks_core.statistics.empty_tiles.background_threshold`).
    stage_dir : path or URL, optional
        Folder for the stage, such as a fast local disk; by default beside the labels.
    keep_stage : bool
        Leave the stage there, so that `resume` can merge it again by another rule.
    merge : {"auto", "overlap", "overlap-pairs", "touching", "none"}
        Which labels on two sides of a seam are one object. ``touching`` joins whatever touches and
        is exact for functions that label connected components; ``overlap`` weighs what tiles said
        of the same pixels; ``overlap-pairs`` looks at every two labels by themselves, as
        ``overlap`` did in version 0.1. ``auto`` is what `fn` declares, else ``overlap`` where there
        is a halo and ``touching`` where there is none.
    connectivity : int, optional
        For ``touching``: 1 joins across faces of pixels, 2 also across edges, 3 across corners.
        None is the function's own where it says, else 1.
    min_iou : float
        How much two views of an object must agree. For ``overlap-pairs`` the least intersection
        over union; ``overlap`` asks for 0.24 less of labels that touch, 0.09 less of others: a pair
        does not decide alone. A higher one joins less.
    outline : {"auto", "feather", "core"}
        How objects are drawn where tiles met. ``feather`` draws each from all tiles that saw it, so
        that outlines do not jump where two tiles disagree; ``core`` leaves the pixels of every tile
        as it made them. ``auto`` is ``feather`` where `merge` is ``overlap`` and there is an
        overlap, unless the function declares that its cores are exact.
    min_size, max_size : float
        Merged objects that are smaller, or larger, become background.
    size_unit : {"pixels", "micrometers"}
        Of these sizes: pixels, or um2 and um3 by the image's calibration.
    resume : "auto" or bool
        Take up the tiles that an interrupted call with the same image, grid and function left, or
        the labels, if they are complete. By default only where nothing else can have changed: the
        function with its parameters, all modules of yours that it imports, the values that it
        closes over and the versions of packages are compared, and where something cannot be, the
        call stops and names it. True takes your word for that; False begins anew.
    dry_run : bool
        Return what it would take instead (`patchworks_core.api.estimate.Estimate`); a few tiles are
        segmented to find out, and nothing is left behind.

    Returns
    -------
    dask.array.Array or numpy.ndarray
        Labels of the image's axes less the channel, int32 (int64 beyond 2**31 - 1 objects): lazy
        over `write_to`, or in memory when nothing was written or `compute` asks for it.

    Raises
    ------
    ImageError, PlanError, SegmentationError
        If the input cannot be used as asked.
    StageError
        If ``resume=True`` finds the stage of another image, grid or function, saying what
        differs; or ``resume="auto"`` one of which that is not known.
    TilesFailedError
        If tiles failed; all others are staged.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import ndimage
    >>> mask = np.zeros((8, 8), dtype=bool)
    >>> mask[2:4, 1:7] = mask[6, 6] = True
    >>> labels = tile_process(mask, lambda tile: ndimage.label(tile)[0], tile_shape=4)
    >>> int(labels.max()), len(set(labels[2:4, 1:7].ravel()))
    (2, 1)
    """
    options = TileOptions(
        tile_shape=tile_shape,
        overlap=overlap,
        channel=channel,
        level=level,
        axes=axes,
        pixel_size=pixel_size,
        parameters=parameters,
        use_gpu=use_gpu,
        gpus=gpus,
        max_workers=max_workers,
        workers=workers,
        tile_timeout=tile_timeout,
        worker_memory=worker_memory,
        client=client,
        verbose=verbose,
        overwrite=overwrite,
        sequential_labels=sequential_labels,
        skip_empty=skip_empty,
        empty_threshold=empty_threshold,
        stage_dir=stage_dir,
        keep_stage=keep_stage,
        merge=merge,
        connectivity=connectivity,
        min_iou=min_iou,
        outline=outline,
        min_size=min_size,
        max_size=max_size,
        size_unit=size_unit,
        resume=resume,
    )
    with progress_of(progress) as report:
        job, plan = planned_job(image, fn, options, report, is_temporary=write_to is None)
        if dry_run:
            return estimate(job, plan)
        return labels_of(job, plan, write_to, output_component, compute=compute, resume=resume)


def labels_of(
    job: Job,
    plan: Plan,
    write_to: Location | None,
    component: str,
    *,
    compute: bool,
    resume: Resume,
) -> Any:
    """Run a job, and return the labels in memory or lazily."""
    if write_to is None:
        with tempfile.TemporaryDirectory(prefix="patchworks-") as folder:
            job.write_array(plan, UPath(folder), "labels", resume=resume)
            return np.asarray(open_array(UPath(folder) / "labels")[...])
    group = as_path(write_to)
    job.write_array(plan, group, component, resume=resume)
    labels = open_array(component_path(group, component))
    if compute:
        return np.asarray(labels[...])
    import dask.array as da

    return da.from_zarr(labels)

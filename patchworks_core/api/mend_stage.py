"""The façade for tiles that disagree: one more view of the faces at which they do."""

from __future__ import annotations

from dataclasses import replace

from patchworks_core.api.per_tile import PlannedTiles, job_at, planned_tiles
from patchworks_core.files.storage import Location, claimed
from patchworks_core.machine.progress import Progress, progress_of
from patchworks_core.merge.mending import MIN_AGREEMENT, Mended, Mending, mend_faces
from patchworks_core.merge.pairing import pair_tiles
from patchworks_core.stage.unchanged import check_image


def mend_stage(
    stage: Location | PlannedTiles,
    *,
    faces: int | None = None,
    min_agreement: float = MIN_AGREEMENT,
    max_workers: int | None = None,
    progress: bool | Progress = False,
) -> Mended:
    """Segment one more tile at each face where two tiles disagree; `merge_stage` then hears it.

    Parameters
    ----------
    stage : path or PlannedTiles
        As in `merge_stage`; no tile may be missing.
    faces : int, optional
        At most so many, the worst; None is no limit.
    min_agreement : float
        Faces are mended whose objects agree less, 0 to 1: mean intersection over union, as the two
        tiles saw them.
    max_workers : int, optional
        Third views at once; None is as many as cores and memory allow.
    progress : bool or callable
        As in `tile_process`.

    Returns
    -------
    Mended
        The faces that were chosen, and how many views were staged: none where a call with the same
        tiles staged them before.

    Raises
    ------
    PlanError
        If tiles are not merged by ``overlap``, or saw no pixel in common.
    StageError
        If a tile is missing, or the image changed since.
    TilesFailedError
        If a third view failed, naming its face; the others are kept, and the next call goes on with
        what is left.

    Notes
    -----
    A third view is as large as a tile, centred on the face. It is for stages whose tiles cannot be
    others: an overlap of one diameter of a large object gains more. A tile that is staged again
    makes the third views over it stale: they are left out of merges, and staged again by the next
    call.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from patchworks_core import merge_stage, plan_tiles, stage_tile
    >>> folder = tempfile.TemporaryDirectory()
    >>> pixels = np.repeat([[9, 9, 0, 9, 9, 9, 0, 9]], 8, axis=0)
    >>> planned = plan_tiles(
    ...     pixels, "threshold", folder.name, tile_shape=4, overlap=2, merge="overlap"
    ... )
    >>> labels = [stage_tile(folder.name, i) for i in range(planned.n_tiles)]
    >>> mend_stage(folder.name).n_views  # these tiles agree
    0
    >>> folder.cleanup()
    """
    planned = planned_tiles(stage)
    loaded = job_at(planned)
    job = replace(loaded.job, compute=replace(loaded.job.compute, max_workers=max_workers))
    opened = planned.opened()
    with claimed(planned.stage / "stage.zarr", doing="mending"), progress_of(progress) as report:
        image = loaded.staging.image
        with job.compute.with_memory().open(opened.grid, image.dtype) as pool:
            check_image(loaded.staging, pool=pool)
            with pair_tiles(opened, pool=pool) as edges:
                mended = mend_faces(
                    loaded.staging,
                    edges,
                    job.resolved(planned.plan),
                    Mending(faces, min_agreement),
                    pool=pool,
                    say=lambda done, n: report("mend", done, n),
                )
    mended.check()
    return mended

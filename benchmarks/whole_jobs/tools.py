"""One tool on one workload, in a process and perhaps an environment of its own.

    python -m benchmarks.whole_jobs.tools TOOL WORKLOAD IMAGE TILES OUT WORKERS

Prints one line of JSON: seconds of the job without the interpreter's start and imports, and where
the tool tells, seconds of its phases. What a tool imports when it is first used is left out too:
it does a job of two small tiles before.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.whole_jobs.workloads import BY_NAME, FUNCTIONS, LEVEL, Workload


@dataclass(frozen=True)
class Job:
    """What a tool is given."""

    workload: Workload
    image: str
    tiles: str
    """Labels of each tile on its own, as chunks of a Zarr array; of the merge alone."""

    out: str
    workers: int

    @property
    def function(self) -> Callable[[np.ndarray], np.ndarray]:
        """Labels one tile."""
        return FUNCTIONS[self.workload.kind]


def ours(job: Job) -> Any:
    """Run `patchworks_core.tile_process` with its default workers."""
    from patchworks_core import tile_process

    def run() -> dict[str, float]:
        phases = Phases()
        rule = "overlap" if job.workload.halo else "touching"
        tile_process(
            job.image,
            job.function,
            tile_shape=job.workload.tile_shape,
            overlap=job.workload.halo,
            axes=job.workload.axes,
            merge=rule,
            max_workers=job.workers,
            write_to=job.out,
            progress=phases,
            resume=False,
        )
        return phases.seconds()

    return run


class Phases:
    """Seconds of each step, from the end of the one before; planning counts to the first."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.ends: dict[str, float] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        """Take a report of progress."""
        self.ends[step] = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Return the length of each step, and of what came after the last."""
        ends = {**self.ends, "publish": time.perf_counter()}
        starts = [self.begun, *ends.values()]
        return {
            step: round(end - start, 3)
            for (step, end), start in zip(ends.items(), starts, strict=False)
        }


def peer(job: Job) -> Any:
    """Run the peer `patchworks` of the registry, through its public API."""
    import dask
    import dask.array as da
    import patchworks

    def run() -> None:
        with dask.config.set(num_workers=job.workers):
            patchworks.tile_process(
                da.from_zarr(job.image),
                job.function,
                tile_shape=job.workload.tile_shape,
                overlap=job.workload.halo,
                stitch="iou" if job.workload.halo else "touch",
                max_workers=job.workers,
                progress=False,
                write_to=job.out,
                pyramid_levels=1,
            )

    return run


def dask_alone(job: Job) -> Any:
    """Label every tile and write it, with Dask's threads: no halo, no merge."""
    import dask
    import dask.array as da

    def run() -> None:
        with dask.config.set(scheduler="threads", num_workers=job.workers):
            image = da.from_zarr(job.image).rechunk(job.workload.tile_shape)
            image.map_blocks(job.function, dtype="int32").to_zarr(job.out, component="labels")

    return run


def in_memory(job: Job) -> Any:
    """Label the whole image in memory by `cc3d`."""
    import cc3d

    connectivity = 4 if len(job.workload.shape) == 2 else 6

    def run() -> None:
        pixels = zarr.open_array(job.image, mode="r")[...]
        labels = cc3d.connected_components(pixels > LEVEL, connectivity=connectivity)
        out = zarr.create_array(
            job.out + "/labels", shape=labels.shape, chunks=job.workload.chunks, dtype="int32"
        )
        out[...] = labels.astype(np.int32)

    return run


def tilewise(job: Job) -> Any:
    """Label connected components tile by tile by `tilewise-ccl`, which thresholds by itself."""
    import dask
    import dask.array as da
    from tilewise_ccl import label_array

    def run() -> None:
        with dask.config.set(scheduler="threads", num_workers=job.workers):
            mask = da.from_zarr(job.image) > LEVEL
            labels = label_array(
                mask, job.workload.tile_shape, connectivity=1, max_threads=job.workers
            )
            labels.astype("int32").to_zarr(job.out, component="labels")

    return run


NGIO_HALO = 8
"""Pixels around tiles by which ngio stitches, where other tools need none."""


def ngio(job: Job) -> Any:
    """Segment by ngio's iterator, which stitches by the IoU in what two tiles both read."""
    from ngio import create_ome_zarr_from_array, open_ome_zarr_container
    from ngio.iterators import SegmentationIterator, StitchConfig, ThreadedMapper

    workload, path = job.workload, job.image
    if not path.endswith(".ome.zarr"):  # the small job before
        path += ".ome.zarr"
        pixels = zarr.open_array(job.image, mode="r")[...]
        create_ome_zarr_from_array(
            path, pixels, pixelsize=1.0, levels=1, axes_names=list(workload.axes)
        )
    sizes = {f"size_{axis}": n for axis, n in zip(workload.axes, workload.tile_shape, strict=True)}
    halo = dict.fromkeys(workload.axes, workload.halo or NGIO_HALO)

    def run() -> None:
        image = open_ome_zarr_container(path)
        label = image.derive_label("labels", overwrite=True)
        tiles = SegmentationIterator(image.get_image(), label, axes_order=workload.axes)
        tiles = tiles.by_grid(**sizes).with_halo(**halo).with_stitch(StitchConfig())
        tiles.map(
            lambda tile: job.function(tile).astype(np.uint32),
            mapper=ThreadedMapper(max_workers=job.workers),
        )

    return run


def our_merge(job: Job) -> Any:
    """Merge labels that are there tile by tile, by `patchworks_core.merge_tile_labels`."""
    from patchworks_core import merge_tile_labels

    def run() -> None:
        merge_tile_labels(
            job.tiles, input_component="labels", write_to=job.out, n_workers=job.workers
        )

    return run


def peer_merge(job: Job, label_counts: list[int] | None = None) -> Any:
    """Merge the same labels by the peer, which numbers them anew in place: it is given a copy."""
    import dask
    import patchworks

    own = f"{job.out}.tiles"
    shutil.copytree(job.tiles, own)

    def run() -> None:
        with dask.config.set(num_workers=job.workers):
            patchworks.merge_tile_labels(
                own,
                input_component="labels",
                write_to=job.out,
                n_workers=job.workers,
                label_counts=label_counts,
            )

    return run


def peer_counted_merge(job: Job) -> Any:
    """Merge the same labels by the peer, which is told how many each tile has."""
    tiles = zarr.open_array(f"{job.tiles}/labels", mode="r")
    sizes = zip(tiles.shape, tiles.chunks, strict=True)
    places = product(*([slice(i, i + n) for i in range(0, size, n)] for size, n in sizes))
    return peer_merge(job, [int(np.max(tiles[place])) for place in places])


TOOLS = {
    "patchworks": ours,
    "peer": peer,
    "dask": dask_alone,
    "cc3d": in_memory,
    "tilewise": tilewise,
    "ngio": ngio,
    "merge": our_merge,
    "peer merge": peer_merge,
    "peer counted merge": peer_counted_merge,
}


def small(job: Job, folder: Path) -> Job:
    """Return a job of the same kind on two tiles of background, one object across their seam."""
    workload = job.workload
    edge = max(32, 3 * workload.halo)
    tile_shape = (edge,) * len(workload.shape)
    shape = (2 * edge, *tile_shape[1:])
    pixels = np.zeros(shape, dtype="uint16" if workload.kind == "nuclei" else "int32")
    pixels[edge - 2 : edge + 2] = pixels[-4:] = LEVEL + 1
    zarr.create_group(str(folder / "tiles"))
    for name in ("image", "tiles"):
        array = zarr.create_array(
            str(folder / name) + "/labels" * (name == "tiles"),
            shape=shape,
            chunks=tile_shape,
            dtype=pixels.dtype,
        )
        array[...] = pixels
    return Job(
        replace(workload, shape=shape, tile_shape=tile_shape),
        str(folder / "image"),
        str(folder / "tiles"),
        str(folder / "out"),
        job.workers,
    )


def main() -> None:
    """Run one tool once."""
    tool, workload, image, tiles, out, workers = sys.argv[1:]
    job = Job(BY_NAME[workload], image, tiles, out, int(workers))
    with tempfile.TemporaryDirectory(prefix="patchworks-bench-") as folder:
        TOOLS[tool](small(job, Path(folder)))()
    run = TOOLS[tool](job)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    phases = run()
    print(json.dumps({"seconds": time.perf_counter() - start, "phases": phases or {}}))


if __name__ == "__main__":
    main()

"""Runs the peer `patchworks` 3.3.0 on labels that were made beforehand; needs only its interpreter.

    python peer_runner.py FOLDER

`FOLDER` holds ``views_*.npz`` (what the segmentation function returns for each region a tile reads,
by key ``start_..._shape_...``) and ``jobs.json``, a list of {views, shape, tile_shape, overlap,
stitch, result}. The image that the peer is given holds the position of each pixel, so the function
knows which region it was handed and returns exactly the labels that were made for it, whatever the
tiling. Results are written as ``.npy``; a job that fails leaves ``<result>.txt`` with the error.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main(folder):
    """Run every job of the folder."""
    for job in json.loads((folder / "jobs.json").read_text()):
        views = np.load(folder / job["views"])
        try:
            labels = run(job, {key: views[key] for key in views.files})
        except Exception as error:  # whatever the peer raises is its result
            (folder / (job["result"] + ".txt")).write_text(f"{type(error).__name__}: {error}")
        else:
            np.save(folder / job["result"], labels)


def run(job, views):
    """Return the peer's merged labels."""
    import dask.array as da
    import patchworks

    shape, tile_shape = tuple(job["shape"]), tuple(job["tile_shape"])
    positions = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)

    def look_up(tile):
        start = np.unravel_index(int(np.asarray(tile).flat[0]), shape)
        return views[view_key(start, tile.shape)]

    result = patchworks.tile_process(
        da.from_array(positions, chunks=tile_shape),
        look_up,
        tile_shape=tile_shape,
        overlap=job["overlap"],
        stitch=job["stitch"],
        max_workers=1,
        progress=False,
    )
    return np.asarray(result)


def view_key(start, shape):
    """Name the labels of a region."""
    parts = ("start", *map(int, start), "shape", *map(int, shape))
    return "_".join(map(str, parts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

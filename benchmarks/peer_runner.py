"""Runs another tool's merge on labels made beforehand; needs only that tool's interpreter.

    python peer_runner.py FOLDER REQUIREMENT

`FOLDER` holds ``views_*.npz`` (what the segmentation function returns for each region a tile
reads, by key ``start_..._shape_...``) and ``jobs.json``, a list of {tool, views, shape, tile_shape,
overlap, result} and what the tool's function asks for besides. Tools that read the image are given
the position of each pixel as its value, so the function they call knows which region it was handed
and returns exactly the labels that were made for it, whatever the tiling. Results are written as
``.npy``; a job that fails leaves ``<result>.txt`` with the error. `REQUIREMENT`, as
``ngio==1.1.3``, is the version that must be installed.
"""

import contextlib
import json
import re
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np


def main(folder, requirement):
    """Run every job of the folder."""
    distribution, _, wanted = re.sub(r"\[.*?\]", "", requirement).partition("==")
    if installed(distribution) != wanted:
        raise SystemExit(f"has {distribution} {installed(distribution)}; pip install {requirement}")
    for job in json.loads((folder / "jobs.json").read_text()):
        views = np.load(folder / job["views"])
        try:
            labels = TOOLS[job["tool"]](job, {key: views[key] for key in views.files})
        except Exception as error:  # whatever the tool raises is its result
            (folder / (job["result"] + ".txt")).write_text(f"{type(error).__name__}: {error}")
        else:
            np.save(folder / job["result"], labels)


def installed(distribution):
    """Return the version of what is installed, None where it is not."""
    with contextlib.suppress(PackageNotFoundError):
        return version(distribution)


def patchworks(job, views):
    """Return what `patchworks` 3.3.0 makes of the labels; `stitch` is its mode."""
    import dask.array as da
    import patchworks

    shape, tile_shape = tuple(job["shape"]), tuple(job["tile_shape"])
    result = patchworks.tile_process(
        da.from_array(positions(shape), chunks=tile_shape),
        looked_up(views, shape),
        tile_shape=tile_shape,
        overlap=job["overlap"],
        stitch=job["stitch"],
        max_workers=1,
        progress=False,
    )
    return np.asarray(result)


def ngio(job, views):
    """Return what ngio makes of them: a grid with a halo, stitched by the IoU in what both read."""
    from ngio import create_ome_zarr_from_array
    from ngio.iterators import SegmentationIterator, StitchConfig

    shape = tuple(job["shape"])
    axes = "zyx"[-len(shape) :]
    with tempfile.TemporaryDirectory() as folder:
        image = create_ome_zarr_from_array(
            f"{folder}/image.zarr",
            positions(shape).astype(np.uint32),
            pixelsize=1.0,
            levels=1,
            axes_names=axes,
        )
        label = image.derive_label("labels")
        tiles = SegmentationIterator(image.get_image(), label, axes_order=axes)
        sizes = {f"size_{axis}": n for axis, n in zip(axes, job["tile_shape"], strict=True)}
        tiles = tiles.by_grid(**sizes).with_halo(**dict.fromkeys(axes, job["overlap"]))
        tiles.with_stitch(StitchConfig()).map(looked_up(views, shape, np.uint32))
        return np.asarray(label.get_as_numpy())


def bioimage(job, views):
    """Return what bioimage-py makes of them: a multicut over the overlaps in the halos."""
    from bioimage_py.segmentation import stitch_segmentation

    shape = tuple(job["shape"])
    look_up = looked_up(views, shape)
    return stitch_segmentation(
        positions(shape),
        lambda tile, _: look_up(tile),
        tile_shape=tuple(job["tile_shape"]),
        tile_overlap=(job["overlap"],) * len(shape),
        with_background=any((labels == 0).any() for labels in views.values()),
    )


def cellpose(job, views):
    """Return what Cellpose's distributed segmentation makes of them: blocks joined by faces."""
    from cellpose.contrib import distributed_segmentation as distributed

    shape, tile_shape = tuple(job["shape"]), tuple(job["tile_shape"])
    blocks = distributed.get_block_crops(shape, tile_shape, job["overlap"], None)
    labels = np.zeros(shape, np.uint32)
    look_up = looked_up(views, shape, np.uint32)
    distributed.read_preprocess_and_segment = lambda image, crop, *_: look_up(image[crop])
    processed = [
        distributed.process_block(
            index,
            crop,
            positions(shape),
            model_kwargs={},
            eval_kwargs={},
            blocksize=tile_shape,
            overlap=job["overlap"],
            output_zarr=labels,
        )
        for index, crop in zip(*blocks, strict=True)
    ]
    faces, _, ids = zip(*processed, strict=True)
    merged = distributed.determine_merge_relabeling(blocks[0], faces, np.concatenate(ids))
    return merged[labels]


def sopa(job, views):
    """Return what sopa makes of them: polygons, of which those that overlap are united.

    Polygons may lie over one another; the larger are drawn first.
    """
    import pandas as pd
    from sopa.segmentation import solve_conflicts
    from sopa.shapes import rasterize, vectorize

    cells, patches = [], []
    for i, (key, labels) in enumerate(views.items()):
        y, x = map(int, key.split("_")[1:3])
        of_tile = vectorize(labels)
        of_tile.geometry = of_tile.translate(x, y)
        cells.append(of_tile)
        patches += [i] * len(of_tile)
    cells = pd.concat(cells).reset_index(drop=True)
    cells = solve_conflicts(cells, patch_indices=np.array(patches))
    merged = np.zeros(job["shape"], np.int32)
    by_size = cells.geometry.iloc[np.argsort(-cells.area.to_numpy(), kind="stable")]
    for i, cell in enumerate(by_size, start=1):
        merged[rasterize(cell, merged.shape) > 0] = i
    return merged


def squidpy(job, views):
    """Return what squidpy makes of them: chunks with a halo, joined where their labels touch."""
    from squidpy.im import ImageContainer, segment

    shape = tuple(job["shape"])
    look_up = looked_up(views, shape)
    image = ImageContainer(positions(shape)[..., None], layer="positions")
    segment(
        image,
        layer="positions",
        method=lambda tile: look_up(tile[..., 0]),
        chunks=(*job["tile_shape"], 1),
        depth=dict.fromkeys(range(len(shape)), job["overlap"]),
        boundary="none",
        layer_added="labels",
    )
    return np.asarray(image["labels"]).reshape(shape)


TOOLS = {
    "patchworks": patchworks,
    "ngio": ngio,
    "bioimage-py": bioimage,
    "cellpose": cellpose,
    "sopa": sopa,
    "squidpy": squidpy,
}
"""By the name that a job has for it."""


def positions(shape):
    """Return an image whose pixels hold their own position."""
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape)


def looked_up(views, shape, dtype=None):
    """Return a segmentation function: from pixels that hold their position to their labels."""

    def look_up(tile):
        start = np.unravel_index(int(np.asarray(tile).flat[0]), shape)
        labels = views[view_key(start, tile.shape)]
        return labels if dtype is None else labels.astype(dtype)

    return look_up


def view_key(start, shape):
    """Name the labels of a region."""
    parts = ("start", *map(int, start), "shape", *map(int, shape))
    return "_".join(map(str, parts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

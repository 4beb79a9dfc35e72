"""What a user writes; `mypy --strict` knows what every call gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
from scipy import ndimage

import patchworks_core as pw


def label(tile: npt.NDArray[Any], cut: float = 0.5) -> npt.NDArray[np.int32]:
    """Label what is bright."""
    labels: npt.NDArray[np.int32] = ndimage.label(tile > cut)[0]
    return labels


def main(folder: Path) -> int:
    """Segment, filter, measure and write."""
    image = np.zeros((64, 80), "f4")
    image[10:30, 20:60] = 1
    options = {"cut": 0.5}
    labels = pw.tile_process(image, label, tile_shape=32, overlap=4, parameters=options)
    assert_type(labels, npt.NDArray[np.integer[Any]])
    pw.tile_process(image, label, tile_shape=32, write_to=folder / "a.zarr", resume=True)
    again = pw.tile_process(
        image, label, tile_shape=32, write_to=folder / "b.zarr", compute=True, max_workers=1
    )
    needs = pw.tile_process(image, label, tile_shape=32, dry_run=True)
    assert_type(needs, pw.Estimate)
    written = pw.segment_to_ome_zarr(image, "threshold", folder / "c.ome.zarr", tile_shape=32)
    assert_type(written, pw.SegmentedImage)
    filled = pw.fill_holes(labels, per_plane=True)
    table = pw.measure_objects(filled, image)
    report = pw.seam_report(labels, 32)
    empty = pw.estimate_empty_tiles(image, 32)
    assert_type(empty.empty_fraction, float)
    halo = pw.auto_overlap(10, voxel_size=(1.0, 1.0))
    opened = pw.open_image(image, axes="yx", pixel_size=0.5)
    assert_type(opened, pw.Image)
    planned = pw.plan_tiles(image, label, folder / "stage", tile_shape=32)
    counts: list[int] = [pw.stage_tile(planned, i) for i in range(planned.n_tiles)]
    merged = pw.merge_stage(planned)
    put = pw.write_labels(merged, folder / "d.ome.zarr", like=opened)
    print(table.num_rows, report.problems(), halo, needs.n_tiles, written.path, put.path, counts)
    print(pw.__version__)
    return int(again.max())


if __name__ == "__main__":
    import sys

    sys.exit(0 if main(Path(sys.argv[1])) == 1 else 1)

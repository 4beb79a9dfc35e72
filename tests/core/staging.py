"""Small images, planned, staged and merged, for tests of what lies on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from patchworks_core.files.packed import open_packed, pack
from patchworks_core.files.storage import as_path
from patchworks_core.images.image import open_image
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.merge.pairing import pair_tiles
from patchworks_core.merge.steps import look_up
from patchworks_core.plugins.segmentation import declare, segmentation_of
from patchworks_core.seams.edge_table import Edges, EdgeTable
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.plan import make_plan
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging, stage_blocks

TOUCHING = MergeOptions("touching", 1)


@declare(merge="touching", version="1")
def label_components(tile):
    return ndimage.label(tile)[0]


def blobs(shape, density: float = 0.5, seed: int = 0) -> np.ndarray:
    """Random pixels; at 0.5 most components cross many tiles."""
    return np.random.default_rng(seed).random(shape) < density


def plan_of(
    pixels,
    function=label_components,
    *,
    parameters=None,
    tile_shape=4,
    overlap=0,
    axes=None,
    **options,
):
    """Open and plan an array."""
    names = {name: options.pop(name) for name in ("channel", "level") if name in options}
    image = open_image(pixels, axes=axes, **names)
    segmentation = segmentation_of(function, parameters)
    plan = make_plan(image, segmentation, tile_shape=tile_shape, overlap=overlap, **options)
    return image, plan


def stage_into(location, pixels, function=label_components, *, keys=None, **options) -> Stage:
    """Stage an array, all of it or the blocks of `keys`; no block may fail."""
    image, plan = plan_of(pixels, function, **options)
    stage = Stage.open_or_create(location, plan)
    blocks = [plan.grid.block_of_key(key) for key in keys or plan.grid.block_keys()]
    with Pool.open(Workers()) as pool:
        outcomes = list(
            stage_blocks(Staging(image, stage, function, measures=True), blocks, pool=pool)
        )
    assert [outcome.failure for outcome in outcomes] == [None] * len(blocks)
    return stage


def lut_of(stage: Stage, options: MergeOptions = TOUCHING):
    """Pair and look up."""
    with Pool.open(Workers()) as pool:
        return look_up(stage, pair_tiles(stage, pool=pool), options, pool=pool)


def rows_of(edges: Edges) -> EdgeTable:
    """Return all rows as one table."""
    return EdgeTable.stacked(edges.parts())


def merged_of(stage: Stage, options: MergeOptions = TOUCHING) -> np.ndarray:
    """Merge in memory what is staged."""
    lut = lut_of(stage, options)
    merged = np.zeros(stage.grid.shape, dtype=lut.dtype)
    for block in stage.grid.blocks():
        staged = stage.labels(block)
        for tile in block.tiles:
            place = tile.core.slices_from(block.core.start)
            merged[tile.core.slices] = lut.of_tile(tile.number)[staged[place]]
    return merged


def block_file(stage_folder, key: str) -> Path:
    """Return the file of a tile block."""
    (path,) = Path(str(stage_folder)).rglob(f"{key}.tiles")
    return path


def spoil_array(path: Path, name: str) -> None:
    """Flip a bit of one array in the file of a block."""
    with open_packed(as_path(path)) as packed:
        array = packed.arrays[name]
        first = packed.n_bytes - sum(other.n_bytes for other in packed.arrays.values())
    content = bytearray(path.read_bytes())
    content[first + array.start + array.n_bytes // 2] ^= 4
    path.write_bytes(bytes(content))


def change_array(path: Path, name: str, change) -> None:
    """Write one array in the file of a block as if it had been staged so."""
    with open_packed(as_path(path)) as packed:
        header, arrays = packed.header, packed.load(packed.arrays)
    path.write_bytes(pack(header, {**arrays, name: change(arrays[name])}))

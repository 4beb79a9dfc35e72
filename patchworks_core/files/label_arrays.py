"""Arrays of labels: cut so that no two tile blocks write one chunk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import zarr
import zarr.errors
from upath import UPath

from patchworks_core.errors import PlanError
from patchworks_core.files.faults import storing
from patchworks_core.files.records import read_mapping
from patchworks_core.files.storage import (
    ZarrFormat,
    create_array,
    group_format,
    remove_parts,
    write_text,
    zarr_store,
)
from patchworks_core.tiles.grid import TileGrid
from patchworks_core.tiles.numbers import whole_number

CHUNK_PIXELS = 1 << 20
"""Aim for chunks of at most this many pixels (1024 x 1024, 64 x 128 x 128): 4 MB of int32, of which
some 50 kB are stored. A file costs as much as its pixels where chunks are a quarter of that."""


def output_chunks(grid: TileGrid) -> tuple[int, ...]:
    """Return chunks that divide a tile's core, of at most `CHUNK_PIXELS` where it divides so far.

    Where tiles are smaller than that, a chunk is several tiles of one block.

    Examples
    --------
    >>> output_chunks(TileGrid("yx", (4096, 4096), (2048, 1024), (0, 0)))
    (1024, 1024)
    >>> output_chunks(TileGrid("yx", (4096, 4096), (128, 128), (0, 0), block_shape=(4, 8)))
    (512, 1024)
    """
    chunks = list(grid.tile_shape)
    tiles = list(grid.block_shape)
    while even := [axis for axis, n in enumerate(tiles) if n % 2 == 0]:
        shortest = min(even, key=lambda axis: chunks[axis])
        if 2 * prod(chunks) > CHUNK_PIXELS:
            break
        chunks[shortest] *= 2
        tiles[shortest] //= 2
    while prod(chunks) > CHUNK_PIXELS:
        longest = max(range(len(chunks)), key=lambda axis: chunks[axis])
        divisor = next((d for d in (2, 3, 5, 7) if chunks[longest] % d == 0), None)
        if divisor is None:
            break
        chunks[longest] //= divisor
    return tuple(chunks)


def _make_group(path: UPath, zarr_format: ZarrFormat) -> None:
    """Write the metadata of a group; of a part that Zarr leaves nobody knows whose it is."""
    if zarr_format == 2:
        write_text(path / ".zgroup", json.dumps({"zarr_format": 2}))
    else:
        whole = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
        write_text(path / "zarr.json", json.dumps(whole, indent=2))


def update_attributes(path: UPath, attributes: Mapping[str, Any]) -> None:
    """Set attributes of the Zarr group at `path`; all others stay."""
    if group_format(path) == 2:
        before = read_mapping(path / ".zattrs") or {}
        write_text(path / ".zattrs", json.dumps({**before, **attributes}, indent=2))
        return
    metadata = read_mapping(path / "zarr.json") or {}
    whole = {**metadata, "attributes": {**metadata.get("attributes", {}), **attributes}}
    write_text(path / "zarr.json", json.dumps(whole, indent=2))


def check_chunks(grid: TileGrid, chunks: Sequence[int]) -> tuple[int, ...]:
    """Return the chunks that labels are to have.

    Raises
    ------
    PlanError
        If a tile is not a whole number of them, so that two tiles would write one.
    """
    sizes = tuple(whole_number("output_chunks", n, least=1) for n in chunks)
    fits = len(sizes) == len(grid.axes) and all(
        tile % size == 0 or tile >= n
        for size, tile, n in zip(sizes, grid.tile_shape, grid.shape, strict=True)
    )
    if not fits:
        raise PlanError(
            f"a tile is whole chunks, got output_chunks={tuple(chunks)!r} for tiles of "
            f"{grid.tile_shape} (axes {grid.axes!r}); give sizes that divide these, or leave it out"
        )
    return sizes


def create_label_array(
    path: UPath,
    grid: TileGrid,
    dtype: np.dtype[Any],
    *,
    zarr_format: ZarrFormat = 3,
    chunks: Sequence[int] | None = None,
) -> None:
    """Create the array of merged labels at `path`, replacing what is there."""
    create_array(
        path,
        shape=grid.shape,
        chunks=output_chunks(grid) if chunks is None else check_chunks(grid, chunks),
        dtype=dtype,
        axes=grid.axes,
        zarr_format=zarr_format,
    )


FILE_SUFFIXES = (
    *(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".svs", ".czi", ".lif", ".nd2"),
    *(".npy", ".npz", ".csv", ".parquet", ".h5", ".hdf5", ".zip", ".ozx", ".yaml", ".json"),
)
"""Endings of names that say a file, where Zarr makes a folder."""


def refuse_file_name(path: UPath) -> None:
    """Raise PlanError where a folder of Zarr would be made under the name of a file.

    What is there already under such a name may be written into.
    """
    name = path.name
    suffix = next((s for s in FILE_SUFFIXES if name.lower().endswith(s)), None)
    if suffix is not None and group_format(path) is None:
        stem = name[: -len(suffix)].removesuffix(".zarr")
        raise PlanError(
            f"Zarr is a folder, and {name!r} is the name of a file; name it {stem + '.zarr'!r}, "
            f"and export {suffix} from there"
        )


def open_label_group(path: UPath) -> ZarrFormat:
    """Make the Zarr group at `path` if it is not there, and return its format.

    Raises
    ------
    PlanError
        If an array is there, or the group's metadata are damaged.
    """
    return open_group(path).metadata.zarr_format


def open_group(path: UPath, zarr_format: ZarrFormat | None = None) -> zarr.Group:
    """Open the Zarr group at `path` to write into it, and make it if it is not there.

    Raises
    ------
    PlanError
        If an array is there, or the group's metadata are damaged.
    """
    try:
        with storing(path, doing="making a Zarr group"):
            remove_parts(path, of_the_dead=True, is_deep=False)
            if group_format(path) is None:
                _make_group(path, zarr_format or 3)
        return zarr.open_group(zarr_store(path), mode="r+", zarr_format=zarr_format)
    except zarr.errors.ContainsArrayError as error:
        raise PlanError(
            f"labels are written into a Zarr group, and {path} is an array; name another write_to"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PlanError(
            f"the metadata of the Zarr group at {path} are damaged ({error}); restore its "
            "zarr.json (.zgroup, .zattrs), or write elsewhere"
        ) from error


def refuse_ome_image(group: UPath, component: str) -> None:
    """Raise PlanError where an array would stand in place of the label images of an OME-Zarr."""
    if component.strip("/") != "labels" or group_format(group) is None:
        return
    try:
        attributes: Any = zarr.open_group(zarr_store(group), mode="r").attrs.asdict()
    except (zarr.errors.ContainsArrayError, ValueError, TypeError, KeyError):
        return  # said by whoever writes there
    if "multiscales" in attributes or "multiscales" in (attributes.get("ome") or ()):
        raise PlanError(
            f"{group} is an OME-Zarr image, whose 'labels' are a group of label images, not an "
            "array; write into it with segment_to_ome_zarr or write_labels, or name another "
            "write_to or output_component"
        )

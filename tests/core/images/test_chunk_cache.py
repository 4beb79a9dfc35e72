"""Chunks that tiles cut are decoded once, within bounded memory, and change no pixel."""

from __future__ import annotations

import gc
import os
import pickle
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from zarr.storage import LocalStore, MemoryStore

from patchworks_core.errors import ImageError
from patchworks_core.images.image import open_image
from patchworks_core.images.readers import chunk_cache
from patchworks_core.images.readers.chunk_cache import CHUNKS, ChunkCache
from patchworks_core.machine.budget import Limit
from patchworks_core.tiles.regions import Region

SHAPE, CHUNK = (70, 100), (16, 16)


def pixels() -> np.ndarray:
    image = np.random.default_rng(4).integers(1, 60_000, SHAPE, dtype=np.uint16)
    image[16:32, 32:64] = 0  # chunks of background, which are not stored
    return image


def write_v2(path: Path) -> None:
    zarr.create_array(str(path), data=pixels(), chunks=CHUNK, zarr_format=2)


def write_v3(path: Path) -> None:
    zarr.create_array(str(path), data=pixels(), chunks=CHUNK, config={"write_empty_chunks": False})


def write_shards(path: Path) -> None:
    zarr.create_array(str(path), data=pixels(), chunks=CHUNK, shards=(32, 32))


def write_tiles(path: Path) -> None:
    tifffile.imwrite(path, pixels(), tile=CHUNK, compression="zlib")


def write_last_channel(path: Path) -> None:
    shape = (2, *SHAPE)
    image = zarr.create_array(
        str(path), shape=shape, chunks=(1, *CHUNK), dtype="u2", dimension_names=["c", "y", "x"]
    )
    image[1] = pixels()


FORMATS = {
    "v2.zarr": write_v2,
    "v3.zarr": write_v3,
    "shards.zarr": write_shards,
    "tiles.tif": write_tiles,
    "last_channel.zarr": write_last_channel,
}


@pytest.fixture(params=FORMATS)
def path(request, tmp_path) -> str:
    FORMATS[request.param](tmp_path / request.param)
    return str(tmp_path / request.param)


@pytest.fixture
def cache(monkeypatch):
    """Put a cache of so many bytes in the place of this process's."""

    def put(most_bytes: int) -> ChunkCache:
        mine = ChunkCache(most_bytes)
        monkeypatch.setattr(chunk_cache, "CHUNKS", mine)
        return mine

    return put


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Return the chunks that are read from the store, as they are."""
    keys: list[str] = []
    get = LocalStore.get

    async def noted(store, key, *args, **keywords):
        keys.append(key)
        return await get(store, key, *args, **keywords)

    monkeypatch.setattr(LocalStore, "get", noted)
    return keys


@pytest.mark.parametrize("most_bytes", [0, 3 * 512, 1 << 20])
def test_regions_are_the_pixels_that_are_stored(path, cache, most_bytes):
    kept = cache(most_bytes)
    image = open_image(path, channel=1 if "channel" in path else None)
    expected, rng = pixels(), np.random.default_rng(0)
    for _ in range(40):
        start = rng.integers(0, SHAPE)
        stop = start + rng.integers(1, np.array(SHAPE) - start + 1)
        region = Region(tuple(map(int, start)), tuple(map(int, stop)))
        region = Region((1, *region.start), (2, *region.stop)) if image.ndim == 3 else region
        found = image.read(region)
        np.testing.assert_array_equal(found.reshape(stop - start), expected[region.slices[-2:]])
        assert kept.n_bytes <= most_bytes


def tiles_with_halo(halo: int) -> list[Region]:
    """Return a tile for each chunk, with a halo, in row-major order."""
    regions = []
    for y, x in product(range(0, SHAPE[0], CHUNK[0]), range(0, SHAPE[1], CHUNK[1])):
        stop = (min(SHAPE[0], y + CHUNK[0] + halo), min(SHAPE[1], x + CHUNK[1] + halo))
        regions.append(Region((max(0, y - halo), max(0, x - halo)), stop))
    return regions


def test_chunks_are_decoded_once_where_tiles_have_halos(tmp_path, cache, decoded):
    cache(1 << 20)
    write_v3(tmp_path / "image.zarr")
    image = open_image(tmp_path / "image.zarr")
    decoded.clear()
    for region in tiles_with_halo(2):
        image.read(region)
    times = Counter(decoded)
    assert len(times) == -(-SHAPE[0] // CHUNK[0]) * -(-SHAPE[1] // CHUNK[1])
    assert times.pop("c/0/0") == 2  # the first tile reads it whole, the next one cuts it
    for chunk in ("c/1/2", "c/1/3"):  # of background: there is no file to read
        times.pop(chunk)
    assert set(times.values()) == {1}


def test_a_chunk_that_is_written_again_is_read_again(tmp_path, cache):
    cache(1 << 20)
    write_v3(tmp_path / "image.zarr")
    image, region = open_image(tmp_path / "image.zarr"), Region((0, 0), (4, 4))
    before = image.read(region)
    stored = zarr.open_array(str(tmp_path / "image.zarr"), mode="r+")
    stored[:16, :16] = pixels()[:16, :16] + 1
    np.testing.assert_array_equal(image.read(region), before + 1)


def test_a_chunk_that_is_written_again_at_the_same_time_is_read_again(tmp_path, cache):
    cache(1 << 20)
    path = str(tmp_path / "image.zarr")
    zarr.create_array(path, data=pixels(), chunks=CHUNK, compressors=None)
    image, region = open_image(path), Region((0, 0), (4, 4))
    before = image.read(region)
    file = tmp_path / "image.zarr" / "c" / "0" / "0"
    status = file.stat()
    with file.open("r+b") as chunk:  # the same file, of the same size
        chunk.write((pixels()[:16, :16] + 1).tobytes())
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    np.testing.assert_array_equal(image.read(region), before + 1)


def test_an_array_that_its_owner_writes_to_is_read_again(cache):
    cache(1 << 20)
    stored = zarr.create_array(MemoryStore(), data=pixels(), chunks=CHUNK)
    reader = zarr.open_array(stored.store.with_read_only(), mode="r")
    images, region = [open_image(stored), open_image(reader)], Region((0, 0), (4, 4))
    before = [image.read(region) for image in images]
    stored[:16, :16] = pixels()[:16, :16] + 1
    for image, earlier in zip(images, before, strict=True):
        np.testing.assert_array_equal(image.read(region), earlier + 1)


def test_a_worker_that_is_not_told_of_the_content_keeps_no_chunk_of_an_earlier_task(cache):
    kept = cache(1 << 20)
    url, region = "memory://replaced.zarr", Region((0, 0), (4, 4))
    zarr.create_array(url, data=pixels(), chunks=CHUNK)
    task = pickle.dumps(open_image(url))
    image = pickle.loads(task)
    before = image.read(region)
    assert kept.n_bytes == 16 * 16 * 2
    zarr.open_array(url, mode="r+")[:16, :16] = pixels()[:16, :16] + 1
    np.testing.assert_array_equal(pickle.loads(task).read(region), before + 1)


def test_chunks_that_no_tile_cuts_are_not_kept(tmp_path, cache):
    kept = cache(1 << 20)
    write_v3(tmp_path / "image.zarr")
    image = open_image(tmp_path / "image.zarr")
    for region in tiles_with_halo(0):
        image.read(region)
    assert kept.n_bytes == 0


def test_a_chunk_larger_than_all_that_may_be_kept_is_not(tmp_path, cache):
    kept = cache(16 * 16 * 2 - 1)
    write_v3(tmp_path / "image.zarr")
    open_image(tmp_path / "image.zarr").read(Region((0, 0), (4, 4)))
    assert kept.n_bytes == 0


def test_chunks_go_with_their_image(tmp_path):
    write_v3(tmp_path / "image.zarr")
    before = CHUNKS.n_bytes
    image = open_image(tmp_path / "image.zarr")
    image.read(Region((0, 0), (4, 4)))
    assert CHUNKS.n_bytes == before + 16 * 16 * 2
    del image
    gc.collect()
    assert CHUNKS.n_bytes == before


def test_what_may_be_kept_is_a_share_of_the_granted_memory_for_each_core(monkeypatch):
    monkeypatch.setattr(chunk_cache, "granted_memory_bytes", lambda: Limit(8000, "test"))
    monkeypatch.setattr(chunk_cache, "granted_cores", lambda: Limit(4, "test"))
    assert ChunkCache().most_bytes == 200


def test_a_damaged_chunk_is_an_error_each_time_it_is_read(tmp_path, cache):
    cache(1 << 20)
    write_v3(tmp_path / "image.zarr")
    (tmp_path / "image.zarr" / "c" / "0" / "0").write_bytes(b"no zstd")
    image = open_image(tmp_path / "image.zarr")
    for _ in range(2):
        with pytest.raises(ImageError):
            image.read(Region((0, 0), (4, 4)))
    image.read(Region((20, 0), (24, 4)))


def test_what_is_kept_cannot_be_written_by_a_function(tmp_path, cache):
    cache(1 << 20)
    write_v3(tmp_path / "image.zarr")
    image = open_image(tmp_path / "image.zarr")
    region = Region((0, 0), (4, 4))
    image.read(region)[...] = 0
    np.testing.assert_array_equal(image.read(region), pixels()[region.slices])

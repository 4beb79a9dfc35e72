"""Regions of arrays are written as Zarr itself would write them."""

from __future__ import annotations

import pickle
import uuid

import numpy as np
import pytest
import zarr
from zarr.codecs import GzipCodec, ZstdCodec

from patchworks_core.files.array_writer import ArrayWriter
from patchworks_core.files.storage import as_path, create_array, open_array
from patchworks_core.tiles.regions import Region

SHAPE, CHUNKS = (11, 10), (4, 4)

PIXELS = np.random.default_rng(0).integers(0, 9, SHAPE)

REGIONS = [
    Region((0, 0), (8, 8)),
    Region((8, 8), (11, 10)),  # at the border
    Region((0, 8), (4, 10)),
    Region((0, 0), (11, 10)),
    Region((1, 2), (6, 9)),  # parts of chunks
]


def files(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make(path, *, dtype=np.int32, checksum=False, fill_value=0, **options) -> None:
    place = {"shape": SHAPE, "chunks": CHUNKS, "dtype": dtype}
    if checksum or fill_value:  # which only others make
        compressor = ZstdCodec(level=1, checksum=checksum)
        zarr.create_array(str(path), compressors=compressor, fill_value=fill_value, **place)
    else:
        create_array(as_path(path), **place, **options)


@pytest.mark.parametrize("dtype", ["u1", "<i4", "i8", "f4"])
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize(
    "options", [{"zarr_format": 2}, {"zarr_format": 3}, {"checksum": True}, {"shards": (8, 8)}]
)
def test_the_files_are_those_that_zarr_writes(options, region, dtype, tmp_path):
    for name in ("ours", "zarr"):
        make(tmp_path / name, dtype=dtype, **options)
    writer = pickle.loads(pickle.dumps(ArrayWriter.of(as_path(tmp_path / "ours"))))
    for pixels in (PIXELS, PIXELS * (PIXELS > 8), PIXELS * 0):
        writer.write(region, pixels[region.slices])
        array = zarr.open_array(str(tmp_path / "zarr"), mode="r+")
        array[region.slices] = pixels[region.slices].astype(dtype)
        assert files(tmp_path / "ours") == files(tmp_path / "zarr")
    writer.write(region, PIXELS[region.slices])
    writer.erase(region)
    assert files(tmp_path / "ours") == files(tmp_path / "zarr")  # of background, as it was


def test_only_plain_arrays_are_written_without_zarr(tmp_path):
    make(tmp_path / "plain")
    assert ArrayWriter.of(as_path(tmp_path / "plain")).level == 1
    make(tmp_path / "sharded", shards=(8, 8))
    make(tmp_path / "checked", checksum=True)
    make(tmp_path / "filled", fill_value=7)
    url = f"memory://{uuid.uuid4().hex}/plain"
    make(url)
    for place in (tmp_path / "sharded", tmp_path / "checked", tmp_path / "filled", url):
        assert ArrayWriter.of(as_path(place)).level is None


@pytest.mark.parametrize("codecs", [{"compressors": None}, {"compressors": "gzip"}])
def test_other_codecs_are_left_to_zarr(codecs, tmp_path):
    compressors = GzipCodec() if codecs["compressors"] else None
    zarr.create_array(
        str(tmp_path / "a"), shape=SHAPE, chunks=CHUNKS, dtype="i4", compressors=compressors
    )
    writer = ArrayWriter.of(as_path(tmp_path / "a"))
    assert writer.level is None
    writer.write(Region((0, 0), SHAPE), PIXELS)
    np.testing.assert_array_equal(open_array(as_path(tmp_path / "a"))[...], PIXELS)


def test_there_must_be_an_array(tmp_path):
    with pytest.raises(FileNotFoundError):
        ArrayWriter.of(as_path(tmp_path / "nothing"))

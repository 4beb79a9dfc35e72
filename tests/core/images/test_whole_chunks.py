"""Whole chunks of a Zarr array on this disk are read past Zarr, as Zarr reads them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore

from patchworks_core.errors import ImageError
from patchworks_core.images.image import Image, open_image
from patchworks_core.images.readers import zarr_decoding
from patchworks_core.images.readers.zarr_decoding import read_chunks
from patchworks_core.tiles.regions import Region

SHAPE, CHUNK = (70, 100), (16, 20)

BY_ITSELF: dict[str, dict] = {
    "zstd": {"compressors": ZstdCodec(level=3)},
    "zstd_checksum": {"compressors": ZstdCodec(level=3, checksum=True)},
    "blosc": {"compressors": BloscCodec(cname="lz4", shuffle="bitshuffle")},
    "plain": {"compressors": None},
    "big": {"compressors": None, "serializer": BytesCodec(endian="big")},
    "v2_zstd": {"zarr_format": 2, "compressors": numcodecs.Zstd(1)},
    "v2_blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc("zstd", shuffle=1)},
    "v2_plain": {"zarr_format": 2, "compressors": None},
    "v2_big": {"zarr_format": 2, "compressors": None, "dtype": ">u2"},
}

BY_ZARR: dict[str, dict] = {
    "gzip": {"compressors": GzipCodec()},
    "two": {"compressors": (ZstdCodec(), Crc32cCodec())},
    "transposed": {"filters": TransposeCodec(order=(1, 0)), "compressors": ZstdCodec()},
    "shards": {"shards": (32, 40)},
    "v2_filters": {
        "zarr_format": 2,
        "filters": [numcodecs.Delta(dtype="u2")],
        "compressors": None,
    },
    "v2_columns": {"zarr_format": 2, "order": "F", "compressors": numcodecs.Zstd(1)},
}


def inverted(content):
    """Return bytes of which every bit is the other."""
    inverse = bytes(byte ^ 255 for byte in content.to_bytes())
    return default_buffer_prototype().buffer.from_bytes(inverse)


class InvertedStore(LocalStore):
    """Keeps chunks otherwise than it gives them, as one that encrypts files."""

    async def get(self, key, prototype=None, byte_range=None):
        content = await super().get(key, prototype, byte_range)
        return content if content is None or key.endswith(".json") else inverted(content)

    async def set(self, key, value):
        await super().set(key, value if key.endswith(".json") else inverted(value))


class NewArrayCodec(numcodecs.Zstd):
    """Decodes into no array but its own."""

    def decode(self, buf, out=None):
        return super().decode(buf)


class InvertedCodec(BytesCodec):
    """Decodes numbers otherwise than they are stored."""

    async def _decode_single(self, chunk_bytes, chunk_spec):
        return await super()._decode_single(inverted(chunk_bytes), chunk_spec)

    async def _encode_single(self, chunk_array, chunk_spec):
        return inverted(await super()._encode_single(chunk_array, chunk_spec))


def pixels() -> np.ndarray:
    image = np.random.default_rng(4).integers(1, 60_000, SHAPE, dtype=np.uint16)
    image[16:32, 40:60] = 0  # a chunk of background, which is not stored
    return image


def written(path: Path, options: dict) -> Image:
    """Write an image; chunks of background are not stored."""
    options = {"dtype": "u2", "config": {"write_empty_chunks": False}} | options
    zarr.create_array(str(path), shape=SHAPE, chunks=CHUNK, **options)[...] = pixels()
    return open_image(str(path))


def chunks() -> list[Region]:
    """Return all chunks, those at the border too."""
    corners = product(*(range(0, n, size) for n, size in zip(SHAPE, CHUNK, strict=True)))
    return [
        Region(corner, tuple(min(a + c, n) for a, c, n in zip(corner, CHUNK, SHAPE, strict=True)))
        for corner in corners
    ]


@pytest.mark.parametrize("name", BY_ITSELF)
def test_a_whole_chunk_is_read_without_zarr(name, tmp_path):
    image = written(tmp_path / "image.zarr", BY_ITSELF[name])
    for region in chunks():
        assert read_chunks(image.pixels, region.slices) is not None
        found = image.read(region)
        np.testing.assert_array_equal(found, pixels()[region.slices])
        assert found.dtype == "u2"
        assert found.flags.c_contiguous
        assert found.flags.writeable
        found[...] = 7  # the caller's own: nobody else sees it
        np.testing.assert_array_equal(image.read(region), pixels()[region.slices])


@pytest.mark.parametrize("name", BY_ZARR)
def test_others_are_left_to_zarr(name, tmp_path):
    image = written(tmp_path / "image.zarr", BY_ZARR[name])
    for region in chunks():
        assert read_chunks(image.pixels, region.slices) is None
        np.testing.assert_array_equal(image.read(region), pixels()[region.slices])


@pytest.mark.parametrize("name", BY_ITSELF)
@pytest.mark.parametrize(
    "region", [Region((0, 0), SHAPE), Region((16, 20), (48, 80)), Region((48, 60), SHAPE)]
)
def test_whole_chunks_are_read_without_zarr(name, region, tmp_path):
    image = written(tmp_path / "image.zarr", BY_ITSELF[name])
    assert read_chunks(image.pixels, region.slices) is not None
    np.testing.assert_array_equal(image.read(region), pixels()[region.slices])


@pytest.mark.parametrize(
    ("store", "options"),
    [
        (InvertedStore, {"compressors": None}),
        (LocalStore, {"compressors": None, "serializer": InvertedCodec()}),
        (LocalStore, {"compressors": NewArrayCodec(1), "zarr_format": 2}),
    ],
)
def test_what_is_made_of_stores_and_codecs_is_left_to_zarr(store, options, tmp_path):
    array = zarr.create_array(
        store(tmp_path / "image.zarr"), shape=SHAPE, chunks=CHUNK, dtype="u2", **options
    )
    array[...] = pixels()
    image = open_image(array, axes="yx")
    for region in (Region((0, 0), CHUNK), Region((0, 0), SHAPE)):
        assert read_chunks(image.pixels, region.slices) is None
        np.testing.assert_array_equal(image.read(region), pixels()[region.slices])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("fill_value", [0, 300, None])
def test_a_chunk_that_nobody_wrote_is_the_fill_value(zarr_format, fill_value, tmp_path):
    array = zarr.create_array(
        str(tmp_path / "image.zarr"),
        shape=SHAPE,
        chunks=CHUNK,
        dtype="u2",
        zarr_format=zarr_format,
        fill_value=fill_value,
    )
    array[:16] = pixels()[:16]
    image = open_image(str(tmp_path / "image.zarr"))
    region = Region((0, 0), (32, 40))
    assert read_chunks(image.pixels, region.slices) is not None
    np.testing.assert_array_equal(image.read(region), array[region.slices])
    assert (image.read(region)[16:] == (fill_value or 0)).all()


@pytest.mark.skipif(
    "read_missing_chunks" not in zarr.config.get("array"), reason="no option of Zarr 3.1"
)
@pytest.mark.parametrize("region", [Region((16, 40), (32, 60)), Region((10, 30), (20, 50))])
def test_a_chunk_that_is_not_there_is_an_error_where_zarr_is_told_so(region, tmp_path):
    image = written(tmp_path / "image.zarr", BY_ITSELF["zstd"])
    assert not image.read(Region((16, 40), (32, 60))).any()
    told = zarr.open_array(tmp_path / "image.zarr", config={"read_missing_chunks": False})
    image = open_image(told, axes="yx")
    np.testing.assert_array_equal(image.read(Region((0, 0), (9, 9))), pixels()[:9, :9])
    with pytest.raises(ImageError, match="chunk.s. not found"):
        image.read(region)


@pytest.mark.parametrize("endian", ["big", "little"])
def test_the_byte_order_may_be_a_word_as_in_later_zarr(endian, tmp_path):
    codec = BytesCodec(endian=endian)
    image = written(tmp_path / "image.zarr", {"compressors": None, "serializer": codec})
    object.__setattr__(image.pixels._async_array.codec_pipeline.array_bytes_codec, "endian", endian)
    np.testing.assert_array_equal(
        read_chunks(image.pixels, (slice(0, 70), slice(0, 100))), pixels()
    )


@pytest.mark.parametrize(
    "region",
    [Region((0, 0), (16, 19)), Region((0, 1), (16, 20)), Region((8, 0), (24, 20))],
)
def test_what_is_no_whole_chunk_is_left_to_zarr(region, tmp_path):
    image = written(tmp_path / "image.zarr", BY_ITSELF["zstd"])
    assert read_chunks(image.pixels, region.slices) is None
    np.testing.assert_array_equal(image.read(region), pixels()[region.slices])


def test_large_chunks_are_left_to_zarr_which_decodes_them_side_by_side(tmp_path, monkeypatch):
    image = written(tmp_path / "image.zarr", BY_ITSELF["zstd"])
    monkeypatch.setattr(zarr_decoding, "_SMALL_CHUNK", 100)
    one, two = Region((0, 0), CHUNK), Region((0, 0), (32, 20))
    assert read_chunks(image.pixels, one.slices) is not None
    assert read_chunks(image.pixels, two.slices) is None
    np.testing.assert_array_equal(image.read(two), pixels()[two.slices])


def test_a_chunk_that_is_written_again_is_read_again(tmp_path):
    image = written(tmp_path / "image.zarr", BY_ITSELF["zstd"])
    region = Region((0, 0), CHUNK)
    image.read(region)
    zarr.open_array(str(tmp_path / "image.zarr"))[region.slices] = 9
    assert (image.read(region) == 9).all()


@pytest.mark.parametrize("name", BY_ITSELF)
@pytest.mark.parametrize("damage", ["cut", "empty", "of another shape"])
def test_a_chunk_that_is_not_as_it_should_be_is_an_error(name, damage, tmp_path):
    image = written(tmp_path / "image.zarr", BY_ITSELF[name])
    path = tmp_path / "image.zarr" / image.pixels.metadata.encode_chunk_key((0, 0))
    stored = path.read_bytes()
    if damage == "of another shape":
        options = {"dtype": "u2"} | BY_ITSELF[name]
        other = zarr.create_array(str(tmp_path / "o.zarr"), shape=(8, 8), chunks=(8, 8), **options)
        other[...] = 5
        other_path = tmp_path / "o.zarr" / other.metadata.encode_chunk_key((0, 0))
        path.write_bytes(other_path.read_bytes())
    else:
        path.write_bytes(stored[:-3] if damage == "cut" else b"")
    for region in (Region((0, 0), CHUNK), Region((0, 0), SHAPE), Region((0, 0), (16, 19))):
        with pytest.raises(ImageError, match=r"image\.zarr"):
            image.read(region)


def test_a_chunk_of_very_many_pixels_is_refused(tmp_path):
    image = written(tmp_path / "image.zarr", BY_ITSELF["zstd"])
    bomb = numcodecs.Zstd(1).encode(np.zeros(50_000_000, np.uint8))
    (tmp_path / "image.zarr/c/0/0").write_bytes(bomb)
    with pytest.raises(ImageError, match="may be decoded to"):
        image.read(Region((0, 0), CHUNK))

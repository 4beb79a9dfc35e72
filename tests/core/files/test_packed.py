"""Arrays packed into one file: what comes out is what went in, or an error."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from patchworks_core.files.packed import PackedFile, open_packed, pack
from patchworks_core.files.storage import as_path
from patchworks_core.files.tables import DamagedError
from tests.core.oracles import examples

ARRAYS = {
    "labels": np.arange(60, dtype=np.uint16).reshape(3, 4, 5) % 7,
    "nothing": np.zeros((2, 3), np.int32),
    "empty": np.zeros((0, 3), np.float64),
    "real": np.array([1.5, np.nan, -np.inf]),
}

CONTENT = pack({"tile": [1, 2]}, ARRAYS)


def unpacked(content: bytes):
    packed = PackedFile.of(lambda start, stop: content[start:stop])
    return packed.header, packed.load(packed.arrays)


def assert_same(arrays) -> None:
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_what_comes_out_is_what_went_in(kind, tmp_path):
    place = tmp_path / "a.tiles" if kind == "local" else f"memory://{uuid.uuid4().hex}/a.tiles"
    path = as_path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)
    with open_packed(path) as packed:
        assert packed.header == {"tile": [1, 2]}
        assert packed.n_bytes == len(CONTENT)
        assert_same(packed.load(packed.arrays))
        for name in ARRAYS:  # one without the others
            np.testing.assert_array_equal(packed.load([name])[name], ARRAYS[name])


def test_a_file_that_is_not_there_is_said_to_be_so(tmp_path):
    for place in (tmp_path / "a.tiles", f"memory://{uuid.uuid4().hex}/a.tiles"):
        with pytest.raises(FileNotFoundError), open_packed(as_path(place)):
            pass


def test_every_bit_is_vouched_for():
    for place in range(len(CONTENT)):
        for bit in range(8):
            damaged = bytearray(CONTENT)
            damaged[place] ^= 1 << bit
            with pytest.raises(DamagedError):
                unpacked(bytes(damaged))


def test_what_was_cut_short_is_damaged():
    for n in range(len(CONTENT)):
        with pytest.raises(DamagedError):
            unpacked(CONTENT[:n])


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"0"])
def test_a_file_of_another_length_is_not_read(content, tmp_path):
    path = as_path(tmp_path / "a.tiles")
    path.write_bytes(content)
    with (
        pytest.raises(DamagedError, match=f"{len(content)} of {len(CONTENT)} bytes are there"),
        open_packed(path) as packed,
    ):
        packed.load([])


def test_nothing_is_stored_of_what_is_all_0():
    header_only = pack({}, {"labels": np.zeros((1000, 1000), np.uint16)})
    assert len(header_only) < 300


@pytest.mark.parametrize("value", [0, 3])
def test_one_number_for_all_pixels_is_an_array_of_them(value):
    broadcast = np.broadcast_to(np.uint16(value), (4, 5))
    content = pack({}, {"labels": broadcast})
    packed = PackedFile.of(lambda start, stop: content[start:stop])
    np.testing.assert_array_equal(packed.load(["labels"])["labels"], broadcast)


def test_a_header_longer_than_what_is_read_at_once():
    header = {"counts": list(range(5000))}
    assert unpacked(pack(header, ARRAYS))[0] == header
    content = bytearray(pack(header, ARRAYS))
    content[9000] ^= 1
    with pytest.raises(DamagedError, match="its header is not what was written"):
        unpacked(bytes(content))


@given(
    arrays_of.arrays(
        st.sampled_from([np.uint16, np.int32, np.int64, np.float64]),
        arrays_of.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6),
    )
)
@settings(max_examples=examples(50))
def test_any_array_comes_out_as_it_went_in(array):
    for layout in (array, array[::-1], np.asfortranarray(array)):
        (result,) = unpacked(pack({}, {"a": layout}))[1].values()
        np.testing.assert_array_equal(result, layout)
        assert result.dtype == layout.dtype

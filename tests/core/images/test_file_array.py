"""Pixels that are read from a file as they are asked for, against NumPy's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks_core import ImageError
from patchworks_core.images.image import open_image
from patchworks_core.images.readers import file_array
from patchworks_core.images.readers.file_array import FileArray
from patchworks_core.tiles.regions import Region


def slices(n: int):
    starts = st.integers(0, n - 1)
    return st.one_of(
        starts,
        st.just(slice(None)),
        st.tuples(starts, st.integers(0, n), st.integers(1, 3)).map(lambda t: slice(*t)),
    )


@given(
    data=st.data(), shape=st.lists(st.integers(1, 7), min_size=1, max_size=4), order=st.booleans()
)
@settings(max_examples=80)
@pytest.mark.parametrize("small", [0, 1 << 16])
def test_every_part_is_numpys(data, shape, order, small, tmp_path_factory):
    pixels = np.arange(np.prod(shape), dtype=">c8").reshape(shape, order="F" if order else "C")
    path = tmp_path_factory.getbasetemp() / "a.npy"
    np.save(path, pixels)
    key = tuple(data.draw(slices(n)) for n in shape[: data.draw(st.integers(0, len(shape)))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_array, "SMALL_SPAN", small)
        found = FileArray.of(np.load(path, mmap_mode="r"))[key]
    np.testing.assert_array_equal(found, pixels[key])
    assert found.dtype == pixels.dtype
    assert found.shape == pixels[key].shape


def test_keys_are_as_for_an_array(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(12).reshape(3, 4))
    array = FileArray.of(np.load(tmp_path / "a.npy", mmap_mode="r"))
    assert array[..., 1].tolist() == [1, 5, 9]
    assert array[-1].tolist() == [8, 9, 10, 11]
    assert np.asarray(array).shape == (3, 4)
    for key in (3, -4, (0, 0, 0), slice(None, None, -1)):
        with pytest.raises(IndexError):
            array[key]


def test_a_file_that_is_cut_short_while_it_is_open_is_an_error_and_ends_nothing(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((64, 64)))
    image = open_image(path)
    path.write_bytes(path.read_bytes()[:4000])
    assert image.read(Region((0, 0), (4, 64))).shape == (4, 64)
    with pytest.raises(ImageError, match=r"a.npy' ends \d+ bytes before the pixels"):
        image.read(Region((32, 0), (64, 64)))

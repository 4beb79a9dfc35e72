"""A checksum tells whether pixels are the same, whichever kind it is of."""

import zlib

import google_crc32c
import numpy as np
import pytest

from patchworks_core.stage.pixel_checksums import checksum_of_pixels, is_of_pixels

PIXELS = np.arange(600, dtype=np.uint16).reshape(20, 30)


def _by_zlib() -> int:
    """Return the checksum as it was taken until version 0.2."""
    return zlib.crc32(PIXELS.tobytes()) | 1 << 32


@pytest.mark.parametrize("checksum", [checksum_of_pixels([PIXELS]), _by_zlib()])
def test_one_other_pixel_is_noticed(checksum: int) -> None:
    assert is_of_pixels(checksum, [PIXELS])
    assert is_of_pixels(checksum, [PIXELS[:7], PIXELS[7:]])
    other = PIXELS.copy()
    other[3, 4] += 1
    assert not is_of_pixels(checksum, [other])


def test_without_the_compiled_package_it_is_that_of_zlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(google_crc32c, "implementation", "python")
    assert checksum_of_pixels([PIXELS]) == _by_zlib()


def test_what_nobody_took_is_of_any_pixels() -> None:
    assert is_of_pixels(0, [PIXELS])

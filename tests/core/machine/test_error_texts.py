"""The text of a failed tile is short, and begins with the line of the user's that failed."""

from __future__ import annotations

import numpy as np
import pytest

from patchworks_core import TilesFailedError, tile_process
from patchworks_core.machine.engine import map_tiles
from patchworks_core.machine.error_texts import MESSAGE_LENGTH, TRACEBACK_LENGTH, own_line
from patchworks_core.machine.workers import Workers


def loud(tile):
    raise ValueError("x" * 5_000_000)


def through_a_library(tile):
    return np.reshape(tile, (7, 7, 7))


def test_an_error_of_megabytes_makes_a_record_of_kilobytes():
    with Workers().open() as executor:
        (outcome,) = map_tiles(loud, [np.ones(3)], executor=executor, window=1)
    failure = outcome.failure
    assert len(failure.message) < MESSAGE_LENGTH + 100
    assert len(failure.traceback) < TRACEBACK_LENGTH + 100
    assert "characters left out" in failure.message
    assert failure.traceback.startswith("Traceback")


def test_the_users_own_line_comes_first():
    with pytest.raises(TilesFailedError) as failed:
        tile_process(np.ones((8, 8)), through_a_library, tile_shape=8)
    ((_, text),) = failed.value.failures.items()
    assert text.startswith("test_error_texts.py, line ")
    assert "through_a_library: return np.reshape(tile, (7, 7, 7)): ValueError: cannot resh" in text
    assert "test_error_texts.py, line " in str(failed.value).splitlines()[0]


def test_an_error_that_never_came_by_the_user_has_no_line():
    with pytest.raises(ValueError, match="reshape") as raised:
        np.reshape(np.ones(3), (2, 2))
    error = raised.value
    assert own_line(error).startswith("test_error_texts.py")
    assert own_line(error.with_traceback(error.__traceback__.tb_next)) == ""
    assert own_line(ValueError()) == ""

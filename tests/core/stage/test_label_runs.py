"""Counting and renumbering by run gives what NumPy gives by pixel."""

import numpy as np
import pytest

from patchworks_core.stage.label_runs import MIN_LENGTH, MIN_PIXELS, LabelRuns, count_ids, take_ids


def _labels(mean_run: float, dtype: type) -> np.ndarray:
    """Return 2-D labels whose runs are so long on average, with background and gaps in the ids."""
    rng = np.random.default_rng(5)
    n = 4 * MIN_PIXELS
    ids = rng.choice([0, 1, 5, 300, 65_535], size=n).astype(dtype)
    lengths = rng.geometric(1 / mean_run, size=n)
    return np.repeat(ids, lengths)[:n].reshape(256, -1)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("mean_run", [1, MIN_LENGTH, 100])
def test_labels_are_counted_and_renumbered_as_by_pixel(mean_run: float, dtype: type) -> None:
    labels = _labels(mean_run, dtype)
    values = np.arange(65_536, dtype=np.int32)[::-1].copy()
    whole = labels.astype(np.int64)
    np.testing.assert_array_equal(
        count_ids(labels, 70_000), np.bincount(whole.ravel(), minlength=70_000)
    )
    np.testing.assert_array_equal(take_ids(values, labels), values[whole])
    assert take_ids(values, labels).dtype == values.dtype
    runs = LabelRuns.of(labels)
    if runs is not None:
        np.testing.assert_array_equal(runs.counts(70_000), count_ids(labels, 70_000))
        np.testing.assert_array_equal(take_ids(values, runs), values[whole])


@pytest.mark.parametrize("box", [(256, 512), (100, 512), (256, 200), (60, 90), (1, 512), (256, 1)])
def test_runs_end_with_boxes(box: tuple[int, int]) -> None:
    labels = _labels(300, np.uint16)[:, :512]
    runs = LabelRuns.of(labels, box=box)
    if box == (256, 1):
        assert runs is None, "runs of one pixel gain nothing"
        return
    assert runs is not None
    np.testing.assert_array_equal(runs.labels, labels)
    rows, columns = np.indices(labels.shape)
    boxes = (rows // box[0]) * labels.shape[1] + columns // box[1]
    run_of_pixel = np.repeat(np.arange(len(runs.ids)), runs.lengths)
    for number in (runs.starts, runs.starts + runs.lengths - 1):
        np.testing.assert_array_equal(
            boxes.ravel()[number][run_of_pixel], boxes.ravel(), err_msg="a run lies in one box"
        )


def test_a_view_across_rows_is_read_in_its_own_order() -> None:
    labels = _labels(100, np.uint16).T[3:, 5:]
    values = np.arange(65_536)
    np.testing.assert_array_equal(take_ids(values, labels), labels)


def test_short_runs_and_few_pixels_have_none() -> None:
    assert LabelRuns.of(_labels(100, np.uint16)) is not None
    assert LabelRuns.of(_labels(1, np.uint16)) is None
    assert LabelRuns.of(np.zeros((4, 4), dtype=np.uint16)) is None
    assert LabelRuns.of(np.zeros((0, 4), dtype=np.uint16)) is None

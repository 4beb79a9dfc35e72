"""Label pyramids: ids that are there, objects that stay, the same bytes whoever wrote them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patchworks_core.errors import ImageError
from patchworks_core.files.storage import as_path, create_array, open_array
from patchworks_core.images.image import open_image
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.ome_zarr.convert import convert_image
from patchworks_core.ome_zarr.most_frequent import most_frequent
from patchworks_core.ome_zarr.pyramid import write_pyramid
from patchworks_core.tiles.regions import Region
from tests.core.oracles import examples


def boxes_of(labels, step):
    """Return the pixels of every box that are not background, by its place in the level."""
    shape = [-(-n // s) for n, s in zip(labels.shape, step, strict=True)]
    boxes = {}
    for index in np.ndindex(*shape):
        box = tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, step, strict=True))
        boxes[index] = labels[box][labels[box] != 0]
    return shape, boxes


def elected(labels, step):
    """Choose the most frequent id of each box, the slow way; nothing is kept from vanishing."""
    shape, boxes = boxes_of(labels, step)
    chosen = np.zeros(shape, labels.dtype)
    for index, box in boxes.items():
        if box.size:
            ids, counts = np.unique(box, return_counts=True)
            chosen[index] = ids[np.argmax(counts)]  # the first of the largest: the smaller id
    return chosen


def ids_in(labels):
    return set(np.unique(labels).tolist()) - {0}


@settings(max_examples=examples(80))
@given(
    labels=hnp.arrays(
        st.sampled_from(["u1", "i2", "i4", "u8"]),
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=6),
        elements=st.integers(0, 12),
    ),
    data=st.data(),
)
def test_a_box_gets_its_most_frequent_id_unless_that_would_lose_an_object(labels, data):
    step = data.draw(st.tuples(*[st.sampled_from([1, 2])] * labels.ndim))
    chosen, by_votes = most_frequent(labels, step), elected(labels, step)
    assert (chosen.dtype, chosen.shape) == (labels.dtype, by_votes.shape)
    assert ids_in(by_votes) <= ids_in(chosen) <= ids_in(labels)
    np.testing.assert_array_equal(chosen == 0, by_votes == 0)
    _, boxes = boxes_of(labels, step)
    for index, box in boxes.items():
        assert not box.size or chosen[index] in box
    saved = ids_in(chosen) - ids_in(by_votes)
    # One pixel each, and not one more is changed than objects are saved.
    assert sorted(chosen[chosen != by_votes].tolist()) == sorted(saved)
    ids, counts = np.unique(chosen, return_counts=True)
    n_pixels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    for lost in ids_in(labels) - ids_in(chosen):
        owners = {int(chosen[index]) for index, box in boxes.items() if lost in box}
        assert all(n_pixels[owner] == 1 for owner in owners)


def test_ids_beyond_what_a_float_holds_stay_apart():
    large = 2**64 - 1
    labels = np.array([[large - 1, large, large], [0, large, 5]], "u8")
    assert most_frequent(labels, (2, 2)).tolist() == [[large, 5]]
    assert most_frequent(np.array([[True, False], [False, False]]), (2, 2)).tolist() == [[True]]


@pytest.fixture
def small_levels(monkeypatch):
    monkeypatch.setattr("patchworks_core.ome_zarr.pyramid.SMALLEST_LEVEL", 4)


def three_objects():
    labels = np.zeros((32, 32), "u2")
    labels[:15], labels[15:31, :15], labels[15:, 15:] = 10, 20, 1000
    labels[0, 1] = 7  # one pixel, not where every second one is taken
    return labels


def levels_of(path):
    n_levels = open_image(path).n_levels
    return [
        np.asarray(open_image(path, channel=None, level=i).pixels[...]) for i in range(n_levels)
    ]


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_converted_labels_hold_their_ids_at_every_level_and_say_what_they_are(
    version, tmp_path, small_levels
):
    written = convert_image(three_objects(), tmp_path / "a.zarr", labels=True, version=version)
    assert len(written.shapes) == 4
    for pixels in levels_of(written.path):
        assert ids_in(pixels) == {7, 10, 20, 1000}
    attributes = zarr.open_group(written.path, mode="r").attrs.asdict()
    ome = attributes.get("ome", attributes)
    assert "image-label" in ome
    assert ome["multiscales"][0]["type"] == "most frequent id"
    assert open_image(written.path).is_label_image


def test_a_label_image_is_known_by_its_metadata(tmp_path, small_levels):
    convert_image(three_objects(), tmp_path / "a.zarr", labels=True, version="0.4")
    for version in ("0.4", "0.5"):
        again = convert_image(tmp_path / "a.zarr", tmp_path / f"{version}.zarr", version=version)
        assert all(ids_in(pixels) == {7, 10, 20, 1000} for pixels in levels_of(again.path))
    averaged = convert_image(tmp_path / "a.zarr", tmp_path / "c.zarr", labels=False)
    assert ids_in(levels_of(averaged.path)[1]) - {7, 10, 20, 1000}
    assert not open_image(averaged.path).is_label_image


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4), "f4"), "labels must be whole numbers, got float32 in .*labels=False"),
        (np.full((4, 4), -3, "i4"), "labels must be 0 or more, got -3 in .*labels=False"),
    ],
)
def test_what_are_no_labels_is_said(pixels, message, tmp_path):
    with pytest.raises(ImageError, match=message):
        convert_image(pixels, tmp_path / "a.zarr", labels=True)
    assert not list(tmp_path.iterdir())


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_converted_labels_are_the_same_bytes_for_any_number_of_workers(tmp_path, small_levels):
    labels = np.random.default_rng(3).integers(0, 2**40, (90, 70)) // 2**20
    folders = [tmp_path / name / "a.zarr" for name in ("one", "three")]
    for folder, n in zip(folders, (1, 3), strict=True):
        convert_image(labels, folder, labels=True, chunks=(8, 8), shards=None, workers=Workers(n))
    first, second = map(contents, folders)
    assert first == second


def pyramid(group, labels, *, changed=None, chunks=(4, 4)):
    """Write level 0 and the pyramid of it, or the parts that changed."""
    group = as_path(group)
    options = {"axes": "yx", "zarr_format": 3}
    if changed is None:
        create_array(group / "0", shape=labels.shape, chunks=chunks, dtype=labels.dtype, **options)
    open_array(group / "0", mode="r+")[...] = labels
    with Pool.open(Workers()) as pool:
        write_pyramid(group, [(2, 2), (2, 1), (2, 2)], changed=changed, pool=pool, **options)
    return [open_array(group / str(level))[...] for level in range(4)]


@pytest.mark.slow
@settings(max_examples=examples(8), deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_what_changed_rewritten_gives_what_all_rewritten_gives(seed, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pyramid")
    rng = np.random.default_rng(seed)
    shape = (30, 23)
    before = rng.integers(0, 40, shape).astype("i4")
    after = before.copy()
    changed = []
    for _ in range(data.draw(st.integers(0, 3))):
        start = tuple(int(rng.integers(0, n)) for n in shape)
        stop = tuple(min(n, a + int(rng.integers(1, 5))) for a, n in zip(start, shape, strict=True))
        changed.append(Region(start, stop))
        after[changed[-1].slices] = rng.integers(0, 60, changed[-1].shape)
    pyramid(folder / "a", before)
    parts = pyramid(folder / "a", after, changed=changed)
    whole = pyramid(folder / "b", after)
    for level, (part, all_of_it) in enumerate(zip(parts, whole, strict=True)):
        np.testing.assert_array_equal(part, all_of_it, err_msg=f"level {level}")
        assert ids_in(part) <= ids_in(after)

"""The published label image: valid, in place, and never finished by half."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import ome_zarr_models
import pytest
import zarr

from patchworks_core.errors import PlanError
from patchworks_core.files.array_writer import ArrayWriter
from patchworks_core.files.label_arrays import output_chunks
from patchworks_core.files.storage import as_path, claimed, open_array
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.merge import apply
from patchworks_core.ome_zarr.label_image import LabelImage, write_merged
from patchworks_core.ome_zarr.most_frequent import most_frequent
from patchworks_core.ome_zarr.pyramid import level_steps
from patchworks_core.seams.lookup import LookupTable
from patchworks_core.tiles.grid import TileGrid
from patchworks_core.tiles.regions import Region
from tests.core.staging import TOUCHING, blobs, lut_of, merged_of, stage_into

PIXEL_SIZE = {"z": 2.0, "y": 0.5, "x": 0.25}
TRANSLATION = {"z": 10.0, "y": -3.0, "x": 0.5}
UNIT = dict.fromkeys("zyx", "micrometer")


def calibrated(stage):
    """Give the plan of a stage a calibration, as an image with metadata would have."""
    axes = stage.grid.axes
    values = {
        "pixel_size": {a: PIXEL_SIZE[a] for a in axes if a in PIXEL_SIZE},
        "unit": {a: UNIT[a] for a in axes if a in UNIT},
        "translation": {a: TRANSLATION[a] for a in axes if a in TRANSLATION},
    }
    stage.plan = replace(stage.plan, image=replace(stage.plan.image, **values))
    return stage


def write(stage, container, *, name="labels", version="0.5", lut=None, on_block=None, **options):
    """Merge a stage into an OME-Zarr; return the label image and what was written."""
    target = LabelImage(as_path(container), name, stage.plan, version)
    with target.writing(**options) as working, Pool.open(Workers()) as pool:
        written = write_merged(
            stage,
            lut if lut is not None else lut_of(stage),
            target,
            working,
            provenance={"made": "here"},
            pool=pool,
            on_block=on_block or (lambda key: None),
        )
    return target, written


def pixel_files(path) -> dict[str, bytes]:
    """Return every file of a label image that holds pixels or records, by its place in it."""
    root = Path(str(path))
    files = (f for f in root.rglob("*") if f.is_file() and f.name != "provenance.json")
    return {str(f.relative_to(root)): f.read_bytes() for f in files}


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def by_chunks(above, step, chunks):
    """Make a level from the one above, chunk by chunk of the level."""
    shape = tuple(-(-n // s) for n, s in zip(above.shape, step, strict=True))
    level = np.empty(shape, above.dtype)
    for chunk in Region((0,) * len(shape), shape).pieces(chunks):
        bounds = zip(chunk.start, chunk.stop, step, strict=True)
        box = tuple(slice(a * s, b * s) for a, b, s in bounds)
        level[chunk.slices] = most_frequent(above[box], step)
    return level


def listed(container, version="0.5") -> list[str]:
    attributes = zarr.open_group(str(container), mode="r")["labels"].attrs.asdict()
    return (attributes["ome"] if version == "0.5" else attributes)["labels"]


@pytest.fixture
def small_levels(monkeypatch):
    """Let images of a few pixels have a pyramid."""
    monkeypatch.setattr("patchworks_core.ome_zarr.pyramid.SMALLEST_LEVEL", 4)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize(
    ("axes", "shape", "tile"),
    [("yx", (21, 18), 6), ("zyx", (5, 21, 18), (2, 6, 6)), ("tyx", (2, 13, 18), 6)],
)
def test_labels_are_a_valid_label_image_with_the_calibration_of_the_image(
    axes, shape, tile, version, tmp_path, small_levels
):
    pixels = blobs(shape)
    stage = calibrated(stage_into(tmp_path / "stage", pixels, tile_shape=tile, axes=axes))
    target, _ = write(stage, tmp_path / "a.ome.zarr", version=version)

    opened = ome_zarr_models.open_ome_zarr(zarr.open_group(str(target.path), mode="r"))
    attributes = opened.attributes.ome if version == "0.5" else opened.attributes
    assert "ImageLabel" in type(opened).__name__
    (multiscale,) = attributes.multiscales
    assert "".join(axis.name for axis in multiscale.axes) == axes
    steps = level_steps(axes, shape, {a: PIXEL_SIZE.get(a, 1.0) for a in axes})
    assert len(multiscale.datasets) == len(steps) + 1 >= 3
    level_0 = open_array(target.path / "0")[...]
    np.testing.assert_array_equal(level_0, merged_of(stage))
    total = np.ones(len(axes), dtype=int)
    for level, dataset in enumerate(multiscale.datasets):
        scale, translation = dataset.coordinateTransformations
        total = total * (steps[level - 1] if level else 1)
        wanted = [PIXEL_SIZE.get(a, 1.0) * n for a, n in zip(axes, total, strict=True)]
        assert list(scale.scale) == wanted
        first = [
            TRANSLATION.get(a, 0.0) + (n - 1) / 2 * PIXEL_SIZE.get(a, 1.0)
            for a, n in zip(axes, total, strict=True)
        ]
        assert list(translation.translation) == first
        pixels_of_level = open_array(target.path / dataset.path)
        if level == 0:
            expected = level_0
        else:
            expected = by_chunks(expected, steps[level - 1], pixels_of_level.chunks)
        np.testing.assert_array_equal(pixels_of_level[...], expected)
        assert set(np.unique(expected)) <= set(np.unique(level_0))
        assert pixels_of_level.metadata.zarr_format == {"0.4": 2, "0.5": 3}[version]


def test_labels_of_an_image_without_calibration_have_none(tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)))
    target, _ = write(stage, tmp_path / "a.ome.zarr")
    ome = zarr.open_group(str(target.path), mode="r").attrs["ome"]
    (dataset,) = ome["multiscales"][0]["datasets"]
    assert dataset["coordinateTransformations"] == [{"type": "scale", "scale": [1.0, 1.0]}]
    assert all("unit" not in axis for axis in ome["multiscales"][0]["axes"])


@pytest.mark.parametrize(
    ("pixel_size", "steps"),
    [
        ({"z": 2.0, "y": 0.5, "x": 0.5}, [(1, 2, 2), (1, 2, 2), (2, 2, 2)]),
        ({"z": 0.5, "y": 0.5, "x": 0.5}, [(2, 2, 2)] * 3),
        ({"y": 0.5, "x": 0.5}, [(1, 2, 2)] * 3),
        ({"z": 0.5}, [(1, 2, 2)] * 3),
    ],
)
def test_z_is_halved_once_it_is_known_to_be_no_coarser_than_y_and_x(pixel_size, steps):
    assert level_steps("zyx", (100, 2048, 2048), pixel_size) == steps


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_two_label_images_in_one_container_are_both_listed(version, tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)))
    container = tmp_path / "a.ome.zarr"
    write(stage, container, name="nuclei", version=version)
    write(stage, container, name="cells", version=version)
    write(stage, container, name="nuclei", version=version)
    assert listed(container, version) == ["cells", "nuclei"]


def test_while_labels_are_written_the_old_ones_stay_and_first_ones_are_not_called_finished(
    tmp_path, small_levels
):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)))
    container = tmp_path / "a.ome.zarr"
    looks = []

    def look(key):
        looks.append(key)
        assert not (container / "labels" / "labels").exists()
        assert not (container / "labels" / "zarr.json").exists()

    target, _ = write(stage, container, on_block=look)
    old = pixel_files(target.path)

    def look_again(key):
        looks.append(key)
        assert pixel_files(target.path) == old
        assert listed(container) == ["labels"]

    write(stage_into(tmp_path / "other", ~blobs((8, 8))), container, on_block=look_again)
    assert len(looks) == 8
    assert pixel_files(target.path) != old
    assert listed(container) == ["labels"]
    assert names(container / "labels") == ["labels", "zarr.json"]


class Kill(Exception):
    """Stands for a run that is killed."""


def kill_after(n):
    written = []

    def on_block(key):
        written.append(key)
        if len(written) == n:
            raise Kill

    return on_block


def test_a_killed_apply_goes_on_and_writes_only_the_rest(tmp_path, small_levels):
    stage = stage_into(tmp_path / "stage", blobs((16, 16)))
    with pytest.raises(Kill):
        write(stage, tmp_path / "a.ome.zarr", on_block=kill_after(10))
    target, written = write(stage, tmp_path / "a.ome.zarr")
    assert written.n_blocks_written <= 6
    assert written.n_blocks_written + written.n_blocks_unchanged == 16
    fresh, _ = write(stage, tmp_path / "b.ome.zarr")
    assert pixel_files(target.path) == pixel_files(fresh.path)


def test_a_run_killed_in_the_pyramid_keeps_level_0(tmp_path, small_levels, monkeypatch):
    stage = stage_into(tmp_path / "stage", blobs((16, 16)))
    with monkeypatch.context() as disk:
        disk.setattr("patchworks_core.ome_zarr.label_image.write_pyramid", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(stage, tmp_path / "a.ome.zarr")
    assert not (tmp_path / "a.ome.zarr/labels/labels").exists()
    target, written = write(stage, tmp_path / "a.ome.zarr")
    assert written.n_blocks_written == 0
    fresh, _ = write(stage, tmp_path / "b.ome.zarr")
    assert pixel_files(target.path) == pixel_files(fresh.path)


def test_one_tile_staged_again_rewrites_what_changed_and_gives_the_bytes_of_a_fresh_run(
    tmp_path, small_levels
):
    before = np.zeros((24, 24), dtype=bool)
    before[1::6, 1::6] = True
    after = before.copy()
    after[8:11, 20:23] = True  # joins nothing, and replaces no object of its tile
    first = stage_into(tmp_path / "stage", before, tile_shape=6)
    write(first, tmp_path / "a.ome.zarr")

    second = stage_into(tmp_path / "after", after, tile_shape=6)
    target, written = write(second, tmp_path / "a.ome.zarr")

    assert 1 <= written.n_blocks_written < 16
    assert written.n_pyramid_chunks < 16 + 4
    fresh, all_written = write(second, tmp_path / "b.ome.zarr")
    assert all_written.n_blocks_written == 16
    assert pixel_files(target.path) == pixel_files(fresh.path)
    assert listed(tmp_path / "a.ome.zarr") == ["labels"]


def test_the_pyramid_has_what_a_worker_wrote_that_died_before_it_told(
    tmp_path, small_levels, monkeypatch
):
    stage = stage_into(tmp_path / "stage", blobs((16, 16)))
    apart = lut_of(stage, replace(TOUCHING, rule="none"))
    write(stage, tmp_path / "a.ome.zarr", lut=apart)
    once = apply._ApplyTask.__call__

    def twice(task, numbers):
        once(task, numbers)
        return once(task, numbers)  # as it is sent to another worker

    monkeypatch.setattr(apply._ApplyTask, "__call__", twice)
    target, written = write(stage, tmp_path / "a.ome.zarr")
    assert written.n_blocks_written > 0
    fresh, _ = write(stage, tmp_path / "b.ome.zarr")
    assert pixel_files(target.path) == pixel_files(fresh.path)


def test_the_same_labels_again_write_no_block(tmp_path, small_levels):
    stage = stage_into(tmp_path / "stage", blobs((16, 16)))
    target, _ = write(stage, tmp_path / "a.ome.zarr")
    before = pixel_files(target.path)
    _, written = write(stage, tmp_path / "a.ome.zarr")
    assert (written.n_blocks_written, written.n_pyramid_chunks) == (0, 0)
    assert pixel_files(target.path) == before


def test_a_block_killed_between_pixels_and_record_is_written_again(tmp_path, monkeypatch):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)))
    joined, apart = lut_of(stage), lut_of(stage, replace(TOUCHING, rule="none"))
    write(stage, tmp_path / "a.ome.zarr", lut=joined)

    def killed_before_the_record(writer, region, values):
        # The record that is written after the pixels never arrives.
        if writer.path.name == "applied" and values.any():
            raise Kill
        return write_region(writer, region, values)

    write_region = ArrayWriter.write
    with monkeypatch.context() as killed:
        killed.setattr(ArrayWriter, "write", killed_before_the_record)
        with pytest.raises(RuntimeError, match="Kill"):
            write(stage, tmp_path / "a.ome.zarr", lut=apart)

    target, _ = write(stage, tmp_path / "a.ome.zarr", lut=joined)
    np.testing.assert_array_equal(open_array(target.path / "0")[...], merged_of(stage))


def test_another_type_of_ids_starts_anew(tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)))
    lut = lut_of(stage)
    write(stage, tmp_path / "a.ome.zarr", lut=lut)

    class Wide(LookupTable):
        @property
        def dtype(self):
            return np.dtype(np.int64)

    wide = Wide(lut.offsets, lut.joined, lut.merged)
    target, written = write(stage, tmp_path / "a.ome.zarr", lut=wide)
    assert open_array(target.path / "0").dtype == np.int64
    assert written.n_blocks_written == 4
    np.testing.assert_array_equal(open_array(target.path / "0")[...], merged_of(stage))


def test_another_calibration_starts_the_pyramid_anew(tmp_path, small_levels):
    stage = stage_into(tmp_path / "stage", blobs((8, 8, 8)))
    write(stage, tmp_path / "a.ome.zarr")
    image = replace(stage.plan.image, pixel_size=dict.fromkeys("zyx", 1.0))
    stage.plan = replace(stage.plan, image=image)
    target, written = write(stage, tmp_path / "a.ome.zarr")
    assert written.n_blocks_written == 8
    assert open_array(target.path / "1").shape == (4, 4, 4)


@pytest.mark.parametrize(("version", "of_container"), [("0.5", 2), ("0.4", 3)])
def test_a_container_of_the_other_zarr_format_is_left_alone(version, of_container, tmp_path):
    container = tmp_path / "image.ome.zarr"
    zarr.open_group(str(container), mode="w", zarr_format=of_container, attributes={"a": 1})
    before = sorted(p.name for p in container.rglob("*"))
    stage = stage_into(tmp_path / "stage", blobs((8, 8)))
    fitting = {"0.4": "0.5", "0.5": "0.4"}[version]
    with pytest.raises(PlanError, match=f"is Zarr v{of_container}, .*write version '{fitting}'"):
        write(stage, container, version=version)
    assert sorted(p.name for p in container.rglob("*")) == before
    target, _ = write(stage, container, version=fitting)
    assert target.path.exists()


def test_what_others_wrote_into_the_container_stays(tmp_path):
    container = tmp_path / "image.ome.zarr"
    group = zarr.open_group(str(container), mode="w", attributes={"ome": {"version": "0.5"}})
    labels = group.create_group("labels", attributes={"ome": {"version": "0.5", "labels": ["a"]}})
    labels.create_group("a")
    write(stage_into(tmp_path / "stage", blobs((8, 8))), container)
    assert listed(container) == ["a", "labels"]
    assert zarr.open_group(str(container), mode="r").attrs["ome"] == {"version": "0.5"}
    assert (container / "labels" / "a" / "zarr.json").exists()


def test_labels_are_written_to_a_url(tmp_path, small_levels):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)))
    container = f"memory://{uuid.uuid4().hex}/a.ome.zarr"
    for _ in range(2):
        target, _ = write(stage, container)
        np.testing.assert_array_equal(open_array(target.path / "0")[...], merged_of(stage))
        assert sorted(p.name for p in (target.container / "labels").iterdir()) == [
            "labels",
            "zarr.json",
        ]
    local, _ = write(stage, tmp_path / "a.ome.zarr")
    np.testing.assert_array_equal(
        open_array(target.path / "1")[...], open_array(local.path / "1")[...]
    )


def test_how_labels_were_made_is_kept_beside_them(tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)))
    target, _ = write(stage, tmp_path / "a.ome.zarr")
    record = json.loads((target.path / "provenance.json").read_text())
    assert record["made"] == "here"
    assert TileGrid.from_dict(record["grid"]) == stage.grid


@pytest.mark.parametrize(
    "tile",
    [(2048, 1024), (1000, 1000), (1009, 1009), (64, 512, 512), (1, 4096, 4096), (7, 1009, 1024)],
)
def test_a_tile_is_a_whole_number_of_the_chunks_it_writes(tile):
    axes = "zyx"[-len(tile) :]
    chunks = output_chunks(TileGrid(axes, tuple(2 * n for n in tile), tile, (0,) * len(tile)))
    assert all(n % c == 0 for n, c in zip(tile, chunks, strict=True))


def test_two_that_finish_at_once_are_both_listed(tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((21, 18)), tile_shape=6)
    container = tmp_path / "a.ome.zarr"
    write(stage, container, name="cells")
    folder = as_path(container / "labels")
    with ThreadPoolExecutor() as threads:
        with claimed(folder, doing="adding a name to"):  # as the other call does
            second = threads.submit(write, stage, container, name="nuclei")
            wait([second], timeout=2)
            labels = zarr.open_group(str(folder), mode="a", zarr_format=3)
            labels.attrs.update({"ome": {"version": "0.5", "labels": ["cells", "tissue"]}})
        second.result()
    assert listed(container) == ["cells", "nuclei", "tissue"]
    assert not (container / "labels.lock").exists()

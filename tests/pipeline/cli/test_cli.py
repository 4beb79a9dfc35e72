"""The command line: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import json
import re
from unittest.mock import Mock

import dagster as dg
import numpy as np
import pytest
import tifffile
import zarr

from patchworks_core.errors import StageError
from patchworks_core.files.storage import as_path
from patchworks_core.images.image import open_image
from patchworks_core.machine.budget import Limit
from patchworks_pipeline.automation.sensors import merged_content
from patchworks_pipeline.cli.runs import open_home, register
from patchworks_pipeline.landing.arrivals import Arrival, Quarantine, Version
from patchworks_pipeline.landing.candidates import Candidate
from patchworks_pipeline.partitions import image_key
from patchworks_pipeline.records import Acquisition
from patchworks_pipeline.resources.resources import LabelStore
from tests.core.oracles import assert_same_partition
from tests.pipeline.conftest import call_command_line
from tests.tissue import MARKED_KEY, files_under, marked_tissue, tissue, write_tiff

OPTIONS = ("--tile-shape", "32", "--overlap", "8")
PERFECT = ("--segmentation", "tissue_functions:perfect", *OPTIONS)
FAILS = ("--segmentation", "tissue_functions:fails_at_mark", *OPTIONS)


@pytest.fixture
def patchworks(home, monkeypatch):
    """Call the command line in the test's home; returns (exit code, printed words)."""
    monkeypatch.setenv("COLUMNS", "200")

    return call_command_line


@pytest.fixture
def tissue_path(tmp_path):
    return write_tiff(tmp_path / "tissue.tif", tissue())


@pytest.fixture
def marked_path(tmp_path):
    return write_tiff(tmp_path / "marked.tif", marked_tissue())


@pytest.mark.slow
def test_the_pixel_size_that_is_asked_for_is_that_of_the_labels(patchworks, home, tissue_path):
    assert patchworks("run", tissue_path, *PERFECT, "--pixel-size", "0.5")[0] == 0

    def pixel_size():
        folder = LabelStore().folder("tissue")
        return open_image(folder.labels(folder.plan()).path).pixel_size

    assert pixel_size() == {"y": 0.5, "x": 0.5}
    n_staged = len(staged_tiles(home))
    assert patchworks("run", tissue_path, "--pixel-size", "y=2,x=3")[0] == 0
    assert pixel_size() == {"y": 2.0, "x": 3.0}
    assert len(staged_tiles(home)) == n_staged
    assert "nothing was missing" in patchworks("run", tissue_path)[1]
    code, printed = patchworks("run", tissue_path, "--pixel-size", "large")
    assert code == 2
    assert "--pixel-size wants numbers such as 0.1" in printed


def runs_of(home) -> list[dg.DagsterRun]:
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        return list(instance.get_runs())


def staged_tiles(home) -> list[str]:
    """Return the tiles that were materialized, in order, each as often as it was."""
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        key = dg.AssetKey("staged_labels")
        records = instance.fetch_materializations(key, limit=1000, ascending=True).records
        return [record.partition_key for record in records]


def labels_of(key: str) -> np.ndarray:
    folder = LabelStore().folder(key)
    return np.asarray(zarr.open_array(str(folder.labels(folder.plan()).path / "0"))[...])


@pytest.mark.slow
def test_a_run_prints_where_everything_is_and_a_second_one_redoes_nothing(
    patchworks, home, tissue_path
):
    code, printed = patchworks("run", tissue_path, *PERFECT)
    assert code == 0
    n_objects = len(np.unique(tissue())) - 1
    assert f"tissue: {n_objects} objects" in printed
    assert "(planned, staged, merged)" in printed
    folder = LabelStore().folder("tissue")
    for path in (
        folder.labels(folder.plan()).path,
        folder.report / "overlay.png",
        folder.path / "objects.csv",
    ):
        assert str(path) in printed
        assert path.exists()
    assert_same_partition(labels_of("tissue"), tissue())
    assert sorted(staged_tiles(home)) == sorted(set(staged_tiles(home)))
    before, n_runs = files_under(folder.path), len(runs_of(home))

    code, printed = patchworks("run", tissue_path)  # what was chosen is kept
    assert code == 0
    assert "(nothing was missing)" in printed
    assert len(runs_of(home)) == n_runs == 3
    assert files_under(folder.path) == before


@pytest.mark.slow
def test_failing_tiles_are_listed_and_only_they_are_staged_again(
    patchworks, home, marked_path, mended
):
    code, printed = patchworks("run", marked_path, *FAILS, "--name", "other")
    assert code == 3
    assert "1 tile failed" in printed
    assert f"other/{MARKED_KEY}" in printed
    assert 'object"): cannot segment [b]marked[/b] object' in printed
    retry = f"patchworks retry other --home {home}"
    assert retry in printed
    assert len(staged_tiles(home)) == 11

    code, printed = patchworks("status", "other")
    assert code == 0
    assert f"other/{MARKED_KEY}: ValueError: tissue_functions.py, line" in printed

    mended.touch()
    code, printed = patchworks(*retry.split()[1:])
    assert code == 0
    assert "(staged, merged)" in printed
    assert staged_tiles(home)[11:] == [f"other/{MARKED_KEY}"]
    assert_same_partition(labels_of("other"), marked_tissue())


@pytest.mark.slow
def test_why_tiles_could_not_start_is_said_instead_of_old_failures(
    patchworks, marked_path, monkeypatch
):
    assert patchworks("run", marked_path, *FAILS)[0] == 3

    def gone(folder, plan):
        raise StageError("the disk is gone")

    monkeypatch.setattr("patchworks_pipeline.assets.staging.planned_function", gone)
    code, printed = patchworks("run", marked_path)
    assert code == 1
    assert printed.endswith("marked: staging 1 of 12 tiles error: StageError: the disk is gone")


def test_a_tile_beyond_the_memory_is_refused(patchworks, tissue_path, monkeypatch):
    limit = Limit(10_000, "SLURM")
    monkeypatch.setattr(
        "patchworks_pipeline.resources.compute_budget.granted_memory_bytes", lambda: limit
    )
    code, printed = patchworks("run", tissue_path, *PERFECT)
    assert code == 2
    assert "error: one tile needs about" in printed
    assert "use smaller tiles" in printed


@pytest.mark.slow
def test_other_options_plan_anew_and_the_rest_is_kept(patchworks, tissue_path):
    above = ("--segmentation", "tissue_functions:above", *OPTIONS)
    assert patchworks("run", tissue_path, *above)[0] == 0
    code, printed = patchworks("run", tissue_path, "--param", "level=20")
    assert code == 0
    assert "(planned, staged, merged)" in printed
    assert "is replaced by an empty one: " in printed
    folder = LabelStore().folder("tissue")
    assert folder.acquisition().tile_shape == (32,)
    assert folder.plan().segmentation["parameters"] == {"level": 20}
    assert_same_partition(labels_of("tissue"), np.where(tissue() > 20, tissue(), 0))

    code, printed = patchworks("run", tissue_path, "--merge", "none")
    assert code == 0
    assert "(merged)" in printed


@pytest.mark.slow
def test_a_stage_that_was_deleted_is_made_again(patchworks, tissue_path):
    import shutil

    assert patchworks("run", tissue_path, *PERFECT)[0] == 0
    folder = LabelStore().folder("tissue")
    before = files_under(folder.container)
    shutil.rmtree(str(folder.path / "stage.zarr"))
    assert patchworks("status")[0] == 0
    code, printed = patchworks("run", tissue_path)
    assert code == 0
    assert "plan_image, stage_tiles" in printed
    assert files_under(folder.container) == before


@pytest.mark.slow
def test_several_images_run_one_after_the_other(patchworks, tmp_path, marked_path, tissue_path):
    code, printed = patchworks("run", tissue_path, marked_path, *FAILS)
    assert code == 3
    assert "tissue: " in printed
    assert f"marked/{MARKED_KEY}" in printed
    code, printed = patchworks("status")
    assert code == 0
    assert "│ marked │ 12 │ 11 │ 1 │ 0 │ - │" in printed
    folder = LabelStore().folder("tissue")
    assert "│ tissue │ 12 │ 12 │ 0 │ 0 │" in printed
    assert f"tissue: labels {folder.labels(folder.plan()).path}" in printed


@pytest.mark.slow
def test_a_channel_is_chosen_by_its_name(patchworks, tmp_path):
    path = tmp_path / "channels.tif"
    tifffile.imwrite(
        path,
        np.stack([np.zeros_like(tissue()), tissue()]),
        ome=True,
        metadata={"axes": "CYX", "Channel": {"Name": ["empty", "cells"]}},
    )
    assert patchworks("run", path, *PERFECT, "--channel", "cells")[0] == 0
    assert_same_partition(labels_of("channels"), tissue())
    code, printed = patchworks("run", path, "--channel", "nuclei")
    assert code == 2
    assert "'nuclei'" in printed
    assert "cells" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--param", "level"), "--param wants K=V, got 'level'; for example --param sigma=2"),
        (("--segmentation", "cellpose9"), "cellpose9"),
        (("--segmentation", "nowhere:f"), "cannot import segmentation function 'nowhere:f'"),
        (("--tile-shape", "big"), "--tile-shape wants whole numbers such as 512 or 16,512,512"),
        (("--tile-shape", "0"), "0"),
        (("--tile-shape", "1,2,3,4,5,6"), "6"),
        (("--channel", "7"), "7"),
        (("--param", "sgima=2"), "has no parameter ['sgima']; its parameters are ("),
        (("--merge", "glue"), "merge must be one of"),
        (("--min-iou", "3"), "min_iou must be a finite number, from 0 to 1, got 3"),
        (("--level", "4"), "4"),
        (("--name", "a/b"), "'a/b' cannot name an image"),
        (("--worker-kind", "fibers"), "'fibers' is not one of"),
        (("--workers", "-1"), "Invalid value for '--workers'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_kept(
    patchworks, home, tissue_path, arguments, words
):
    code, printed = patchworks("run", tissue_path, *arguments)
    assert words in printed
    assert code == 2
    assert not list((home / "store").glob("*/acquisition.json"))


def test_a_missing_image_is_named(patchworks, tmp_path):
    code, printed = patchworks("run", tmp_path / "nothing.tif")
    assert (code, printed) == (
        2,
        f"{tmp_path / 'nothing.tif'}: begun "
        f"error: no image at '{tmp_path / 'nothing.tif'}'; check the path",
    )


@pytest.mark.slow
def test_an_image_whose_pixels_are_damaged_is_named(patchworks, tmp_path):
    path = tmp_path / "damaged.tif"
    pixels = np.random.default_rng(0).integers(0, 999, (128, 128)).astype("u2")
    tifffile.imwrite(path, pixels, compression="zlib", metadata={"axes": "YX"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    path.write_bytes(content)
    code, printed = patchworks("run", path)
    assert code != 0
    assert "ImageError" in printed
    assert "damaged.tif" in "".join(printed.split())


@pytest.mark.slow
def test_two_images_of_one_name_need_another_name(patchworks, tmp_path, tissue_path):
    assert patchworks("run", tissue_path, *PERFECT)[0] == 0
    (tmp_path / "second").mkdir()
    second = write_tiff(tmp_path / "second" / "tissue.tif", tissue(seed=1))
    code, printed = patchworks("run", second, *PERFECT)
    assert code == 2
    assert f"give '{second}' another name with --name" in printed
    assert patchworks("run", second, *PERFECT, "--name", "second")[0] == 0
    assert_same_partition(labels_of("second"), tissue(seed=1))
    assert_same_partition(labels_of("tissue"), tissue())


def test_one_name_cannot_name_two_images(patchworks, tissue_path, marked_path):
    code, printed = patchworks("run", tissue_path, marked_path, "--name", "x")
    assert (code, printed) == (2, "error: --name names one image, and several were given")


@pytest.mark.slow
def test_the_status_of_nothing_says_how_to_begin(patchworks, home, tissue_path):
    code, printed = patchworks("status")
    assert code == 2
    assert f"no patchworks home at {home}; make one with 'patchworks run IMAGE'" in printed
    assert patchworks("run", tissue_path, *PERFECT)[0] == 0
    code, printed = patchworks("status", "unknown")
    assert code == 2
    assert "no image 'unknown'" in printed
    assert "its images are ['tissue']" in printed


def registered(home, *urls: str) -> None:
    """Make images known to a home without running them."""
    with open_home(home) as instance:
        for url in urls:
            register(instance, LabelStore(), image_key(url), Acquisition(url))


def test_the_status_names_the_file_beside_a_key_that_does_not_show_it(patchworks, home):
    registered(home, "/landing/plain.tif")
    assert "file" not in patchworks("status")[1]
    registered(home, "/landing/細胞 7.tif")
    code, printed = patchworks("status")
    assert code == 0
    assert re.search(r"7-59057345 \S+ 細胞 7\.tif \S+ 0", printed)
    _, printed = patchworks("status", "--json")
    files = {row["image"]: row["file"] for row in json.loads(printed)["images"]}
    assert files == {"7-59057345": "/landing/細胞 7.tif", "plain": "/landing/plain.tif"}


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ("budget: {memory_fraction: 80}", 2, "line 1: budget.memory_fraction must be less than"),
        ("segmentation: {min_iou: 3}", 2, "line 1: segmentation.min_iou must be less than"),
        ("segmentation: {function: nowhere}", 2, "'nowhere'"),
        ("source: {landing: /not/mounted}", 2, "landing folder '/not/mounted' does not exist"),
        ("retention: {days: -1}", 0, "line 1: retention.days must be greater than or equal to 0"),
        ("backfills: {max: 0}", 0, "line 1: section 'backfills' has no field 'max'"),
    ],
)
def test_the_status_says_what_is_wrong_with_the_settings(patchworks, home, settings, code, words):
    registered(home, "/landing/plain.tif")
    assert patchworks("status")[0] == 0
    (home / "patchworks.yaml").write_text(settings)
    assert patchworks("status")[0] == code
    printed = patchworks("status")[1]
    assert words in printed
    assert "plain" in printed, "the images are shown all the same"
    assert words not in patchworks("status", "plain")[1]


@pytest.mark.slow
def test_the_status_names_what_was_refused_and_why(patchworks, home, tissue_path):
    assert patchworks("run", tissue_path, *PERFECT)[0] == 0
    assert "refused" not in patchworks("status")[1]
    candidate = Candidate("/landing/torn.tif", "torn.tif", "torn", is_folder=False)
    refused = Arrival(candidate, Version("ab12", "ab12"))
    Quarantine(as_path(home / "store" / ".quarantine")).refuse(refused, "the file is cut short")
    code, printed = patchworks("status")
    assert code == 0
    assert "torn: version torn-ab12 was refused: the file is cut short" in printed
    assert "refused" not in patchworks("status", "tissue")[1]


@pytest.mark.slow
def test_a_home_may_be_relative(patchworks, tissue_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert patchworks("run", "tissue.tif", *PERFECT, "--home", "here")[0] == 0
    assert (tmp_path / "here" / "store" / "tissue" / "objects.csv").exists()
    code, printed = patchworks("status", "--home", "here")
    assert code == 0
    assert "tissue" in printed


def test_segment_needs_no_home(patchworks, home, tissue_path, tmp_path):
    output = tmp_path / "out.ome.zarr"
    code, printed = patchworks("segment", tissue_path, "-o", output, *PERFECT)
    assert code == 0
    assert f"labels {output}/labels/labels" in printed
    written = np.asarray(zarr.open_array(str(output / "labels" / "labels" / "0"))[...])
    assert_same_partition(written, tissue())
    assert not home.exists()


def test_segment_leaves_labels_that_were_corrected_by_hand(patchworks, tissue_path, tmp_path):
    output = tmp_path / "out.ome.zarr"
    call = ("segment", tissue_path, "-o", output, *PERFECT)
    assert patchworks(*call)[0] == 0
    labels = zarr.open_array(str(output / "labels" / "labels" / "0"), mode="r+")
    labels[0, 0] = 999
    code, printed = patchworks(*call)
    assert code == 2
    assert "changed since patchworks wrote it" in printed
    assert "--overwrite" in printed
    assert labels[0, 0] == 999
    assert patchworks(*call, "--overwrite")[0] == 0
    assert zarr.open_array(str(output / "labels" / "labels" / "0"))[0, 0] != 999


def test_segment_says_which_tile_failed_and_resumes(patchworks, marked_path, tmp_path, mended):
    output = tmp_path / "out.ome.zarr"
    code, printed = patchworks("segment", marked_path, "-o", output, *FAILS)
    assert code == 3
    assert (
        f"1 of 12 tiles failed, the first is '{MARKED_KEY}': tissue_functions.py, line " in printed
    )
    mended.touch()
    assert patchworks("segment", marked_path, "-o", output, *FAILS, "--resume")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--channel", "9"), "9"),
        (("--merge", "glue"), "merge must be one of"),
        (("--param", "x"), "--param wants K=V"),
        (("--worker-kind", "fibers"), "'fibers' is not one of"),
    ],
)
def test_segment_refuses_bad_options(patchworks, tissue_path, tmp_path, arguments, words):
    code, printed = patchworks("segment", tissue_path, "-o", tmp_path / "o.ome.zarr", *arguments)
    assert code == 2
    assert words in printed


@pytest.mark.slow
def test_the_demo_segments_a_real_micrograph(patchworks, home):
    code, printed = patchworks("demo")
    assert code == 0
    assert "immunohistochemistry: " in printed
    assert "What to look at" in printed
    assert (home / "store" / "immunohistochemistry" / "report" / "overlay.png").exists()


@pytest.mark.slow
def test_another_rule_is_merged_without_staging_again_and_is_kept(patchworks, home, tissue_path):
    assert patchworks("run", tissue_path, *PERFECT)[0] == 0
    before = staged_tiles(home), labels_of("tissue").max()
    code, printed = patchworks("merge", "tissue", "--merge", "none")
    assert code == 0
    assert labels_of("tissue").max() > before[1]
    assert f"tissue: {labels_of('tissue').max()} objects" in printed
    assert staged_tiles(home) == before[0]
    assert "(nothing was missing)" in patchworks("run", tissue_path)[1]
    assert patchworks("merge", "tissue", "--merge", "overlap")[0] == 0
    assert labels_of("tissue").max() == before[1]


@pytest.mark.slow
def test_a_table_of_the_labels_before_is_made_again(patchworks, home, tissue_path, monkeypatch):
    assert patchworks("run", tissue_path, *PERFECT)[0] == 0
    folder = LabelStore().folder("tissue")
    n_before = len(folder.objects())
    with monkeypatch.context() as patch:
        fails = Mock(side_effect=OSError("no pictures"))
        patch.setattr("patchworks_pipeline.assets.merging._pictures", fails)
        assert patchworks("merge", "tissue", "--merge", "none")[0] == 1
    assert labels_of("tissue").max() > n_before == len(folder.objects())
    assert merged_content(folder) is None
    assert "(nothing was missing)" not in patchworks("run", tissue_path)[1]
    assert len(folder.objects()) == folder.summary()["n_objects"] == labels_of("tissue").max()
    assert merged_content(folder) == folder.stage().content()
    assert "(nothing was missing)" in patchworks("run", tissue_path)[1]


@pytest.mark.slow
def test_labels_corrected_by_hand_are_merged_over_only_with_overwrite(
    patchworks, home, tissue_path
):
    assert patchworks("run", tissue_path, *PERFECT)[0] == 0
    path = LabelStore().folder("tissue").container / "labels" / "labels" / "0"
    labels = zarr.open_array(str(path), mode="r+")
    labels[0, 0] = 77
    code, printed = patchworks("merge", "tissue", "--merge", "none")
    assert code == 2
    assert "changed since patchworks wrote it" in printed
    assert "copy it elsewhere to keep it, and " in printed
    assert "--overwrite" in printed
    assert "store.root" not in printed
    assert labels[0, 0] == 77
    assert patchworks("merge", "tissue", "--merge", "overlap", "--overwrite")[0] == 0
    assert_same_partition(labels_of("tissue"), tissue())


def test_a_run_of_a_finished_image_whose_results_are_damaged_is_no_success(
    patchworks, home, tissue_path
):
    assert patchworks("run", tissue_path, *PERFECT)[0] == 0
    table = LabelStore().folder("tissue").path / "objects.csv"
    whole = table.read_bytes()
    table.write_bytes(whole.replace(b"1", b"7", 1))
    code, printed = patchworks("run", tissue_path)
    assert code == 2
    assert f"{table} is not what objects.parquet beside it says" in printed
    table.write_bytes(whole)
    folder = LabelStore().folder("tissue").container / "labels" / "labels"
    chunk = folder / "0" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[-9] ^= 1
    chunk.write_bytes(content)
    code, printed = patchworks("run", tissue_path)
    assert code == 2
    assert f"{folder} is complete, but it was changed since patchworks wrote it" in printed
    assert (
        "copy it elsewhere to keep it, and 'patchworks merge tissue --overwrite' makes" in printed
    )
    assert chunk.read_bytes() == content, "it may be a correction"
    assert_refused_calls_change_nothing(patchworks, home, tissue_path)
    code, printed = patchworks("merge", "tissue", "--overwrite")
    assert (code, "across seams, by overlap (" in printed) == (0, True)


def assert_refused_calls_change_nothing(patchworks, home, tissue_path):
    """Call all that would replace labels which were changed, by another rule or other tiles."""
    before = files_under(home / "store" / "tissue")
    for command in (
        ("merge", "tissue", "--merge", "none"),
        ("run", tissue_path, "--merge", "none"),
        ("run", tissue_path, "--tile-shape", "64"),
        ("submit", tissue_path, "--merge", "none"),
        ("retry", "tissue"),
    ):
        code, printed = patchworks(*command)
        assert (code, "it was changed since patchworks wrote it" in printed) == (2, True), command
        assert files_under(home / "store" / "tissue") == before, command


@pytest.mark.slow
def test_changing_the_rule_rewrites_only_tiles_whose_ids_changed(patchworks, home, tissue_path):
    assert patchworks("run", tissue_path, *PERFECT)[0] == 0
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        assert patchworks("merge", "tissue", "--min-iou", "0.4")[0] == 0
        event = instance.get_latest_materialization_event(dg.AssetKey("merged_labels"))
        metadata = event.asset_materialization.metadata
    assert metadata["n_tiles_written"].value == 0
    assert metadata["n_tiles_unchanged"].value == 12


@pytest.mark.slow
def test_a_merge_with_holes_must_be_asked_for(patchworks, home, marked_path):
    assert patchworks("run", marked_path, *FAILS)[0] == 3
    code, printed = patchworks("merge", "marked")
    assert code == 3
    assert f"1 of 12 tile blocks are not staged at {home}" in printed
    assert patchworks("merge", "marked", "--allow-missing-tiles")[0] == 0
    hole = LabelStore().folder("marked").plan().grid.block_of_key(MARKED_KEY).core
    assert not labels_of("marked")[hole.slices].any()


@pytest.mark.slow
def test_a_retry_heals_a_merge_with_holes(patchworks, home, marked_path, mended):
    patchworks("run", marked_path, *FAILS)
    patchworks("merge", "marked", "--allow-missing-tiles")
    mended.touch()
    assert patchworks("retry", "marked")[0] == 0
    assert staged_tiles(home).count(f"marked/{MARKED_KEY}") == 1
    assert_same_partition(labels_of("marked"), marked_tissue())


@pytest.mark.slow
def test_a_merge_by_a_rule_that_there_is_not_changes_nothing(patchworks, home, tissue_path):
    assert patchworks("run", tissue_path, *PERFECT)[0] == 0
    before = files_under(home / "store" / "tissue")
    code, printed = patchworks("merge", "tissue", "--merge", "glue")
    assert code == 2
    assert "merge must be one of" in printed
    assert files_under(home / "store" / "tissue") == before


def test_an_image_that_is_not_known_is_refused(patchworks, home, tissue_path):
    assert patchworks("run", tissue_path, *PERFECT)[0] == 0
    for command in ("retry", "merge"):
        code, printed = patchworks(command, "nothing")
        assert code == 2
        assert "no image 'nothing' in" in printed
        assert "its images are ['tissue']" in printed

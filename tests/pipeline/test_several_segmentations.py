"""Several segmentations of one image: landing together, apart in all else, and related."""

from __future__ import annotations

from dataclasses import replace

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr

from patchworks_core import ImageError, PlanError, label_relations, open_image
from patchworks_core.tiles.regions import Region
from patchworks_pipeline.assets.relating import is_related
from patchworks_pipeline.automation.retention import Retention, over_budget
from patchworks_pipeline.cli.exit_codes import TILES_FAILED
from patchworks_pipeline.cli.status import left_over, names_of_home, state_of
from patchworks_pipeline.definitions import definitions, deployed
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.records import Acquisition
from patchworks_pipeline.resources.resources import (
    AcquisitionSource,
    LabelStore,
    SegmentationDefaults,
)
from patchworks_pipeline.resources.several import Several
from tests.pipeline.conftest import call_command_line
from tests.pipeline.daemon import Daemon
from tests.tissue import HALO, TILE, marked_tissue, tissue

SHAPE = (64, 64)

SETTINGS = f"""
source: {{settle_seconds: 0}}
segmentations:
  nuclei:
    function: tissue_functions:fails_at_mark
    channel: 0
    tile_shape: [{TILE}]
    overlap: [{HALO}]
  cells:
    function: tissue_functions:perfect
    channel: 1
    tile_shape: [40]
    overlap: [8]
relations: {{nuclei: cells}}
"""


def write_settings(home, text: str = SETTINGS) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "patchworks.yaml").write_text(text)


def land(home, *, marked: bool = False) -> None:
    """Land an image of two channels: nuclei, and cells of which each may hold some."""
    nuclei = marked_tissue() if marked else tissue(SHAPE)
    middle = nuclei.shape[1] // 2
    cells = np.where(np.indices(nuclei.shape)[1] < middle, 1, 2).astype(nuclei.dtype)
    folder = home / "landing"
    folder.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / "a.tif", np.stack([nuclei, cells]), metadata={"axes": "CYX"})


@pytest.fixture
def daemon(home, instance) -> Daemon:
    """A daemon of a home with two segmentations."""
    write_settings(home)
    location = deployed()
    resources = dict(location.resources or {})
    chain = [
        "landing_sensor",
        *(f"{name}__{kind}" for name in ("nuclei", "cells") for kind in KINDS),
        "relating_sensor",
    ]
    return Daemon(instance, resources, location=location, names=tuple(chain))


JOBS = ("stage_tiles", "merge_image")

KINDS = ("staging_sensor", "merging_sensor")


def folder_of(segmentation: str):
    return LabelStore().folder("a", segmentation)


def labels_of(segmentation: str) -> np.ndarray:
    folder = folder_of(segmentation)
    return zarr.open_array(str(folder.labels(folder.plan()).path / "0"), mode="r")[:]


def test_an_image_that_lands_is_segmented_twice_and_related(daemon, home, instance, mended):
    mended.touch()
    land(home)
    jobs = daemon.until_quiet()
    assert jobs.count("plan_image") == 1
    of_each = [f"{name}__{job}" for name in ("nuclei", "cells") for job in JOBS]
    assert sorted(jobs) == sorted(["plan_image", *of_each, "relate"])
    assert daemon.failed == []
    image = open_image(str(home / "landing" / "a.tif"), channel=0)
    assert len(np.unique(labels_of("nuclei"))) == len(np.unique(image.read(Region((0, 0), SHAPE))))
    assert labels_of("cells").max() == 2
    assert folder_of("nuclei").plan().image.channel == 0
    assert folder_of("cells").plan().grid.tile_shape == (40, 40)
    container = folder_of("nuclei").container
    assert container == folder_of("cells").container
    listed = zarr.open_group(str(container / "labels"), mode="r").attrs["ome"]["labels"]
    assert listed == ["cells", "nuclei"]
    relation = pq.read_table(str(folder_of("nuclei").path / "in_cells.parquet"))
    expected = label_relations(labels_of("nuclei"), labels_of("cells")).to_table()
    assert relation["b"].to_pylist() == expected["b"].to_pylist()
    staged = instance.get_materialized_partitions(dg.AssetKey(["nuclei", "staged_labels"]))
    assert len(staged) == folder_of("nuclei").plan().grid.n_blocks
    assert instance.get_materialized_partitions(dg.AssetKey("image")) == {"a"}


def test_the_status_says_why_one_segmentation_could_not_be_planned(daemon, home, instance):
    write_settings(home, SETTINGS.replace("channel: 1", "channel: 4"))
    land(home)
    instance.add_dynamic_partitions("images", ["a"])
    assert not daemon.execute("plan_image", dg.RunRequest(partition_key="a")).success
    state = state_of(instance, ["a"], ["nuclei", "cells"], of_home=False)
    assert not state.is_sound
    (words,) = state.record()["unplanned"]
    assert words in state.complaints
    assert words.startswith("a (cells) could not be planned: ")
    file = home / "patchworks.yaml"
    assert f"{file}, line 11: segmentations.cells.channel: no channel 4 in " in words
    tifffile.imwrite(plane := home / "plane.tif", np.zeros((4, 4), np.uint8))
    with pytest.raises(ImageError, match=r"line 11: segmentations.cells.channel: 4 needs a chann"):
        SegmentationDefaults(block="cells").of_home().open(Acquisition(str(plane)))
    assert words.endswith("'patchworks retry a --only cells' plans it when that is mended")
    write_settings(home)
    assert daemon.execute("plan_image", dg.RunRequest(partition_key="a")).success
    state = state_of(instance, ["a"], ["nuclei", "cells"], of_home=False)
    assert (state.unplanned, state.is_sound) == ([], True)


@pytest.mark.slow
def test_labels_that_change_and_change_back_are_related_again(daemon, home, mended):
    mended.touch()
    land(home)
    daemon.until_quiet()
    cells, at_first = folder_of("cells"), folder_of("cells").acquisition()
    in_cells = []
    for merge in ({"min_size": 10_000}, at_first.merge):
        cells.write_acquisition(replace(at_first, merge=merge))
        assert daemon.execute("cells__merge_image", dg.RunRequest(partition_key="a")).success
        assert daemon.until_quiet() == ["relate"]
        table = pq.read_table(str(folder_of("nuclei").path / "in_cells.parquet"))
        in_cells.append(any(table["b"].to_pylist()))
    assert in_cells == [False, True]


@pytest.mark.slow
def test_one_that_fails_is_repaired_without_the_other(daemon, home, mended):
    land(home, marked=True)
    jobs = daemon.until_quiet()
    assert "cells__merge_image" in jobs
    assert "nuclei__merge_image" not in jobs
    assert "relate" not in jobs
    assert len(folder_of("nuclei").failures()) == 1
    assert folder_of("cells").failures() == []
    cells = folder_of("cells").stage().content()
    mended.touch()
    config = {"config": {"image": "a"}}
    request = dg.RunRequest(
        "by hand", run_config={"ops": {"nuclei__stage_missing_tiles": config}}, tags={}
    )
    assert daemon.execute("nuclei__repair_image", request).success
    later = daemon.until_quiet()
    assert later == ["nuclei__merge_image", "relate"]
    assert folder_of("cells").stage().content() == cells


def test_the_assets_of_each_segmentation_are_under_its_name(home):
    defs = definitions(segmentations=["nuclei", "cells"], relations={"nuclei": "cells"})
    dg.Definitions.validate_loadable(defs)
    keys = {spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()}
    assert {"image", "nuclei/staged_labels", "cells/merged_labels", "nuclei/in_cells"} <= keys
    assert "staged_labels" not in keys
    both = definitions(key_prefix="light", segmentations=["nuclei"])
    keys = {spec.key.to_user_string() for spec in both.resolve_all_asset_specs()}
    assert {"light/image", "light/nuclei/staged_labels"} <= keys
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    deps = {dep.asset_key.to_user_string() for dep in specs["nuclei/in_cells"].deps}
    assert deps == {"nuclei/merged_labels", "cells/merged_labels"}


def test_a_home_without_blocks_has_one_segmentation_with_the_keys_of_before(home):
    write_settings(home, "segmentation: {function: threshold}")
    assert Several.of_home() == Several()
    keys = {spec.key.to_user_string() for spec in deployed().resolve_all_asset_specs()}
    assert "staged_labels" in keys


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "segmentations: {nuclei: {}}\nsegmentation: {function: threshold}",
            "line 2: sections 'segmentation' and 'segmentations' cannot both stand",
        ),
        (
            "segmentations:\n  a: {}\n  my nuclei: {}",
            "line 3: a segmentation must be a name of letters",
        ),
        ("segmentations: {report: {}}", "cannot be called 'report'"),
        ("segmentations: {Report: {}}", "cannot be called 'Report'"),
        ("segmentations: {a: {}, A: {}}", "'a' and 'A' differ by case alone"),
        (
            "segmentations: {a: {}, b: {}}\nrelations:\n  a: b\n  b: c",
            "line 4: a relation must be of two of the segmentations",
        ),
        ("relations: {a: b}", "must be of two of the segmentations"),
    ],
)
def test_blocks_that_cannot_be_are_refused_with_the_file(home, text, words):
    write_settings(home, text)
    with pytest.raises(PlanError, match=rf"patchworks.yaml.*{words}"):
        Several.of_home()


def test_a_mistake_in_a_block_is_named_with_its_line(home):
    write_settings(home, "segmentations:\n  nuclei:\n    overlap: [-1]\n")
    segmentation = (deployed().resources or {})["nuclei__segmentation"]
    with pytest.raises(PlanError, match=r"line 3: .*overlap must be 0 or more pixels"):
        segmentation.of_home()
    write_settings(home, "segmentations: {nuclei: {funktion: x}}")
    with pytest.raises(PlanError, match=r"section 'segmentations.nuclei' has no field 'funktion'"):
        segmentation.of_home()
    write_settings(home, "segmentations: {nuclei: {min_iou: 2}}")
    with pytest.raises(PlanError, match=r"line 1: segmentations.nuclei.min_iou must be less than"):
        segmentation.of_home()
    write_settings(home, "segmentations:\n  nuclei: 3\n")
    with pytest.raises(PlanError, match=r"line 2: segmentations.nuclei must hold fields"):
        segmentation.of_home()


def test_what_was_chosen_for_the_one_segmentation_is_none_of_a_new_block_and_is_kept(home):
    chosen = Acquisition(
        "/a.tif",
        channel=1,
        level=2,
        function="watershed",
        parameters={"sigma": 3},
        tile_shape=(64,),
        overlap=(9,),
        merge={"min_iou": 0.7},
        pilot={"best": 1},
    )
    LabelStore().folder("a").write_acquisition(chosen)
    block = folder_of("nuclei").acquisition()
    assert block == replace(Acquisition("/a.tif", channel=1, level=2), is_of_image=True)
    folder_of("nuclei").write_acquisition(replace(block, function="threshold"))
    assert folder_of("nuclei").acquisition().function == "threshold"
    assert LabelStore().folder("a").acquisition() == chosen


def test_the_status_says_what_is_left_of_segmentations_that_are_no_blocks_any_more(home, instance):
    folders = LabelStore().folder("a"), folder_of("nuclei"), folder_of("cells")
    for folder in folders:
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder.path / "plan.json").touch()
    instance.add_dynamic_partitions("cells/tiles", ["a/y0", "a/y1"])

    def said(*names: str) -> list[str]:
        return left_over(instance, LabelStore(), ["a"], names)

    assert said("", "nuclei", "cells") == []
    (text,) = said("", "nuclei")
    assert "segmentation 'cells' has no block in patchworks.yaml" in text
    assert "stays in 1 image, the first 'a', with 2 tile partitions ('cells/tiles')" in text
    (text,) = said("nuclei", "cells")
    assert "what was made of the one before, without a name, stays in 1 image" in text


def test_the_status_shows_images_also_where_the_settings_do_not_say_their_segmentations(
    home, instance
):
    write_settings(home, "segmentations:\n  nuclei: {}\nrelations:\n  nuclei: cell\n")
    folder_of("nuclei").path.mkdir(parents=True)
    (folder_of("nuclei").path / "plan.json").write_text("{")
    assert names_of_home(home) == ()
    state = state_of(instance, ["a", "b"], names_of_home(home), of_home=True)
    assert state.titles == ["a (nuclei)", "b"]
    assert [row["image"] for row in state.images] == ["a", "b"]
    assert (state.is_sound, state.left_over) == (False, [])
    assert "patchworks.yaml, line 4: a relation must be of two" in "".join(state.mistakes)


@pytest.mark.parametrize(
    "call",
    [
        ("plan", "a.tif"),
        ("run", "a.tif", "--tile-shape", "64"),
        ("merge", "a", "--merge", "touching"),
        ("mend", "a"),
        ("submit", "a.tif"),
    ],
    ids=lambda call: call[0],
)
def test_a_call_that_is_of_one_segmentation_names_those_that_there_are(home, call):
    write_settings(home)
    code, words = call_command_line(*call, "--home", home)
    assert code == 2
    assert f"is of one segmentation, and {home}/patchworks.yaml names ['nuclei', 'cells']" in words
    assert words.endswith("say which, such as --only nuclei")


def test_each_segmentation_has_the_budget_of_tile_partitions_for_itself(daemon, instance):
    daemon.resources["retention"] = Retention(max_live_keys=4)
    for name, n in (("nuclei", 4), ("cells", 5)):
        keys = [f"a/x{i:03}" for i in range(n)]
        instance.add_dynamic_partitions(f"{name}/tiles", keys)
    sensors = {sensor.name: sensor for sensor in daemon.location.sensors or ()}
    within = daemon.evaluate(sensors["nuclei__retention_sensor"])
    assert within.run_requests in (None, [])
    assert "4 tile partitions of at most 4" in str(within.skip_reason)
    assert len(daemon.evaluate(sensors["cells__retention_sensor"]).run_requests or []) == 1
    alert = over_budget(Lineage((), "cells"), {"a": ["a/x000"] * 5}, {"a": "not merged"}, 4)
    assert "5 tile partitions of segmentation 'cells' are live" in alert.cause


def test_the_source_of_acquisitions_is_shared(home):
    write_settings(home)
    resources = deployed().resources or {}
    assert isinstance(resources["source"], AcquisitionSource)
    assert "segmentation" not in resources
    assert resources["cells__segmentation"].of_home().channel == "1"


@pytest.mark.slow
def test_the_command_line_runs_all_and_says_which(home, tmp_path, mended, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_settings(home)
    land(home, marked=True)
    path = home / "landing" / "a.tif"
    code, words = call_command_line("run", path, "--home", home)
    assert code == TILES_FAILED
    assert "a (cells): 2 objects" in words
    assert "patchworks retry a --only nuclei" in words
    code, words = call_command_line("status", "--home", home)
    assert "a (nuclei)" in words
    assert "a (cells)" in words
    assert "no block" not in words
    write_settings(home, SETTINGS.replace("  nuclei:", "  others:").partition("relations")[0])
    code, words = call_command_line("status", "--home", home)
    assert "segmentation 'nuclei' has no block in patchworks.yaml" in words
    write_settings(home)
    mended.touch()
    code, words = call_command_line("retry", "a", "--only", "nuclei", "--home", home)
    assert code == 0
    assert "a (nuclei): " in words
    assert f"related {home / 'store' / 'a' / 'nuclei' / 'in_cells.csv'}" in words
    assert "a (cells)" not in words
    merged_otherwise = ("merge", "a", "--only", "nuclei", "--merge", "none", "--home", home)
    assert call_command_line(*merged_otherwise)[0] == 0
    folders = [LabelStore().folder("a", name) for name in ("nuclei", "cells")]
    assert is_related(*folders), "the relation is of the labels as they are now"
    code, words = call_command_line("run", path, "--home", home, "--overlap", "4")
    assert code == 2
    assert "--only" in words
    code, words = call_command_line("view", "a", "--only", "nucleus", "--home", home)
    assert code == 2
    assert "--only 'nucleus' is none of the segmentations ['nuclei', 'cells']" in words
    code, words = call_command_line("view", "a", "--only", "cells", "--home", home)
    assert code == 0
    assert "a.tif.cells.overlay.png" in words

"""What people have of an image is not replaced because its record is lost, or a table is theirs."""

from __future__ import annotations

import dagster as dg
import pyarrow as pa
import pytest

from patchworks_core.files.storage import as_path
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import LabelStore
from patchworks_pipeline.tables import write_table
from tests.pipeline.conftest import call_command_line as patchworks
from tests.pipeline.conftest import error_of, metadata_of
from tests.tissue import files_under, tissue, write_tiff

OPTIONS = ("--tile-shape", "32", "--overlap", "8")
PERFECT = ("--segmentation", "tissue_functions:perfect", *OPTIONS)


@pytest.fixture
def image_path(tmp_path):
    return write_tiff(tmp_path / "tissue.tif", tissue((64, 64)))


def files_but_record(folder: ImageFolder) -> dict[str, bytes]:
    files = files_under(folder.path)
    return {name: content for name, content in files.items() if name != "acquisition.json"}


def test_an_image_whose_record_is_lost_keeps_its_labels_until_the_same_options_are_given(
    home, image_path
):
    assert patchworks("run", image_path, *PERFECT)[0] == 0
    folder = LabelStore().folder("tissue")
    record = folder.path / "acquisition.json"
    whole, before = record.read_bytes(), files_but_record(folder)
    for lose in (lambda: record.write_bytes(whole[:40]), record.unlink):
        lose()
        for command in (("retry", "tissue"), ("merge", "tissue", "--merge", "none")):
            code, printed = patchworks(*command)
            assert code == 2
            assert "'patchworks run' of the image, with the options it had, writes it" in printed
        for options in ((), (*PERFECT, "--merge", "none")):
            code, printed = patchworks("run", image_path, *options)
            assert code == 2, options
            assert "its acquisition.json, which says what was chosen for it, is gone" in printed
            assert "with --overwrite to replace what is there" in printed
            named = "merge options: " if options else "'watershed' is not 'tissue_functions:perf"
            assert named in printed
        code, printed = patchworks("run", image_path, *PERFECT)
        assert code == 0
        assert "(nothing was missing)" in printed
        assert record.read_bytes() == whole
        assert files_but_record(folder) == before


@pytest.mark.slow
def test_overwrite_replaces_labels_of_which_nobody_knows_what_was_chosen(home, image_path):
    assert patchworks("run", image_path, *PERFECT)[0] == 0
    folder = LabelStore().folder("tissue")
    (folder.path / "acquisition.json").unlink()
    assert patchworks("run", image_path, *OPTIONS, "--overwrite")[0] == 0
    assert folder.plan().segmentation["function"] == "watershed"


def test_the_assets_keep_a_finished_image_whose_record_is_lost(pipeline, home, tmp_path):
    landing = home / "landing"
    landing.mkdir(parents=True, exist_ok=True)
    folder = pipeline.register(write_tiff(landing / "tissue.tif", tissue((64, 64))))
    pipeline.run_to_labels(folder)
    (folder.path / "acquisition.json").unlink()
    before = files_under(folder.path)
    result = pipeline.plan(folder)
    assert "'watershed' is not 'tissue_functions:perfect'" in error_of(result)
    assert files_under(folder.path) == before


def test_a_corrected_table_is_not_lost_to_a_merge(home, image_path):
    assert patchworks("run", image_path, *PERFECT)[0] == 0
    folder = LabelStore().folder("tissue")
    table = folder.path / "objects.csv"
    corrected = table.read_bytes() + b"999,1,1,1\n"
    table.write_bytes(corrected)
    before = files_under(folder.path)
    for command in (("merge", "tissue"), ("run", image_path, "--merge", "none")):
        code, printed = patchworks(*command)
        assert code == 2
        assert f"{table} is not what objects.parquet beside it says" in printed
        assert "'patchworks merge tissue --overwrite' keeps it under another name" in printed
        assert table.read_bytes() == corrected
    assert set(files_under(folder.path)) == set(before)
    code, printed = patchworks("merge", "tissue", "--overwrite")
    assert code == 0
    assert "it is kept as objects.changed-*" in printed
    assert (folder.path / "objects.changed-1.csv").read_bytes() == corrected
    assert table.read_bytes() != corrected


def test_the_object_table_asset_keeps_a_corrected_table_under_another_name(pipeline, tmp_path):
    folder = pipeline.register(write_tiff(tmp_path / "tissue.tif", tissue((64, 64))))
    pipeline.run_to_labels(folder)

    def materialized() -> dict[str, object]:
        result = pipeline.run(
            "merge_image", partition_key="tissue", asset_selection=[dg.AssetKey("object_table")]
        )
        return metadata_of(result, "object_table")

    assert "changed_table_kept" not in materialized()
    assert "changed_table_kept" not in materialized()
    table = folder.path / "objects.csv"
    table.write_bytes(b"mine\n")
    kept = folder.path / "objects.changed-1.csv"
    assert str(kept) in str(materialized()["changed_table_kept"])
    assert kept.read_bytes() == b"mine\n"
    assert table.read_bytes() != b"mine\n"


def test_of_a_table_both_files_are_kept_where_nobody_knows_which_was_changed(tmp_path):
    path = as_path(tmp_path / "t.parquet")
    first, second = pa.table({"a": [1]}), pa.table({"a": [1, 2]})
    assert write_table(path, first) == []
    assert write_table(path, second) == []
    path.write_bytes(b"damaged")
    assert write_table(path, second) == [], "the CSV says what is written now"
    (tmp_path / "t.csv").write_text("x")
    kept = write_table(path, first)
    assert [file.name for file in kept] == ["t.changed-1.csv", "t.changed-1.parquet"]
    (tmp_path / "t.csv").write_text("y")
    assert [file.name for file in write_table(path, first)] == ["t.changed-2.csv"]

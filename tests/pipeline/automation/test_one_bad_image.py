"""Three images, and something wrong with the middle one: it is named, and the others are served."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from fsspec.implementations.local import LocalFileSystem

from patchworks_pipeline.automation import schedules
from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.automation.retention import Retention
from patchworks_pipeline.definitions import defs
from patchworks_pipeline.landing import arrivals
from patchworks_pipeline.landing import candidates as found_in_landing
from patchworks_pipeline.partitions import images, tiles
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import (
    AcquisitionSource,
    LabelStore,
    SegmentationDefaults,
)
from patchworks_pipeline.tile_failures import TileFailure
from tests.pipeline.conftest import Pipeline, call_command_line
from tests.pipeline.daemon import SENSORS, Daemon, landing_sensor, merging_sensor, staging_sensor
from tests.tissue import FUNCTIONS, environment_of_functions, tissue, write_tiff

NIGHT = datetime.datetime(2026, 5, 4, 2, tzinfo=datetime.UTC)

ILLEGAL = "not a/legal:key"


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _no_json(path: Path) -> None:
    path.write_bytes(b"\xff\xfe not JSON")


def _no_mapping(path: Path) -> None:
    path.write_text("[1, 2, 3]")


def _newer(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "record_version": 99}))


def _a_folder(path: Path) -> None:
    """Which cannot be read as a file by anybody, a superuser neither."""
    path.unlink()
    path.mkdir()


DAMAGES = (_empty, _cut, _no_json, _no_mapping, _newer, _a_folder)


@contextmanager
def damaged(path: Path, damage: Callable[[Path], None]) -> Iterator[None]:
    """Damage a file, and mend it behind the block."""
    content = path.read_bytes()
    damage(path)
    try:
        yield
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.write_bytes(content)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home and an instance on disk with images a, b and c, for tests to copy."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "instance").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHWORKS_HOME", str(folder / "home"))
        for name, value in environment_of_functions().items():
            patch.setenv(name, value)
        patch.syspath_prepend(FUNCTIONS)
        with dg.instance_for_test(temp_dir=str(folder / "instance")) as instance:
            pipeline = Pipeline(instance, {})
            for key in "abc":
                path = write_tiff(folder / f"{key}.tif", tissue((40, 40)))
                assert pipeline.plan(pipeline.register(path, key)).success
            instance.add_dynamic_partitions(str(images.name), [ILLEGAL])
    return folder


@pytest.fixture
def instance(planned: Path, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on disk, because a schedule opens it again by its reference."""
    shutil.copytree(planned / "instance", tmp_path / "instance")
    with dg.instance_for_test(temp_dir=str(tmp_path / "instance")) as instance:
        yield instance


@pytest.fixture
def three(planned: Path, home: Path) -> list[ImageFolder]:
    """Images a, b and c, planned and measured; and a partition that was added by hand."""
    shutil.copytree(planned / "home", home)
    return [LabelStore().folder(key) for key in "abc"]


def fail_all_tiles(folder: ImageFolder) -> None:
    """Leave a record of a failure that may pass, for every tile."""
    for block in folder.plan().grid.block_keys():
        folder.write_failure(TileFailure(block, "OSError", "no", "", kind="transient"))


def tick(instance: dg.DagsterInstance, name: str) -> set[str]:
    """Return the images that a schedule asks for."""
    (schedule,) = [each for each in defs.schedules if each.name == name]
    resources = {"store": LabelStore(), "segmentation": SegmentationDefaults()}
    needed = {k: v for k, v in resources.items() if k in schedule.required_resource_keys}
    resources = {**needed, "automation": schedules.Automation()}
    with dg.build_schedule_context(
        instance=instance, resources=resources, scheduled_execution_time=NIGHT
    ) as context:
        requests = [each for each in schedule(context) if isinstance(each, dg.RunRequest)]
    return {request.tags["patchworks/image"] for request in requests}


def names(words: str, *wanted: str) -> bool:
    """Tell whether the words name all of these."""
    return all(word in words for word in wanted)


@pytest.mark.parametrize("record", ["plan.json", "stage.zarr/plan.json"])
def test_the_staging_sensor_serves_the_others(instance, three, capsys, record):
    for damage in DAMAGES:
        daemon = Daemon(instance, {})
        capsys.readouterr()
        with damaged(three[1].path / record, damage):
            requests = daemon.tick(staging_sensor, run=False)
            served = {request.tags["patchworks/image"] for request in requests}
            assert served == {"a", "c"}, damage
            assert names(capsys.readouterr().err, "image 'b'", record.rpartition("/")[2]), damage
            capsys.readouterr()
            daemon.tick(staging_sensor, run=False)
            assert "image 'b'" not in capsys.readouterr().err, "it is said once"
        again = daemon.tick(staging_sensor, run=False)
        assert "b" in {request.tags["patchworks/image"] for request in again}, damage


def test_a_failure_that_cannot_be_read_is_left_to_a_person(instance, three):
    block = three[1].plan().grid.block_keys()[0]
    for folder in three:
        fail_all_tiles(folder)
    for damage in DAMAGES:
        path = three[1].path / "failures" / f"{block}.json"
        with damaged(path, damage):
            requests = Daemon(instance, {}).tick(staging_sensor, run=False)
            assert {request.tags["patchworks/image"] for request in requests} >= {"a", "c"}
            (left,) = [failure for failure in three[1].failures() if failure.is_unreadable]
            assert left.block == block
            assert names(left.message, str(path), "stage it again")
            assert {"a", "c"} <= tick(instance, "retry_transient"), damage


def test_a_damaged_plan_of_a_stage_is_mended_where_its_tiles_vouch(instance, pipeline, three):
    for folder in three:
        assert pipeline.stage(folder).success
    record = three[1].path / "stage.zarr" / "plan.json"
    before = record.read_text()
    for damage in DAMAGES:
        # A record of a newer version is whole, and nothing can be written over a folder.
        is_mended = damage not in (_newer, _a_folder)
        with damaged(record, damage):
            requests = Daemon(instance, {}).tick(merging_sensor, run=False)
            keys = {request.partition_key for request in requests}
            assert keys == ({"a", "b", "c"} if is_mended else {"a", "c"}), damage
            assert not is_mended or record.read_text() == before, damage


@pytest.mark.parametrize("record", ["plan.json", "provenance.json"])
def test_the_merging_sensor_serves_the_others(instance, pipeline, three, capsys, record):
    for folder in three:
        assert pipeline.stage(folder).success
    path = three[1].path / record
    if record == "provenance.json":
        assert pipeline.merge(three[1]).success
        path = Path(str(three[1].labels(three[1].plan()).path)) / record
    for damage in DAMAGES:
        capsys.readouterr()
        if record == "provenance.json" and damage is _newer:
            continue  # it has no version
        with damaged(path, damage):
            requests = Daemon(instance, {}).tick(merging_sensor, run=False)
            assert {request.partition_key for request in requests} == {"a", "c"}, damage
            assert names(capsys.readouterr().err, "image 'b'", record.rpartition("/")[2]), damage


def test_the_landing_sensor_serves_the_others(home, instance, monkeypatch, capsys):
    landing = home / "landing"
    landing.mkdir(parents=True)
    for key in "abc":
        write_tiff(landing / f"{key}.tif", tissue((40, 40)))
    stamp = arrivals.file_stamp

    def refusing(url: str):
        if url.endswith("b.tif"):
            raise PermissionError(13, "Permission denied", url)
        return stamp(url)

    monkeypatch.setattr(arrivals, "file_stamp", refusing)
    daemon = Daemon(instance, {"source": AcquisitionSource(settle_seconds=0)})
    requests = daemon.tick(landing_sensor, run=False)
    assert {request.partition_key for request in requests} == {"a", "c"}
    assert names(capsys.readouterr().err, "b.tif", "permission denied")
    monkeypatch.setattr(arrivals, "file_stamp", stamp)
    assert "b" in {r.partition_key for r in daemon.tick(landing_sensor, run=False)}


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def _endless_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _pipe_of_metadata(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "zarr.json")


def _not_utf8(path: Path) -> None:
    (path.parent / "b\udcff.tif").write_bytes(b"")


NO_FILES = (_pipe, _link_to_itself, _link_to_nothing, _endless_device, _pipe_of_metadata, _not_utf8)


@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file_in_landing_stops_no_other_and_is_alerted_where_it_lasts(
    home, instance, monkeypatch, make
):
    sent: list[str] = []
    monkeypatch.setattr(
        Alerts,
        "send",
        lambda _, alerts, **more: sent.extend(f"{a.image}: {a.cause}" for a in alerts),
    )
    landing = home / "landing"
    landing.mkdir(parents=True)
    for key in "ac":
        write_tiff(landing / f"{key}.tif", tissue((40, 40)))
    name = "b.zarr" if make is _pipe_of_metadata else "b.tif"
    make(landing / name)
    daemon = Daemon(instance, {"source": AcquisitionSource(settle_seconds=0)})
    requests = daemon.tick(landing_sensor, run=False)
    assert {request.partition_key for request in requests} == {"a", "c"}
    assert sent == [], "it may be being written"
    write_tiff(landing / "d.tif", tissue((40, 40)))
    requests = daemon.tick(landing_sensor, run=False)
    assert "d" in {request.partition_key for request in requests}
    (line,) = sent
    assert line.startswith("b")
    bad = next(path for path in landing.iterdir() if path.name.startswith("b"))
    shutil.rmtree(bad) if bad.is_dir() and not bad.is_symlink() else bad.unlink()
    write_tiff(landing / "b.tif", tissue((40, 40)))
    requests = daemon.tick(landing_sensor, run=False)
    assert "b" in {request.partition_key for request in requests}


@pytest.mark.parametrize("call", ["list_images", "ls"])
def test_what_cannot_be_looked_into_stops_no_other(home, instance, monkeypatch, capsys, call):
    landing = home / "landing"
    for key in "abc":
        (landing / key).mkdir(parents=True)
        write_tiff(landing / key / f"{key}.tif", tissue((40, 40)))
    (landing / "z" / "b.zarr").mkdir(parents=True)

    def listing(url: str) -> list[str]:
        raise OSError(5, "Input/output error", url)

    ls = LocalFileSystem.ls

    def ls_of_others(self: LocalFileSystem, path: str, **options: object) -> object:
        if path.endswith("/b"):
            raise OSError(40, "Too many levels of symbolic links", path)
        return ls(self, path, **options)

    if call == "ls":
        monkeypatch.setattr(LocalFileSystem, "ls", ls_of_others)
    else:
        monkeypatch.setattr(found_in_landing, "list_images", listing)
    source = AcquisitionSource(settle_seconds=0, patterns=["*/*.tif", "*/*.zarr"])
    requests = Daemon(instance, {"source": source}).tick(landing_sensor, run=False)
    served = {request.partition_key for request in requests}
    assert served == ({"a_a", "c_c"} if call == "ls" else {"a_a", "b_b", "c_c"})
    words = {"ls": ("/b", "too many levels"), "list_images": ("b.zarr", "input/output error")}
    assert names(capsys.readouterr().err, *words[call])


@pytest.mark.parametrize("record", ["plan.json", "acquisition.json"])
def test_reprocessing_serves_the_others(instance, pipeline, three, capsys, record):
    for folder in three:
        url = Path(folder.acquisition().url)
        pipeline.register(url, folder.key, function="tissue_functions:above")
    for damage in DAMAGES:
        capsys.readouterr()
        with damaged(three[1].path / record, damage):
            assert tick(instance, "reprocess_outdated") == {"a", "c"}, damage
    with damaged(three[1].path / record, _empty):
        assert tick(instance, "reprocess_outdated") == {"a", "c"}


def test_retrying_serves_the_others(instance, three):
    for folder in three:
        fail_all_tiles(folder)
    for damage in DAMAGES:
        with damaged(three[1].path / "plan.json", damage):
            assert tick(instance, "retry_transient") == {"a", "c"}, damage


def test_merging_again_serves_the_others(instance, three, monkeypatch):
    monkeypatch.setattr(schedules, "has_older_code", lambda *_: True)
    is_retired = schedules.is_retired

    def refusing(folder: ImageFolder) -> bool:
        if folder.key == "b":
            raise PermissionError(13, "Permission denied", str(folder.path))
        return is_retired(folder)

    monkeypatch.setattr(schedules, "is_retired", refusing)
    assert tick(instance, "remerge_outdated") == {"a", "c"}


def test_retention_serves_the_others(instance, pipeline, three):
    for folder in three:
        assert pipeline.stage(folder).success
        assert pipeline.merge(folder).success
    instance.add_dynamic_partitions(str(tiles.name), [f"{ILLEGAL}/y000x000", "no tile", "/x"])
    path = Path(str(three[1].labels(three[1].plan()).path)) / "provenance.json"
    with damaged(path, _cut):
        result = defs.resolve_job_def("retire_images").execute_in_process(
            instance=instance,
            resources={"store": LabelStore(), "retention": Retention(), "alerts": Alerts()},
            run_config={"ops": {"retire_old_stages": {"config": {"days": 0}}}},
        )
    assert result.success
    gone = [folder.key for folder in three if not (folder.path / "stage.zarr").exists()]
    assert gone == ["a", "c"]


def test_an_alert_names_the_image_whose_records_are_damaged(instance, pipeline, three, monkeypatch):
    sent: list[str] = []
    monkeypatch.setattr(
        Alerts,
        "send",
        lambda self, alerts, **_: sent.extend(f"{a.image}: {a.cause}" for a in alerts),
    )
    for folder in three:
        fail_all_tiles(folder)
    failed = _failed_run(pipeline, three)
    assert three[2].failures() == [], "it was staged behind the damaged one"
    fail_all_tiles(three[2])
    with damaged(three[1].path / "plan.json", _cut):
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failure_alerts",
            dagster_event=failed.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=failed.dagster_run,
            resources={"store": LabelStore(), "alerts": Alerts()},
        ).for_run_failure()
        SENSORS["run_failure_alerts"](context)
    assert three[0].failures() == [], "it was staged beside the damaged one"
    assert {line.partition(":")[0] for line in sent} == {"b", "c"}
    assert any(names(line, "b: ", "plan.json") for line in sent)


def _failed_run(pipeline: Pipeline, three: list[ImageFolder]) -> dg.ExecuteInProcessResult:
    """Stage all three in one run, which fails at the damaged one."""
    with damaged(three[1].path / "plan.json", _cut):
        return pipeline.run(
            "stage_tiles",
            tags={
                "dagster/asset_partition_range_start": f"a/{three[0].plan().grid.block_keys()[0]}",
                "dagster/asset_partition_range_end": f"c/{three[2].plan().grid.block_keys()[-1]}",
            },
        )


def test_an_odd_partition_of_a_run_stops_no_other(instance, pipeline, three):
    odd = ["no tile", f"{ILLEGAL}/y000x000", "/x", "a/none such", "../b/y000x000"]
    instance.add_dynamic_partitions(str(tiles.name), odd)
    keys = list(instance.get_dynamic_partitions(str(tiles.name)))
    tags = {"dagster/asset_partition_range_start": keys[0]}
    tags["dagster/asset_partition_range_end"] = keys[-1]
    result = pipeline.run("stage_tiles", tags=tags)
    assert not result.success
    assert [folder.stage().missing_blocks() for folder in three[1:]] == [[], []]


@pytest.mark.slow
def test_the_status_shows_the_others_and_names_the_damaged_one(home):
    for key in "abc":
        path = write_tiff(home.parent / f"{key}.tif", tissue((40, 40)))
        code, words = call_command_line(
            "run", path, "--home", home, "--segmentation", "tissue_functions:perfect"
        )
        assert code == 0, words
    folder = LabelStore(root=str(home / "store")).folder("b")
    folder.write_failure(TileFailure("y000x000", "OSError", "no", ""))
    labels = Path(str(folder.labels(folder.plan()).path))
    for path in (folder.path / "plan.json", labels / "provenance.json"):
        for damage in DAMAGES:
            if path.name == "provenance.json" and damage is _newer:
                continue
            with damaged(Path(str(path)), damage):
                code, words = call_command_line("status", "--home", home)
                assert code == 2, (path, damage, words)
                assert names(words, "image 'b'", path.name), (path, damage)
                assert names(words, "a: labels", "c: labels"), (path, damage)
                assert call_command_line("status", "a", "--home", home)[0] == 0
    for damage in DAMAGES:
        path = folder.path / "failures" / "y000x000.json"
        with damaged(Path(str(path)), damage):
            code, words = call_command_line("status", "--home", home)
            assert code == 0, damage
            assert names(words, "b/y000x000", "UnreadableRecord"), damage
    with damaged(Path(str(folder.path / "plan.json")), _cut):  # it is planned anew, as it says
        code, words = call_command_line("run", home.parent / "b.tif", "--home", home)
        assert code == 0, words
    quarantine = home / "store" / ".quarantine"
    quarantine.mkdir()
    (quarantine / "x-1.json").write_text("[")
    (quarantine / "y-1.json").write_text('{"reason": "it is no image"}')
    code, words = call_command_line("status", "--home", home)
    assert code == 0
    assert names(words, "x-1 was refused", "damaged", "it is no image")


@pytest.mark.slow
def test_one_bad_image_of_a_run_stops_no_other(home):
    for key in "abc":
        write_tiff(home.parent / f"{key}.tif", tissue((40, 40)))
    (home.parent / "b.tif").write_bytes(b"II*\0 not a TIFF")
    paths = [home.parent / f"{key}.tif" for key in "abc"]
    options = ("--home", home, "--segmentation", "tissue_functions:perfect")
    code, words = call_command_line("run", *paths, *options)
    assert code == 2
    assert names(words, "a: ", "c: ", "b.tif")
    folder = LabelStore(root=str(home / "store")).folder("b")
    write_tiff(home.parent / "b.tif", tissue((40, 40)))
    folder.path.mkdir(parents=True)
    (folder.path / "acquisition.json").mkdir()
    code, words = call_command_line("run", *paths, *options)
    assert code == 2
    assert names(words, "a: ", "c: ", "acquisition.json")

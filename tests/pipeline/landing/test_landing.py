"""What lies in the landing folder, and when it is complete."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from upath import UPath

from patchworks_core.errors import PlanError
from patchworks_core.files.storage import as_path
from patchworks_core.tiles.regions import Region
from patchworks_pipeline.landing import candidates
from patchworks_pipeline.landing.arrivals import (
    MAX_PENDING,
    Arrival,
    Ledger,
    Look,
    Quarantine,
    Version,
    Watch,
    look,
    looks_from_json,
    looks_to_json,
    signature_of,
    why_unreadable,
)
from patchworks_pipeline.landing.candidates import Candidate, LandingLayout, find_candidates
from patchworks_pipeline.landing.opening import Opening
from patchworks_pipeline.landing.registered import LEDGER, key_of, keys_of, registered_keys
from patchworks_pipeline.records import Acquisition, ImageFolder
from tests.tissue import tissue, write_tiff

SETTLE = 10


class Landing:
    """A landing folder that is looked at every now and then."""

    def __init__(self, layout: LandingLayout, path: UPath) -> None:
        self.layout = layout
        self.ledger = Ledger(path / "ledger.json")
        self.quarantine = Quarantine(path / "quarantine")
        self.seen: dict[str, tuple[str, int]] = {}
        self.max_arrivals = 100

    def candidates(self) -> list[Candidate]:
        return find_candidates(self.layout, taken=self.ledger.taken)

    def look(self, now: int, *again: str) -> Look:
        found = look(
            self.candidates(),
            Watch(SETTLE, self.max_arrivals),
            now=now,
            looks=looks_from_json(json.loads(json.dumps(looks_to_json(self.seen)))),
            ledger=self.ledger,
            refused=self.quarantine.names(),
            again=again,
        )
        self.seen = found.looks
        return found

    def arrivals(self, now: int) -> list[str]:
        return [arrival.candidate.key for arrival in self.look(now).arrivals]

    def take(self, now: int) -> list[Arrival]:
        """Look, and enter what arrived into the ledger."""
        found = self.look(now).arrivals
        self.ledger.taken |= {each.candidate.url: each.version for each in found}
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "landing"
    folder.mkdir()
    return folder


@pytest.fixture
def landing(folder: Path, tmp_path: Path) -> Landing:
    return Landing(LandingLayout(str(folder)), as_path(tmp_path / "store"))


@pytest.fixture
def in_memory() -> Iterator[UPath]:
    folder = UPath(f"memory://{uuid.uuid4().hex}")
    folder.mkdir()
    yield folder
    folder.fs.rm(folder.path, recursive=True)


def write_image_group(folder: Path, shape: tuple[int, int] = (8, 8)) -> Path:
    """Write an OME-Zarr 0.5 image."""
    group = zarr.create_group(str(folder), overwrite=True)
    array = group.create_array("0", shape=shape, chunks=(4, 4), dtype="u1")
    array[...] = 7
    axes = [{"name": axis, "type": "space"} for axis in "yx"]
    transformations = [{"type": "scale", "scale": [1.0, 1.0]}]
    datasets = [{"path": "0", "coordinateTransformations": transformations}]
    multiscales = [{"axes": axes, "datasets": datasets}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    return folder


def plate_record(wells: list[str]) -> dict[str, object]:
    """Return the metadata of a plate with these wells."""
    rows = sorted({well.split("/")[0] for well in wells})
    columns = sorted({well.split("/")[1] for well in wells})
    return {
        "rows": [{"name": name} for name in rows],
        "columns": [{"name": name} for name in columns],
        "wells": [
            {"path": well, "rowIndex": rows.index(row), "columnIndex": columns.index(column)}
            for well in wells
            for row, column in [well.split("/")]
        ],
    }


def write_plate(folder: Path, wells: dict[str, int]) -> None:
    """Write an OME-NGFF plate with so many fields per well."""
    plate = zarr.create_group(str(folder))
    plate.attrs["ome"] = {"version": "0.5", "plate": plate_record(list(wells))}
    for well, n_fields in wells.items():
        group = zarr.create_group(f"{folder}/{well}")
        images = [{"path": str(field)} for field in range(n_fields)]
        group.attrs["ome"] = {"version": "0.5", "well": {"images": images}}
        for field in range(n_fields):
            write_image_group(folder / well / str(field))


# What lies there


def test_a_landing_folder_that_was_not_made_yet_holds_nothing(tmp_path):
    assert find_candidates(LandingLayout(str(tmp_path / "nowhere"))) == []


def test_every_format_that_can_be_read_is_found_and_nothing_else(folder):
    for name in ("a.tif", "b.ome.tiff", "c.png", "D.TIF", "notes.txt", ".e.tif", "f.tif.part"):
        (folder / name).touch()
    (folder / "g.ome.zarr").mkdir()
    (folder / "subfolder").mkdir()
    found = find_candidates(LandingLayout(str(folder)))
    assert [(each.name, each.key) for each in found] == [
        ("D.TIF", "D"),
        ("a.tif", "a"),
        ("b.ome.tiff", "b"),
        ("c.png", "c"),
        ("g.ome.zarr", "g"),
    ]
    assert [each.is_folder for each in found] == [False] * 4 + [True]


def test_patterns_reach_into_folders_and_the_folders_are_part_of_the_key(folder):
    for name in ("p 1/a.tif", "p 1/b.png", "p2/a.tif"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    found = find_candidates(LandingLayout(str(folder), patterns=("*/*.tif",)))
    assert [(each.name, each.key) for each in found] == [
        ("p 1/a.tif", "p_1_a"),
        ("p2/a.tif", "p2_a"),
    ]


def test_a_folder_whose_name_has_brackets_is_searched(tmp_path):
    folder = tmp_path / "[landing]"
    folder.mkdir()
    (folder / "a.tif").touch()
    assert len(find_candidates(LandingLayout(str(folder)))) == 1


def test_a_template_makes_the_key_of_its_fields(folder):
    for name in ("plate1/B03/f0.ome.tif", "plate1/B03/f1.ome.tif", "plate1/B03/f1.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = find_candidates(LandingLayout(str(folder), template="{plate}/{well}/{field}.ome.tif"))
    assert [each.key for each in found] == ["plate1_B03_f0", "plate1_B03_f1"]


def test_a_template_without_fields_is_refused():
    with pytest.raises(PlanError, match=r"must name fields in braces, got 'plate/\*.tif'"):
        LandingLayout("landing", template="plate/*.tif")


def test_a_marker_that_would_be_the_same_for_all_is_refused():
    with pytest.raises(PlanError, match=r"must contain \{name\} or \{stem\}, got 'done'"):
        LandingLayout("landing", marker="done")


def test_every_field_of_a_plate_is_an_acquisition(folder):
    write_plate(folder / "plate1.ome.zarr", {"B/03": 2, "C/4": 1})
    found = find_candidates(LandingLayout(str(folder)))
    assert [each.key for each in found] == ["plate1_B03_0", "plate1_B03_1", "plate1_C4_0"]
    assert found[0].url == str(folder / "plate1.ome.zarr" / "B" / "03" / "0")
    assert why_unreadable(found[0].acquisition()) is None


def test_wells_that_are_not_written_yet_have_no_fields_yet(folder):
    plate = zarr.create_group(str(folder / "plate.zarr"))
    plate.attrs["ome"] = {"version": "0.5", "plate": plate_record(["A/1"])}
    assert find_candidates(LandingLayout(str(folder))) == []


def test_a_well_with_damaged_metadata_stands_for_its_fields_and_hides_no_other(folder):
    write_plate(folder / "p.zarr", {"A/1": 1, "B/2": 1})
    (folder / "p.zarr" / "A" / "1" / "zarr.json").write_text('{"zarr_format": 3, "node')
    found = find_candidates(LandingLayout(str(folder)))
    assert [each.key for each in found] == ["p_A_1", "p_B2_0"]
    assert "cannot open" in str(why_unreadable(found[0].acquisition()))


def test_a_plate_whose_metadata_are_not_valid_is_refused_with_the_reason(folder):
    plate = zarr.create_group(str(folder / "plate.zarr"))
    plate.attrs["ome"] = {"version": "0.5", "plate": {"wells": [{"path": "A/1"}]}}
    (candidate,) = find_candidates(LandingLayout(str(folder)))
    assert candidate.key == "plate"
    assert "not a valid OME-Zarr 0.4 or 0.5 plate" in str(why_unreadable(candidate.acquisition()))


@pytest.mark.parametrize("series", [None, ["0", "1"]])
def test_every_series_that_bioformats2raw_wrote_is_an_acquisition(folder, series):
    root = zarr.create_group(str(folder / "scan.zarr"))
    root.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    if series is not None:
        record = {"version": "0.5", "series": [*series, "2"]}  # the last is not written yet
        root.create_group("OME").attrs["ome"] = record
    for name in ("0", "1"):
        write_image_group(folder / "scan.zarr" / name)
    found = find_candidates(LandingLayout(str(folder)))
    assert [each.key for each in found] == ["scan_0", "scan_1"]
    assert [why_unreadable(each.acquisition()) for each in found] == [None, None]


def test_every_multiscale_of_a_group_is_an_acquisition(folder):
    group = zarr.open_group(str(write_image_group(folder / "a.zarr")))
    ome = group.attrs["ome"]
    group.attrs["ome"] = {**ome, "multiscales": ome["multiscales"] * 2}
    found = find_candidates(LandingLayout(str(folder)))
    assert [(each.key, each.name) for each in found] == [("a_0", "a.zarr#0"), ("a_1", "a.zarr#1")]
    assert [why_unreadable(each.acquisition()) for each in found] == [None, None]
    assert [signature_of(each) is not None for each in found] == [True, True]


def test_a_plate_of_zarr_v2_is_a_plate(folder):
    plate = zarr.create_group(str(folder / "plate.zarr"), zarr_format=2)
    plate.attrs["plate"] = plate_record(["A/1"])
    plate.create_group("A/1").attrs["well"] = {"images": [{"path": "0"}]}
    assert [each.key for each in find_candidates(LandingLayout(str(folder)))] == ["plate_A1_0"]


def test_a_plate_whose_metadata_lead_out_of_it_is_no_plate(folder):
    plate = zarr.create_group(str(folder / "plate.zarr"))
    plate.attrs["ome"] = {"plate": {"wells": [{"path": "../../etc"}]}}
    (candidate,) = find_candidates(LandingLayout(str(folder)))
    assert candidate.key == "plate"
    assert why_unreadable(candidate.acquisition()) is not None


def test_a_name_of_which_no_key_can_be_made_hides_no_other(folder):
    for name in ("___.tif", "a.tif"):
        (folder / name).touch()
    assert [each.key for each in find_candidates(LandingLayout(str(folder)))] == ["", "a"]


def test_a_landing_folder_may_be_a_url(in_memory, tmp_path):
    (in_memory / "a.tif").write_bytes(b"12")
    landing = Landing(LandingLayout(str(in_memory)), as_path(tmp_path))
    assert [each.url for each in landing.candidates()] == [f"{in_memory}/a.tif"]
    assert landing.arrivals(0) == []
    assert landing.arrivals(SETTLE) == ["a"]
    (in_memory / "b.tif").write_bytes(b"1")
    assert landing.arrivals(SETTLE + 1) == []
    assert "b.tif" in landing.seen


# When it is complete


def test_a_file_is_complete_once_it_was_still_for_long_enough(folder, landing):
    (folder / "a.tif").write_bytes(b"half")
    assert landing.arrivals(100) == []
    assert landing.arrivals(100 + SETTLE - 1) == []
    (folder / "a.tif").write_bytes(b"half and more")
    assert landing.arrivals(100 + SETTLE) == []
    assert landing.arrivals(100 + 2 * SETTLE) == ["a"]


def test_a_zarr_folder_is_complete_once_no_chunk_changes(folder, landing):
    path = write_image_group(folder / "a.ome.zarr")
    assert landing.arrivals(0) == []
    (path / "0" / "c" / "9").write_bytes(b"one chunk more")
    assert landing.arrivals(SETTLE) == []
    assert landing.arrivals(2 * SETTLE) == ["a"]


def test_a_zarr_folder_without_metadata_is_never_complete(folder, landing):
    (folder / "a.ome.zarr" / "0").mkdir(parents=True)
    (folder / "a.ome.zarr" / "0" / "chunk").write_bytes(b"1")
    assert landing.arrivals(0) == []
    assert landing.look(10 * SETTLE).n_waiting == 1


def test_what_was_taken_is_not_taken_again(folder, landing):
    (folder / "a.tif").write_bytes(b"1")
    write_image_group(folder / "b.ome.zarr")
    landing.look(0)
    assert len(landing.take(SETTLE)) == 2
    landing.seen = {}
    for now in range(2 * SETTLE, 6 * SETTLE, SETTLE):
        assert landing.take(now) == []
    assert landing.seen == {}


def test_what_is_written_over_is_a_new_version_of_the_same_key(folder, landing):
    (folder / "a.tif").write_bytes(b"1")
    write_image_group(folder / "b.ome.zarr")
    landing.look(0)
    first = landing.take(SETTLE)
    (folder / "a.tif").write_bytes(b"other")
    write_image_group(folder / "b.ome.zarr", (16, 16))
    assert landing.take(2 * SETTLE) == []
    second = landing.take(3 * SETTLE)
    assert [each.candidate.key for each in second] == ["a", "b"]
    assert not {each.name for each in first} & {each.name for each in second}


def test_a_changed_chunk_alone_is_seen_when_its_turn_comes(folder, landing):
    path = write_image_group(folder / "a.ome.zarr")
    landing.look(0)
    landing.take(SETTLE)
    (path / "0" / "c" / "0" / "0").write_bytes(b"other pixels")
    assert landing.look(2 * SETTLE).looks == {}
    assert "a.ome.zarr" in landing.look(3 * SETTLE, str(path)).looks
    assert [each.candidate.key for each in landing.take(4 * SETTLE)] == ["a"]


def test_a_marker_completes_an_acquisition_at_once(folder, tmp_path):
    landing = Landing(LandingLayout(str(folder), marker="{name}.done"), as_path(tmp_path))
    (folder / "a.tif").write_bytes(b"1")
    assert landing.take(0) == []
    assert landing.take(5 * SETTLE) == []
    (folder / "a.tif.done").touch()
    assert [each.candidate.key for each in landing.take(6 * SETTLE)] == ["a"]
    (folder / "a.tif").write_bytes(b"written over, and the marker is still there")
    assert landing.take(7 * SETTLE) == []
    assert [each.candidate.key for each in landing.take(8 * SETTLE)] == ["a"]


def test_a_marker_may_be_named_by_the_stem(folder, tmp_path):
    landing = Landing(LandingLayout(str(folder), marker="{stem}.ok"), as_path(tmp_path))
    (folder / "a.ome.tif").write_bytes(b"1")
    (folder / "a.ok").touch()
    assert landing.arrivals(0) == ["a"]


def test_the_marker_of_a_plate_stands_for_its_fields(folder, tmp_path):
    landing = Landing(LandingLayout(str(folder), marker="{name}.done"), as_path(tmp_path))
    write_plate(folder / "p.zarr", {"A/1": 2})
    assert landing.arrivals(0) == []
    (folder / "p.zarr.done").touch()
    assert landing.arrivals(1) == ["p_A1_0", "p_A1_1"]


@pytest.mark.slow
def test_thousands_come_in_pages_and_each_once(folder, landing):
    for n in range(2500):
        (folder / f"{n:04}.tif").write_bytes(b"1")
    landing.max_arrivals = 400
    taken: list[str] = []
    for now in range(0, 12 * SETTLE, SETTLE):
        page = landing.take(now)
        assert len(page) <= 400
        assert len(landing.seen) <= MAX_PENDING
        taken += [each.candidate.key for each in page]
    assert len(taken) == len(set(taken)) == 2500


def test_one_that_is_taken_away_meanwhile_stops_nothing(folder, landing):
    (folder / "a.tif").write_bytes(b"1")
    candidates = landing.candidates()
    (folder / "a.tif").unlink()
    watch = Watch(0, 1)
    found = look(candidates, watch, now=0, looks={}, ledger=landing.ledger)
    assert (found.arrivals, found.n_waiting) == ([], 1)


# What is remembered


def test_a_ledger_is_read_as_it_was_written(tmp_path):
    keys = {"/landing/a.tif": "a", "/landing/b.tif": "b"}
    ledger = Ledger(
        as_path(tmp_path / "ledger.json"), {"/landing/a.tif": Version("s", "g")}, keys=keys
    )
    ledger.write()
    assert Ledger.read(ledger.path) == ledger


TAKEN = {"/landing/a.tif": Version("s", "g"), "/landing/b.tif": Version("t", "h")}

DAMAGED = [b"", b"[1]", b"\xff\xfe\x00", b'{"a": ', b"[" * 100_000, b'{"a": 3, "digest": "0"}']


@pytest.mark.parametrize("content", DAMAGED)
def test_of_a_damaged_ledger_there_is_a_copy(tmp_path, content):
    path = as_path(tmp_path / "ledger.json")
    Ledger(path, TAKEN).write()
    path.write_bytes(content)
    ledger = Ledger.read(path)
    assert ledger.taken == TAKEN
    assert "ledger.json is damaged or lost; its copy 'ledger.json.copy' is used" in ledger.damage
    ledger.write()
    assert Ledger.read(path) == Ledger(path, TAKEN)


def test_a_ledger_that_says_something_else_than_was_written_is_damaged(tmp_path):
    path = as_path(tmp_path / "ledger.json")
    Ledger(path, TAKEN).write()
    path.write_text(path.read_text().replace('"signature": "s"', '"signature": "r"'))
    assert Ledger.read(path).taken == TAKEN


@pytest.mark.parametrize("content", DAMAGED)
def test_a_ledger_that_is_damaged_twice_says_so_and_is_empty(tmp_path, content):
    path = as_path(tmp_path / "ledger.json")
    for place in (path, path.with_name("ledger.json.copy")):
        place.write_bytes(content)
    ledger = Ledger.read(path)
    assert ledger.taken == {}
    assert "and its copy are damaged; what they no longer say" in ledger.damage


def test_of_a_ledger_without_a_seal_the_good_entries_count(tmp_path):
    path = as_path(tmp_path / "ledger.json")
    good = {"signature": "s", "glance": "g"}
    path.write_text(json.dumps({"/landing/a.tif": good, "b": {**good, "glance": 3}, "c": [1]}))
    ledger = Ledger.read(path)
    assert ledger.taken == {"/landing/a.tif": Version("s", "g")}
    assert ledger.damage


def test_a_ledger_of_the_version_before_is_read(tmp_path):
    path = as_path(tmp_path / "ledger.json")
    path.write_text(json.dumps({"/landing/a.tif": {"signature": "s", "glance": "g"}}))
    assert Ledger.read(path) == Ledger(path, {"/landing/a.tif": Version("s", "g")})


def test_a_path_leads_to_the_key_that_its_image_was_taken_under(tmp_path):
    store, taken = as_path(tmp_path), tmp_path / "well_B03.tif"
    assert key_of(store, str(taken)) == "well_B03"
    Ledger(store / LEDGER, keys={str(taken): "1_B03"}).write()
    assert key_of(store, str(taken)) == "1_B03"
    assert keys_of(store, str(taken)) == ["1_B03", "well_B03"]
    assert keys_of(store, "___.tif") == []


def test_keys_are_recalled_from_the_records_of_images_and_damage_hides_no_other(tmp_path):
    store = as_path(tmp_path)
    for key, url in (("a", "/landing/x.tif"), ("x", "/landing/x.tif"), ("z", "/landing/y.tif")):
        ImageFolder(store / key, key).write_acquisition(Acquisition(url))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "acquisition.json").write_bytes(b"{")
    registered = registered_keys(store)
    assert registered == {"/landing/x.tif": ["a", "x"], "/landing/y.tif": ["z"]}
    ledger = Ledger(store / LEDGER, {"/landing/gone.tif": Version("s", "g")})
    assert ledger.lacks_keys
    ledger.recall(registered, {"/landing/x.tif": "x", "/landing/y.tif": "y"})
    assert ledger.keys == {"/landing/x.tif": "x", "/landing/y.tif": "z", "/landing/gone.tif": ""}
    assert not ledger.lacks_keys


@pytest.mark.parametrize("name", ["ledger.json", "ledger.json.copy"])
def test_a_folder_in_place_of_a_ledger_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(PlanError, match=f"{name} says which acquisitions were taken and cannot be"):
        Ledger.read(as_path(tmp_path / "ledger.json"))


def test_what_is_in_quarantine_is_left_alone_until_it_changes(folder, landing):
    (folder / "a.tif").write_bytes(b"1")
    landing.look(0)
    (arrival,) = landing.look(SETTLE).arrivals
    landing.quarantine.refuse(arrival, "it is damaged")
    assert landing.arrivals(2 * SETTLE) == []
    assert landing.arrivals(3 * SETTLE) == []
    assert landing.quarantine.reasons() == {arrival.name: "it is damaged"}
    (folder / "a.tif").write_bytes(b"mended")
    landing.look(4 * SETTLE)
    assert landing.arrivals(5 * SETTLE) == ["a"]


def test_a_signature_is_of_names_sizes_and_times(folder):
    path = write_image_group(folder / "a.zarr")
    candidate = Candidate(str(path), "a.zarr", "a", is_folder=True)
    first = signature_of(candidate)
    assert signature_of(candidate) == first
    (path / "0" / "c" / "0" / "0").rename(path / "0" / "c" / "0" / "2")
    assert signature_of(candidate) != first


# How they are opened


def write_pages(path: Path, n: int = 3) -> Path:
    """Write a TIFF of several pages that says nothing of them."""
    pixels = np.arange(n * 64, dtype="u1").reshape(n, 8, 8)
    tifffile.imwrite(path, pixels, metadata=None, photometric="minisblack")
    return path


def openings(*entries: dict[str, object]) -> tuple[Opening, ...]:
    return tuple(Opening.of(entry) for entry in entries)


def test_the_first_setting_that_fits_the_name_says_how_an_image_is_opened(folder):
    for name in ("a.tif", "b.tif", "c.tiff"):
        write_pages(folder / name)
    zstack = {"match": "*.TIF", "axes": "zyx", "level": 0}
    layout = LandingLayout(
        str(folder), openings=openings({"match": "b*", "axes": "tyx", "channel": "all"}, zstack)
    )
    found = [each.acquisition() for each in find_candidates(layout)]
    assert [each.axes for each in found] == ["zyx", "tyx", None]
    assert [each.channel for each in found] == [0, None, 0]
    assert [why_unreadable(each) is None for each in found] == [True, True, False]


def test_one_image_of_a_file_is_chosen_or_each(folder):
    with tifffile.TiffWriter(folder / "a.tif") as tif:
        tif.write(np.zeros((8, 8), "u1"))
        tif.write(np.zeros((9, 9), "u1"))

    def keys(**chosen):
        layout = LandingLayout(str(folder), openings=openings({"match": "*", **chosen}))
        found = find_candidates(layout)
        assert all(why_unreadable(each.acquisition()) is None for each in found)
        assert all(signature_of(each) is not None for each in found)
        return [(each.key, each.url.rpartition("/")[2]) for each in found]

    assert keys() == [("a", "a.tif")]
    assert keys(series=1) == [("a", "a.tif#1")]
    assert keys(series="all") == [("a_0", "a.tif#0"), ("a_1", "a.tif#1")]


def test_a_setting_may_be_for_one_image_of_a_folder(folder):
    write_plate(folder / "p.zarr", {"A/1": 2})
    layout = LandingLayout(
        str(folder),
        openings=openings({"match": "p.zarr/A/1/1", "level": 1}, {"match": "*.zarr", "axes": "zx"}),
    )
    found = [each.acquisition() for each in find_candidates(layout)]
    assert [(each.level, each.axes) for each in found] == [(0, "zx"), (1, None)]


@pytest.mark.parametrize("size", [[2, 0.5, 0.5], {"z": 2, "y": 0.5, "x": 0.5}])
def test_the_pixel_size_may_be_set_and_is_kept_with_the_image(folder, size):
    write_pages(folder / "a.tif")
    entry = {"match": "*", "axes": "zyx", "pixel_size": size}
    (found,) = find_candidates(LandingLayout(str(folder), openings=openings(entry)))
    acquisition = found.acquisition()
    again = Acquisition.from_json(acquisition.to_json(), where="here")
    assert again == acquisition
    assert again.open().pixel_size == {"z": 2.0, "y": 0.5, "x": 0.5}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "needs match"),
        ({"match": "*", "pixel_size": [0.1, 0]}, "greater than 0"),
        ({"match": "*", "pixel_size": {"c": 1}}, "pixel_size= needs micrometers of the axes"),
        ({"match": "*", "axis": "zyx"}, "has no field 'axis'; the fields are"),
        ({"match": "*", "axes": "zz"}, "needs one letter of 'tczyx' per axis"),
        ({"match": "*", "level": -1}, "level"),
        ({"match": "*", "channel": 1.5}, "needs a number, a name or 'all' for channel"),
        ({"match": "*", "series": True}, "needs a number, a name or 'all' for series"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(entry, words):
    with pytest.raises(PlanError, match=words):
        Opening.of(entry)


def test_what_was_refused_is_tried_again_when_it_is_opened_in_another_way(folder, landing):
    write_pages(folder / "a.tif")
    landing.look(0)
    (arrival,) = landing.look(SETTLE).arrivals
    landing.quarantine.refuse(arrival, str(why_unreadable(arrival.candidate.acquisition())))
    assert landing.arrivals(2 * SETTLE) == []
    landing.layout = replace(landing.layout, openings=openings({"match": "*", "axes": "zyx"}))
    landing.look(3 * SETTLE)
    (again,) = landing.look(4 * SETTLE).arrivals
    assert why_unreadable(again.candidate.acquisition()) is None


# Sets of files


def write_set(folder: Path, images: list[list[str]], *, in_all: bool = True) -> list[Path]:
    """Write OME-TIFF files of one plane each, which name each other, for each of some images."""
    files = [name for names in images for name in names]
    parts = ""
    for number, names in enumerate(images):
        planes = "".join(
            f'<TiffData FirstZ="{z}" FirstT="0" FirstC="0" IFD="0" PlaneCount="1">'
            f'<UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>'
            for z, name in enumerate(names)
        )
        parts += (
            f'<Image ID="Image:{number}" Name="p{number}"><Pixels ID="Pixels:{number}" '
            'DimensionOrder="XYZCT" Type="uint8" SizeX="9" SizeY="8" '
            f'SizeZ="{len(names)}" SizeC="1" SizeT="1">'
            f'<Channel ID="Channel:{number}:0" SamplesPerPixel="1"/>{planes}</Pixels></Image>'
        )
    for i, name in enumerate(files):
        ome = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
        xml = f'<?xml version="1.0"?><OME xmlns="{ome}" UUID="urn:uuid:{name}">{parts}</OME>'
        description = xml.encode() if in_all or i == 0 else None
        pixels = np.full((8, 9), i + 1, "u1")
        tifffile.imwrite(folder / name, pixels, description=description, metadata=None)
    return [folder / name for name in files]


def all_of(candidate: Candidate) -> list[int]:
    image = candidate.acquisition().open()
    pixels = image.read(Region((0,) * image.ndim, image.shape))
    return sorted({int(value) for value in pixels.ravel()})


@pytest.mark.parametrize("in_all", [True, False])
def test_a_set_of_files_is_one_acquisition_once_all_of_it_is_there(folder, landing, in_all):
    # As Micro-Manager names its stacks; there the first file alone describes the others.
    names = ["s_MMStack.ome.tif", "s_MMStack_1.ome.tif", "s_MMStack_2.ome.tif"]
    files = write_set(folder, [names], in_all=in_all)
    aside = files[2].rename(folder / "aside")
    assert landing.arrivals(0) == []
    assert landing.arrivals(SETTLE) == []
    assert landing.arrivals(9 * SETTLE) == []
    aside.rename(files[2])
    assert landing.arrivals(10 * SETTLE) == []
    (arrival,) = landing.take(11 * SETTLE)
    assert (arrival.candidate.key, arrival.candidate.url) == ("s_MMStack", str(files[0]))
    assert all_of(arrival.candidate) == [1, 2, 3]
    assert landing.arrivals(12 * SETTLE) == landing.arrivals(13 * SETTLE) == []


def test_a_file_of_a_set_that_changes_makes_a_new_version_of_it(folder, landing):
    files = write_set(folder, [["a0.ome.tif", "a1.ome.tif"]])
    landing.look(0)
    landing.take(SETTLE)
    os.utime(files[1], ns=(0, 0))
    assert landing.arrivals(2 * SETTLE) == []
    assert landing.arrivals(3 * SETTLE) == ["a0"]


def test_every_image_of_a_set_is_an_acquisition(folder):
    write_set(folder, [["p0.ome.tif"], ["p1.ome.tif", "p2.ome.tif"]])
    found = find_candidates(LandingLayout(str(folder)))
    assert [each.key for each in found] == ["p0_0", "p0_1"]
    assert [all_of(each) for each in found] == [[1], [2, 3]]


def test_a_file_is_read_once_to_see_whether_it_is_of_a_set(folder, landing, monkeypatch):
    write_set(folder, [["a.ome.tif", "b.ome.tif"]])
    tifffile.imwrite(folder / "c.tif", np.zeros((8, 9), "u1"))
    asked = []
    monkeypatch.setattr(candidates, "other_files", lambda url: asked.append(url) or (1, ()))
    landing.candidates()
    landing.candidates()
    assert len(asked) == 3


def test_a_file_that_was_renamed_is_no_part_of_a_set(folder):
    (file,) = write_set(folder, [["old.ome.tif"]])
    file.rename(folder / "new.ome.tif")
    (found,) = find_candidates(LandingLayout(str(folder)))
    assert (found.key, found.others) == ("new", ())
    assert signature_of(found) is not None
    assert all_of(found) == [1]


def test_a_set_that_leads_elsewhere_is_refused_with_the_reason(folder):
    write_set(folder, [["b.ome.tif", "c.ome.tif"]], in_all=False)
    content = (folder / "b.ome.tif").read_bytes().replace(b'"c.ome.tif"', b'"../c.ome.t"')
    (folder / "b.ome.tif").write_bytes(content)
    found = {each.key: each for each in find_candidates(LandingLayout(str(folder)))}
    assert found["b"].others == ()
    assert "lie in one folder" in str(why_unreadable(found["b"].acquisition()))


# What can be read


def test_what_can_be_opened_has_no_reason_against_it(folder):
    assert why_unreadable(Acquisition(str(write_tiff(folder / "a.tif", tissue())))) is None
    assert why_unreadable(Acquisition(str(write_image_group(folder / "a.zarr")))) is None
    np.save(folder / "a.npy", tissue())
    assert why_unreadable(Acquisition(str(folder / "a.npy"))) is None


def test_only_the_header_of_a_picture_is_read(folder, monkeypatch):
    import imageio.v3 as iio

    path = folder / "a.png"
    iio.imwrite(path, np.zeros((4, 5), "u1"))
    monkeypatch.setattr("patchworks_pipeline.records.open_image", None)
    assert why_unreadable(Acquisition(str(path))) is None
    path.write_bytes(b"not a picture")
    assert "may be damaged" in why_unreadable(Acquisition(str(path)))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("a.tif", b"not a tiff", "a.tif"), ("a.tif", b"", "a.tif"), ("a.npy", b"no", "a.npy")],
)
def test_why_a_file_cannot_be_read_is_said_in_words(folder, name, content, reason):
    (folder / name).write_bytes(content)
    assert reason in why_unreadable(Acquisition(str(folder / name)))


def test_a_file_that_is_gone_is_not_called_unreadable(folder):
    with pytest.raises(FileNotFoundError):
        why_unreadable(Acquisition(str(folder / "a.png")))

"""What is wrong with the input of a command is one line and an exit code, never a traceback."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from patchworks_pipeline.cli import commands
from patchworks_pipeline.cli.main import app
from tests.pipeline.conftest import call_command_line
from tests.tissue import marked_tissue, tissue, write_tiff

OF_AN_IMAGE = ("segment", "pilot", "convert", "view", "run")
OF_A_HOME = ("status", "retry", "merge", "run", "ui", "demo")


def call(command: str, image: object, tmp_path: Path, *more: object) -> tuple[int, str]:
    """Call a command that takes an image, with whatever else it cannot do without."""
    output = ("-o", tmp_path / "out.png" if command == "view" else tmp_path / "out.ome.zarr")
    tiles = ("--tile-shape", 32) if command in ("segment", "pilot", "run") else ()
    needed = output if command in ("segment", "convert", "view") else ()
    return call_command_line(command, image, *needed, *tiles, *more)


def says(found: tuple[int, str], *wanted: object) -> bool:
    """Tell whether a command was refused in words that name all of these."""
    code, printed = found
    assert code == 2, found
    assert printed.count("error: ") == 1, found
    assert "Traceback" not in printed, found
    missing = [each for each in wanted if str(each) not in printed]
    assert not missing, (missing, printed)
    return True


@pytest.mark.parametrize("command", OF_AN_IMAGE)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "no TIFF", "a folder"])
def test_an_image_that_cannot_be_read_is_named(home, tmp_path, command, damage):
    path = write_tiff(tmp_path / "a.tif", tissue())
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        changed = {"empty": b"", "cut": content[: len(content) // 2], "no TIFF": b"no TIFF" * 99}
        path.write_bytes(changed[damage])
    assert says(call(command, path, tmp_path), "a.tif")


@pytest.mark.parametrize("command", ["segment", "pilot", "run"])
def test_a_function_that_there_is_not_is_named(home, tmp_path, command):
    path = write_tiff(tmp_path / "a.tif", tissue())
    for name in ("nothing", "no_module:f", "tissue_functions:nothing"):
        found = call(command, path, tmp_path, "--segmentation", name)
        assert says(found, name.partition(":")[0])


def test_a_stage_of_another_grid_is_not_taken_up(home, tmp_path):
    path = write_tiff(tmp_path / "a.tif", marked_tissue())
    more = ("--segmentation", "tissue_functions:fails_at_mark", "--overlap", 8)
    output = ("segment", path, "-o", tmp_path / "out.ome.zarr", *more)
    assert call_command_line(*output, "--tile-shape", 32)[0] == 3
    assert says(call_command_line(*output, "--tile-shape", 48, "--resume"), "tile_shape", "32")


def test_a_pilot_of_a_function_that_returns_a_mask_says_so(home, tmp_path):
    path = write_tiff(tmp_path / "a.tif", tissue())
    found = call("pilot", path, tmp_path, "--segmentation", "tissue_functions:mask")
    assert says(found, "bool")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["status", "retry", "merge"])
def test_a_key_that_names_no_image_is_named(home, tmp_path, command):
    path = write_tiff(tmp_path / "a.tif", tissue((40, 40)))
    assert call("run", path, tmp_path, "--segmentation", "tissue_functions:perfect")[0] == 0
    for key in ("???", "..", "", "/", "nothing"):
        assert says(call_command_line(command, key), repr(key))


@pytest.mark.parametrize(
    ("command", "damage"),
    [
        (command, damage)
        for command in OF_A_HOME
        for damage in ("a file", "settings", "instance", "tables")
        # It serves: what is wrong with the settings stands in the UI.
        if (command, damage) != ("ui", "settings")
    ],
)
def test_a_home_that_cannot_be_opened_is_named(home, tmp_path, monkeypatch, command, damage):
    image = {
        "retry": ("a",),
        "merge": ("a",),
        "run": (write_tiff(tmp_path / "a.tif", tissue((40, 40))),),
        "ui": ("--port", _free_port()),
    }.get(command, ())
    if damage == "a file":
        home.write_text("")
        wanted: str | Path = home
    else:
        (home / "dagster" / "history" / "runs").mkdir(parents=True)
        name = {
            "settings": "patchworks.yaml",
            "instance": "dagster/dagster.yaml",
            "tables": "dagster/history/runs.db",
        }[damage]
        (home / name).write_text("store: {roots: 1}" if damage == "settings" else "}[ no" * 999)
        wanted = "patchworks.yaml" if damage == "settings" else home
    found = call_command_line(command, *image, "--home", home)
    if damage == "settings" and command in ("retry", "merge"):
        assert says(found)  # there is no such image either
    else:
        assert says(found, wanted)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_port_that_is_taken_is_named(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert says(call_command_line("ui", "--port", port), f"port {port}", "in use")


@pytest.mark.parametrize("command", ["segment", "convert", "view"])
def test_an_output_where_nothing_can_be_written_is_named(home, tmp_path, command):
    path = write_tiff(tmp_path / "a.tif", tissue((40, 40)))
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "out.ome.zarr"
    assert says(call_command_line(command, path, "-o", output), tmp_path / "file")


def test_labels_that_are_not_there_are_named(home, tmp_path):
    path = write_tiff(tmp_path / "a.tif", tissue((40, 40)))
    assert says(call("view", path, tmp_path, "--labels", tmp_path / "no.zarr"), "no.zarr")


def test_what_the_machine_lacks_is_no_bad_input_and_an_error_of_the_code_passes(monkeypatch):
    (status,) = [each for each in app.registered_commands if each.callback.__name__ == "status"]

    def failing(error: Exception):
        def status() -> None:
            raise error

        return status

    monkeypatch.setattr(status, "callback", failing(OSError(errno.ENOSPC, "No space left", "x")))
    assert call_command_line("status") == (1, "error: no space left: 'x'")
    monkeypatch.setattr(status, "callback", failing(ZeroDivisionError("of the code")))
    with pytest.raises(ZeroDivisionError):
        call_command_line("status")
    assert commands.code_of(ValueError()) == 2


def test_a_port_that_is_none_and_a_setting_that_is_none_start_no_server(tmp_path, monkeypatch):
    home = ["--home", str(tmp_path)]
    code, err = call_command_line("ui", *home, "--port", "99999")
    assert (code, "65535" in err) == (2, True), err
    monkeypatch.setenv("PATCHWORKS_AUTOMATION", "perhaps")
    code, err = call_command_line("ui", *home)
    assert (code, "must be one of" in err) == (2, True), err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tile-timeout", "abc"), "must be a valid number"),
        (("--tile-timeout", "-1"), "must be greater than or equal to 0, got '-1'"),
        (("--workers", "0"), "must be greater than or equal to 1, got '0'"),
        (("--min-iou", "half"), "got 'half'"),
        (("--worker-kind", "fibers"), "'fibers' is not one of 'auto', 'threads', 'processes'."),
    ],
)
def test_a_value_that_an_option_cannot_have_is_repeated(monkeypatch, options, words):
    monkeypatch.setenv("COLUMNS", "200")
    code, printed = call_command_line("run", "a.tif", *options)
    assert code == 2
    assert words in printed
    assert f"Invalid value for '{options[0]}'" in printed
    assert printed.count(options[1]) == 1

"""What may change between a call that was interrupted and the next one: never are tiles mixed.

Each row of the table in ``docs/performance.md`` is run here, and the page has to say what came out.
"""

from __future__ import annotations

import importlib
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from patchworks_core import ImageError, StageError, TilesFailedError, tile_process
from patchworks_core.plugins import user_modules

PAGE = Path(__file__).parents[3] / "docs" / "performance.md"

PIXELS = (np.random.default_rng(0).random((2, 64, 96)) < 0.4).astype("u1") * 9
N_TILES = 6

HELPER = "LEVEL = 0\ndef above(tile, level): return tile > LEVEL + level\n"
METHOD = """
import os, threading
from scipy import ndimage
import helper

OFFSET, SETTINGS = 0, {"level": 0}

def label(tile, level=0, weights=None):
    level += int(os.environ.get("LEVEL_OF_CALL", "0"))
    with open(os.environ["TILES_OF_CALL"], "a") as tiles:
        tiles.write(".")
        if os.path.exists(tiles.name + "-fails") and tiles.tell() == 6:
            raise ValueError("the last tile")
    return ndimage.label(helper.above(tile, level + OFFSET))[0]

def of_settings(tile):
    return label(tile, SETTINGS["level"])

def locked(lock=threading.Lock()):
    def function(tile):
        with lock:
            return label(tile)
    return function
"""


class Bench:
    """An image, a module with a function, and a call that was interrupted at its last tile."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.image: str | Path = folder / "image.zarr"
        self.weights = folder / "weights.bin"
        self.weights.write_bytes(b"one")
        self.options: dict[str, Any] = {"tile_shape": 32, "merge": "touching", "max_workers": 1}
        self.fn: str | Callable[..., Any] = "label"
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("TILES_OF_CALL", str(folder / "tiles"))
        self.edit("helper", HELPER)
        self.edit("method", METHOD)
        write_image(folder / "image.zarr", PIXELS)

    def edit(self, name: str, source: str) -> None:
        (self.folder / f"{name}.py").write_text(source)

    def module(self) -> ModuleType:
        """Import the function anew, as the next process does."""
        for name in ("helper", "method"):
            self.monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return importlib.import_module("method")

    def call(self, **options: Any) -> int:
        """Call, and return how many tiles were segmented."""
        (self.folder / "tiles").write_text("")
        function = getattr(self.module(), self.fn) if isinstance(self.fn, str) else self.fn
        given = {**self.options, "write_to": self.folder / "labels.zarr", **options}
        tile_process(str(self.image), function, **given)
        return len((self.folder / "tiles").read_text())

    def interrupted(self) -> None:
        fails = self.folder / "tiles-fails"
        fails.touch()
        with pytest.raises(TilesFailedError):
            self.call()
        fails.unlink()


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write an OME-Zarr image of two channels and two levels, uncompressed."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    for level in (0, 1):
        data = pixels.repeat(2, 1).repeat(2, 2) if level == 0 else pixels
        group.create_array(f"{level}", data=data, chunks=(1, 32, 32), compressors=None)
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space"} for a in "yx")]
    scales = [[1.0, 1.0, 1.0], [1.0, 2.0, 2.0]]
    datasets = [
        {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        for i, scale in enumerate(scales)
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


# What may change: each is told how to set the call up, and gives what the next one is called with.


def nothing(bench: Bench) -> dict[str, Any]:
    return {}


def clutter(bench: Bench) -> dict[str, Any]:
    (bench.folder / "image.zarr" / "1" / ".DS_Store").write_bytes(b"x")
    return {}


def merge_rule(bench: Bench) -> dict[str, Any]:
    return {"merge": "none"}


def n_workers(bench: Bench) -> dict[str, Any]:
    return {"max_workers": 2}


def pixels(bench: Bench) -> dict[str, Any]:
    write_image(bench.folder / "image.zarr", PIXELS[:, ::-1])
    return {}


def touched(bench: Bench) -> dict[str, Any]:
    os.utime(chunk_of(bench), (1, 1))
    return {}


def chunk_of(bench: Bench) -> Path:
    return next(p for p in bench.folder.rglob("image.zarr/1/*") if p.name.startswith("0.0"))


def same_size_and_time(bench: Bench) -> dict[str, Any]:
    chunk = chunk_of(bench)
    status = chunk.stat()
    chunk.write_bytes(chunk.read_bytes()[::-1])
    os.utime(chunk, ns=(status.st_atime_ns, status.st_mtime_ns))
    return {}


def write_set(bench: Bench, planes: np.ndarray) -> None:
    ids = [uuid.UUID(int=i) for i in range(len(planes))]
    data = "".join(
        f'<TiffData FirstZ="{i}" FirstT="0" FirstC="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="z{i}.ome.tif">urn:uuid:{ids[i]}</UUID></TiffData>'
        for i in range(len(planes))
    )
    for own, plane in enumerate(planes):
        xml = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{ids[own]}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            f'DimensionOrder="XYZCT" Type="uint8" SizeX="96" SizeY="64" SizeZ="{len(planes)}" '
            'SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
            f"{data}</Pixels></Image></OME>"
        )
        path = bench.folder / f"z{own}.ome.tif"
        tifffile.imwrite(path, plane, description=xml.encode(), metadata=None)


def file_of_a_set(bench: Bench) -> dict[str, Any]:
    write_set(bench, np.stack([PIXELS[0], PIXELS[1] * 0]))
    return {}


def function(bench: Bench) -> dict[str, Any]:
    bench.edit("method", METHOD.replace("level + OFFSET", "level + OFFSET + 1"))
    return {}


def helper_module(bench: Bench) -> dict[str, Any]:
    bench.edit("helper", HELPER.replace("tile >", "tile >="))
    return {}


def global_number(bench: Bench) -> dict[str, Any]:
    bench.edit("method", METHOD.replace("OFFSET, SETTINGS = 0", "OFFSET, SETTINGS = 1"))
    return {}


def global_of_helper(bench: Bench) -> dict[str, Any]:
    bench.edit("helper", HELPER.replace("LEVEL = 0", "LEVEL = 1"))
    return {}


def dictionary(bench: Bench) -> dict[str, Any]:
    bench.fn = bench.module().of_settings
    bench.fn.__globals__["SETTINGS"]["level"] = 1  # type: ignore[union-attr]
    return {}


def environment(bench: Bench) -> dict[str, Any]:
    bench.monkeypatch.setenv("LEVEL_OF_CALL", "1")
    return {}


def lock(bench: Bench) -> dict[str, Any]:
    return {}


def package(bench: Bench) -> dict[str, Any]:
    before = user_modules.version
    bench.monkeypatch.setattr(
        user_modules, "version", lambda name: "9" if name == "scipy" else before(name)
    )
    return {}


def weights_file(bench: Bench) -> dict[str, Any]:
    bench.weights.write_bytes(b"two")
    return {}


def parameter(bench: Bench) -> dict[str, Any]:
    return {"parameters": {"level": 1}}


def channel(bench: Bench) -> dict[str, Any]:
    return {"channel": 1}


def level(bench: Bench) -> dict[str, Any]:
    return {"level": 0}


def grid(bench: Bench) -> dict[str, Any]:
    return {"tile_shape": 48}


def halo(bench: Bench) -> dict[str, Any]:
    return {"overlap": 4}


TAKEN, ANEW, ASKED = "taken up", "begun anew, and told", "stopped, and asked"
MIXED = "refused: the tiles are named"

TABLE: dict[str, tuple[Callable[[Bench], dict[str, Any]], str, str]] = {
    "nothing": (nothing, TAKEN, ""),
    "`.DS_Store` and other clutter in the image": (clutter, TAKEN, ""),
    "the merge rule, the number of workers": (merge_rule, TAKEN, ""),
    "the number of workers alone": (n_workers, TAKEN, ""),
    "pixels": (pixels, ANEW, "image content"),
    "times of the image's files, with the same pixels": (touched, ANEW, "image content"),
    "pixels, with the same size and time of the file": (same_size_and_time, MIXED, ""),
    "a file of a set of files": (file_of_a_set, ANEW, "image content"),
    "the function": (function, ANEW, "segmentation version"),
    "a module of yours that it imports": (helper_module, ANEW, "segmentation version"),
    "a global number it reads": (global_number, ANEW, "segmentation version"),
    "a global number of a module it imports": (global_of_helper, ANEW, "segmentation version"),
    "a dictionary it reads": (dictionary, ASKED, "may change"),
    "a variable of the environment it reads": (environment, ASKED, "may change"),
    "nothing, and it closes over a lock": (lock, ASKED, "'lock' of"),
    "the version of a package": (package, ANEW, "segmentation version"),
    "the content of a weights file": (weights_file, ANEW, "segmentation version"),
    "a parameter": (parameter, ANEW, "segmentation parameters"),
    "the channel": (channel, ANEW, "channel"),
    "the level": (level, ANEW, "level"),
    "the grid": (grid, ANEW, "tile_shape"),
    "the halo": (halo, ANEW, "halo"),
}


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def prepare(bench: Bench, change: Callable[..., Any]) -> None:
    """Make the call, and interrupt it, that the change is for."""
    bench.options["level"] = 1
    if change is file_of_a_set:
        write_set(bench, PIXELS)
        bench.image = bench.folder / "z0.ome.tif"
        bench.options.update(tile_shape=(1, 64, 32), level=0)
    elif change is dictionary:
        bench.fn = "of_settings"
    elif change is lock:
        bench.fn = bench.module().locked()
    elif change is weights_file:
        bench.options["parameters"] = {"weights": str(bench.weights)}
    bench.interrupted()


def outcome(bench: Bench, caplog: pytest.LogCaptureFixture, **options: Any) -> tuple[str, str]:
    """Return what the next call does, and what it says."""
    caplog.clear()
    try:
        n_tiles = bench.call(**options)
    except ImageError as error:
        return MIXED, str(error)
    except StageError as error:
        kinds = {"pass resume=True to take them up": ASKED, "are of other pixels": MIXED}
        kind = next((kind for words, kind in kinds.items() if words in str(error)), "refused")
        return kind, str(error)
    if "and are taken up" in caplog.text:
        assert n_tiles == 1
        return TAKEN, caplog.text
    assert "is begun anew" in caplog.text
    return ANEW, caplog.text


@pytest.mark.parametrize("row", TABLE)
def test_what_changed_between_two_calls_decides_whether_tiles_are_taken_up(bench, caplog, row):
    change, expected, words = TABLE[row]
    prepare(bench, change)
    options = change(bench)
    if expected == ANEW:  # and nothing is removed where it was asked to take them up
        happened, said = outcome(bench, caplog, resume=True, **options)
        assert (happened, words in said) == ("refused", True), said
    happened, said = outcome(bench, caplog, **options)
    assert (happened, words in said) == (expected, True), said


def test_the_page_says_what_happens():
    for row, (_, what, _) in TABLE.items():
        assert f"| {row} | {what} |" in PAGE.read_text()

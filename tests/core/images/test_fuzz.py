"""Whatever a file holds, opening it and reading a tile gives its pixels or an error of ours.

Intact files of every kind are damaged at random, and each is opened, counted and read within a
limit of time and memory. `PATCHWORKS_FUZZ=1200` damages each kind 1200 times instead of 25, which
takes ten minutes; the figures are printed with ``pytest -s``.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import imageio.v3 as iio
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks_core import ImageError, list_images, open_image
from patchworks_core.tiles.regions import Region

N_EXAMPLES = int(os.environ.get("PATCHWORKS_FUZZ", "25"))
MAX_SECONDS = 10
MAX_BYTES = 6 * 2**30

PIXELS = np.random.default_rng(0).integers(0, 200, (3, 48, 64)).astype("u1")
RGB = np.moveaxis(PIXELS, 0, -1)

damages = st.lists(
    st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4
)
cuts = st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.5, 0.1, 0.0])

numbers = st.sampled_from(
    [0, 1, 2, 3, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
)
texts = st.sampled_from(
    [
        *("", "0", "-1", "nan", "1e400", "99999999999999", "..", "../../etc/passwd", "/dev/zero"),
        *("c", "<", "&", "\0", "|O", "<M8[s]", "sharding_indexed", "zstd", "0.1", "0.6.dev1"),
    ]
)
values = st.one_of(
    *(st.none(), st.booleans(), numbers, numbers.map(lambda n: -n), texts),
    st.sampled_from([0.5, -1.0, 1e308, float("inf"), float("nan")]),
    st.lists(numbers, max_size=4),
    st.just({}),
    st.sampled_from([{"name": "gzip"}, {"id": "zlib", "level": 99}, [{"path": "0"}] * 3]),
)


class Figures:
    """What the fuzzing has shown so far."""

    n_files = n_opened = 0
    seconds = 0.0
    slowest = ""


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Let this process have no more than some memory, and say what was used."""
    before, (soft, hard) = peak_memory(), resource.getrlimit(resource.RLIMIT_AS)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + MAX_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    print(
        f"\n{Figures.n_files} damaged files, of which {Figures.n_opened} opened; the slowest took "
        f"{Figures.seconds:.2f} s ({Figures.slowest}); memory rose by "
        f"{(peak_memory() - before) / 2**20:.0f} MiB"
    )


class TooLong(BaseException):
    """Not an Exception, which a reader would take for one of its own."""


@contextmanager
def limited_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLong(f"not done after {MAX_SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def read_corners(path: Path) -> None:
    """Open an image and read its first and its last pixels."""
    image = open_image(path, channel=None)
    assert image.fingerprint
    assert image.gaps is None or image.gaps.text
    shape = image.shape
    for start in (tuple(0 for _ in shape), tuple(max(0, n - 16) for n in shape)):
        region = Region(start, tuple(min(a + 16, n) for a, n in zip(start, shape, strict=True)))
        pixels = image.read(region)
        assert (pixels.shape, pixels.dtype) == (region.shape, image.dtype)
    Figures.n_opened += 1


def reads_or_is_refused(path: Path) -> None:
    """Check that an image gives pixels as declared, or an ImageError that names it."""
    start = time.perf_counter()
    for use in (read_corners, list_images):
        message = str(path)
        with warnings.catch_warnings(), limited_time():
            warnings.simplefilter("ignore")
            try:
                use(path)
            except ImageError as error:
                message = str(error)
        assert path.name in message
    seconds = time.perf_counter() - start
    Figures.n_files += 1
    if seconds > Figures.seconds:
        Figures.seconds, Figures.slowest = seconds, path.name


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Callable[[str], Path]]:
    """Give a path in an empty folder, for every example."""
    top = tmp_path_factory.mktemp("fuzz")
    number = count()

    def empty(name: str) -> Path:
        shutil.rmtree(top / str(next(number) - 1), ignore_errors=True)
        folder = top / str(next(number) - 1)
        folder.mkdir()
        return folder / name

    return empty


def damage(content: bytes, where: list[tuple[int, bytes]], cut: float) -> bytes:
    """Overwrite a few bytes, and leave out the end."""
    changed = bytearray(content)
    for position, new in where:
        at = position % len(changed)
        changed[at : at + len(new)] = new
    return bytes(changed[: int(len(changed) * cut)])


# TIFF


def tiff(pixels: Any = PIXELS, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def pyramid() -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as tif:
        options: dict[str, Any] = {"tile": (16, 16), "compression": "zlib"}
        tif.write(PIXELS[0], subifds=1, **options)
        tif.write(PIXELS[0, ::2, ::2], subfiletype=1, **options)
        tif.write(RGB, photometric="rgb", **options)
    return buffer.getvalue()


GRAY: dict[str, Any] = {"photometric": "minisblack"}
TIFFS = {
    "plain.tif": tiff(metadata=None, **GRAY),
    "shaped.tif": tiff(compression="zlib", **GRAY),
    "big.tif": tiff(bigtiff=True, tile=(16, 16), compression="zlib", **GRAY),
    "motorola.tif": tiff(PIXELS.astype(">u2"), byteorder=">", rowsperstrip=7, **GRAY),
    "a.ome.tif": tiff(ome=True, metadata={"axes": "ZYX"}, compression="zlib"),
    "imagej.tif": tiff(imagej=True, metadata={"axes": "ZYX", "unit": "um"}),
    "hyperstack.tif": tiff(PIXELS.astype("u2"), imagej=True, metadata={"axes": "CYX"}),
    "pyramid.tif": pyramid(),
    "rgb.tif": tiff(RGB, photometric="rgb", compression="jpeg", tile=(16, 16)),
    "planar.tif": tiff(PIXELS, photometric="rgb", planarconfig="separate", compression="lzw"),
    "float.tif": tiff(PIXELS.astype("f4"), compression="zstd", predictor=True, **GRAY),
    "mask.tif": tiff(PIXELS[0] > 99),
    "white.tif": tiff(PIXELS[0], photometric="miniswhite", metadata=None),
    "palette.tif": tiff(PIXELS[0], colormap=np.sort(np.ones((3, 256), "u2") * 3), metadata=None),
}


def fields_of(content: bytes) -> list[tuple[int, int]]:
    """Return where the numbers are that say how a TIFF is to be read: place and length."""
    places = [(4, 4), (2, 2)]
    with tifffile.TiffFile(io.BytesIO(content)) as tif:
        wide = tif.tiff.offsetsize
        for page in tif.pages:
            places.append((page.offset, tif.tiff.tagnosize))
            for tag in page.tags:
                at = tag.offset
                places += [(at, 2), (at + 2, 2), (at + 4, wide), (at + 4 + wide, wide)]
                places += [(tag.valueoffset, 4)] * 2
            entries = len(page.tags) * tif.tiff.tagsize
            places.append((page.offset + tif.tiff.tagnosize + entries, wide))
    return places


FIELDS = {name: fields_of(content) for name, content in TIFFS.items()}
fields = st.lists(st.tuples(st.integers(0, 10**4), numbers), min_size=1, max_size=3)


@pytest.mark.parametrize("name", TIFFS)
@settings(max_examples=N_EXAMPLES)
@given(changes=fields, where=st.one_of(st.just([]), damages), cut=cuts)
def test_a_tiff_with_other_tags_opens_or_is_refused_in_words(place, name, changes, where, cut):
    content = bytearray(TIFFS[name])
    order = "little" if content[:2] == b"II" else "big"
    for number, value in changes:
        at, size = FIELDS[name][number % len(FIELDS[name])]
        content[at : at + size] = (value % 256**size).to_bytes(size, order)
    path = place(name)
    path.write_bytes(damage(bytes(content), where, cut))
    reads_or_is_refused(path)


def described(text: str, changes: list[tuple[int, Any]]) -> bytes:
    """Give other values to a few attributes of XML, or fields of a description."""
    for number, value in changes:
        found = list(re.finditer(r'"[^"]*"|(?<==)[^\s"]+|\d+', text))
        if found:
            start, end = found[number % len(found)].span()
            is_quoted = text[start] == '"'
            text = text[:start] + (f'"{value}"' if is_quoted else str(value)) + text[end:]
    return text.encode("utf-8", "replace").replace(b"\0", b"?")


SETS_OF_FILES = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
    'UUID="urn:uuid:1"><Image ID="Image:0" Name="a"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
    'Type="uint8" SizeX="64" SizeY="48" SizeZ="3" SizeC="1" SizeT="1" PhysicalSizeX="0.5" '
    'PhysicalSizeXUnit="nm"><Channel ID="Channel:0:0" SamplesPerPixel="1" Name="DAPI"/>'
    '<TiffData FirstZ="0" FirstC="0" FirstT="0" IFD="0" PlaneCount="2"><UUID FileName="a.ome.tif">'
    'urn:uuid:1</UUID></TiffData><TiffData FirstZ="2" FirstC="0" FirstT="0" IFD="2" '
    'PlaneCount="1"/></Pixels></Image></OME>'
)
COMPANION = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<BinaryOnly MetadataFile="a.companion.ome" UUID="urn:uuid:2"/></OME>'
)
DESCRIPTIONS = {
    "a.ome.tif": SETS_OF_FILES,
    "companion.ome.tif": COMPANION,
    "imagej.tif": "ImageJ=1.53\nimages=3\nslices=3\nunit=micron\nspacing=0.5\nloop=false\n",
    "shaped.tif": '{"shape": [3, 48, 64], "axes": "ZYX"}',
    "a.svs": "Aperio Image Library v11\n64x48 [0,0 64x48] (16x16) |AppMag = 20|MPP = 0.4990",
    "a.scn": '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
    '<collection name="a" sizeX="64" sizeY="48"><image name="b"><pixels sizeX="64" sizeY="48">'
    '<dimension sizeX="64" sizeY="48" r="0" ifd="0"/></pixels></image></collection></scn>',
    "a.qptiff": "<PerkinElmer-QPI-ImageDescription><Name>DAPI</Name></PerkinElmer-QPI-Image"
    "Description>",
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
@settings(max_examples=N_EXAMPLES)
@given(changes=st.lists(st.tuples(st.integers(0, 200), st.one_of(numbers, texts)), max_size=3))
def test_a_tiff_with_another_description_opens_or_is_refused_in_words(place, name, changes):
    path = place(name)
    text = described(DESCRIPTIONS[name], changes)
    path.write_bytes(tiff(description=text, metadata=None, **GRAY))
    (path.parent / "a.companion.ome").write_bytes(described(SETS_OF_FILES, changes))
    reads_or_is_refused(path)


# NumPy files and pictures


@settings(max_examples=2 * N_EXAMPLES)
@given(
    descr=st.sampled_from(["|u1", "<f8", "|O", "|S0", "<M8[s]", "u1", ">u2", "|V9", "<U3", "", 7]),
    shape=st.one_of(st.just((3, 48, 64)), st.lists(numbers, max_size=4).map(tuple), texts),
    order=st.sampled_from([True, False, 1, "F"]),
    more=st.sampled_from([{}, {"x": 1}, {"descr": [("a", "u1")]}]),
    where=st.one_of(st.just([]), damages),
    cut=cuts,
)
def test_a_numpy_file_opens_or_is_refused_in_words(place, descr, shape, order, more, where, cut):
    header = repr({"descr": descr, "fortran_order": order, "shape": shape, **more}).encode()
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + PIXELS.tobytes()
    path = place("a.npy")
    path.write_bytes(damage(content, where, cut))
    reads_or_is_refused(path)


PICTURES = {
    f"{kind}.{extension}": iio.imwrite("<bytes>", pixels, extension=f".{extension}")
    for extension in ("png", "jpg", "bmp")
    for kind, pixels in {"gray": PIXELS[0], "rgb": RGB}.items()
}


@pytest.mark.parametrize("name", PICTURES)
@settings(max_examples=N_EXAMPLES)
@given(where=damages, header=st.lists(st.tuples(st.integers(8, 60), numbers), max_size=2), cut=cuts)
def test_a_damaged_picture_opens_or_is_refused_in_words(place, name, where, header, cut):
    content = bytearray(PICTURES[name])
    for at, value in header:
        content[at : at + 4] = (value % 2**32).to_bytes(4, "big" if "png" in name else "little")
    if "png" in name and header:  # the check sum is right, so that the size counts
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        where = []
    path = place(name)
    path.write_bytes(damage(bytes(content), where, cut))
    reads_or_is_refused(path)


# Zarr


def places_in(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every dictionary or list in a JSON document with each of its keys."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from places_in(node[key])


def changed_json(content: Any, changes: list[tuple[int, Any]]) -> Any:
    """Give other values to a few of what stands in a JSON document, at any depth."""
    for number, value in changes:
        places = list(places_in(content))
        if places:
            node, key = places[number % len(places)]
            if value == "c":
                del node[key]
            else:
                node[key] = deepcopy(value)
    return content


def change_file(path: Path, changes: list[tuple[int, Any]]) -> None:
    path.write_text(json.dumps(changed_json(json.loads(path.read_text()), changes)))


ARRAYS: dict[str, dict[str, Any]] = {
    "v3": {},
    "v3 plain": {"compressors": None},
    "v3 gzip": {"compressors": zarr.codecs.GzipCodec()},
    "v3 blosc": {"compressors": zarr.codecs.BloscCodec(cname="lz4")},
    "v3 shards": {"shards": (32, 32)},
    "v3 named": {"dimension_names": ("y", "x"), "compressors": zarr.codecs.Crc32cCodec()},
    "v2": {"zarr_format": 2},
    "v2 plain": {"zarr_format": 2, "compressors": None},
    "v2 zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
    "v2 lz4": {
        "zarr_format": 2,
        "compressors": numcodecs.LZ4(),
        "filters": [numcodecs.Delta("|u1")],
    },
}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("intact")
    for name, options in ARRAYS.items():
        path = str(top / name / "a.zarr")
        zarr.create_array(path, data=PIXELS[0] + 1, chunks=(16, 16), **options)
    return top


def damage_chunk(folder: Path, number: int, content: tuple[str, Any]) -> None:
    """Damage a chunk of an array, take it away, or put something else there."""
    names = {"zarr.json", ".zarray", ".zattrs", ".zgroup"}
    chunks = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in names)
    how, what = content
    if how == "whole" or not chunks:
        return
    chunk = chunks[number % len(chunks)]
    stored = chunk.read_bytes()
    chunk.unlink()
    if how == "damaged":
        chunk.write_bytes(damage(stored, *what))
    elif how == "other":
        chunk.write_bytes(what)
    elif how == "link":
        chunk.symlink_to(what)
    elif how == "folder":
        chunk.mkdir()


chunk_states = st.one_of(
    st.just(("whole", None)),
    st.tuples(st.just("damaged"), st.tuples(damages, cuts)),
    st.tuples(st.just("other"), st.sampled_from([b"", b"\0" * 9, b"x" * 256, b"\x1f\x8b" * 50])),
    st.tuples(st.just("link"), st.sampled_from(["/dev/zero", "/etc/passwd", "c", "../../.."])),
    st.sampled_from([("gone", None), ("folder", None)]),
)
changes_of_json = st.lists(st.tuples(st.integers(0, 200), values), max_size=2)


@pytest.mark.parametrize("name", ARRAYS)
@settings(max_examples=N_EXAMPLES)
@given(changes=changes_of_json, number=st.integers(0, 20), chunk=chunk_states, where=damages)
def test_a_damaged_zarr_array_opens_or_is_refused_in_words(
    place, arrays, name, changes, number, chunk, where
):
    path = place("a.zarr")
    shutil.copytree(arrays / name / "a.zarr", path)
    metadata = path / (".zarray" if name.startswith("v2") else "zarr.json")
    if changes or chunk[0] != "whole":
        change_file(metadata, changes)
    else:
        metadata.write_bytes(damage(metadata.read_bytes(), where, 1.0))
    damage_chunk(path, number, chunk)
    reads_or_is_refused(path)


def space(axes: str) -> list[dict[str, str]]:
    kind = {"t": "time", "c": "channel"}
    return [{"name": axis, "type": kind.get(axis, "space")} for axis in axes]


def write_multiscale(group: zarr.Group, version: str) -> None:
    for level in (1, 2):
        data = PIXELS[:, ::level, ::level]
        group.create_array(f"{level - 1}", data=data, chunks=(1, 16, 16))
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, 0.5, 0.5]},
                {"type": "translation", "translation": [0.0, 0.0, 1.0]},
            ],
        }
        for level in (0, 1)
    ]
    multiscale = {"version": version, "name": "a", "axes": space("cyx"), "datasets": datasets}
    channels = [{"label": name, "color": "FFFFFF"} for name in ("a", "b", "c")]
    describe(group, version, {"multiscales": [multiscale], "omero": {"channels": channels}})


def describe(group: zarr.Group, version: str, content: dict[str, Any]) -> None:
    if version == "0.4":
        group.attrs.update(content)
    else:
        group.attrs["ome"] = {"version": version, **content}


def write_group(path: Path, kind: str, version: str) -> None:
    """Write an OME-Zarr image, or a plate, labels or series of images."""
    root = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    if kind == "image":
        write_multiscale(root, version)
    elif kind == "plate":
        wells = [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}]
        plate = {"rows": [{"name": "A"}], "columns": [{"name": "1"}], "wells": wells}
        describe(root, version, {"plate": plate})
        well = root.create_group("A/1")
        describe(well, version, {"well": {"images": [{"path": "0"}]}})
        write_multiscale(well.create_group("0"), version)
    elif kind == "labels":
        describe(root, version, {"labels": ["n"]})
        write_multiscale(root.create_group("n"), version)
    else:
        describe(root, version, {"bioformats2raw.layout": 3})
        describe(root.create_group("OME"), version, {"series": ["0"]})
        write_multiscale(root.create_group("0"), version)


GROUPS = [(k, v) for k in ("image", "plate", "labels", "series") for v in ("0.4", "0.5")]


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("groups")
    for kind, version in GROUPS:
        write_group(top / f"{kind} {version}" / "a.zarr", kind, version)
    return top


@pytest.mark.parametrize(("kind", "version"), GROUPS)
@settings(max_examples=N_EXAMPLES)
@given(
    changes=changes_of_json, file=st.one_of(st.just(0), st.integers(0, 9)), number=st.integers(0, 9)
)
def test_ome_zarr_with_other_metadata_opens_or_is_refused_in_words(
    place, groups, kind, version, changes, file, number
):
    path = place("a.zarr")
    shutil.copytree(groups / f"{kind} {version}" / "a.zarr", path)
    names = {"zarr.json", ".zattrs"}
    files = sorted(
        (p for p in path.rglob("*") if p.name in names), key=lambda p: (len(p.parts), str(p))
    )
    change_file(files[file % len(files)], changes)
    reads_or_is_refused(path)
    if kind == "plate" and (path / "A/1/0").is_dir():
        reads_or_is_refused(path / "A" / "1" / "0")


ENTRIES = ["__MACOSX/a.zarr/zarr.json", ".DS_Store", "../out", "/abs", "a.zarr/zarr.json", "x/"]


@pytest.mark.parametrize("version", ["v2", "v3", "v3 shards"])
@settings(max_examples=N_EXAMPLES)
@given(
    where=st.one_of(st.just([]), damages),
    cut=cuts,
    more=st.lists(st.sampled_from(ENTRIES), max_size=2),
    inner=st.sampled_from(["", "a.zarr/", "b/c/"]),
    at_end=st.booleans(),
)
def test_a_damaged_zip_file_opens_or_is_refused_in_words(
    place, arrays, version, where, cut, more, inner, at_end
):
    buffer = io.BytesIO()
    folder = arrays / version / "a.zarr"
    with ZipFile(buffer, "w", ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, inner + file.relative_to(folder).as_posix())
        for name in more:
            archive.writestr(name, b"{}")
    content = buffer.getvalue()
    if at_end:  # the directory of a zip file, which is read first
        where = [(len(content) - 1 - at % 600, new) for at, new in where]
    path = place("a.zarr.zip")
    path.write_bytes(damage(content, where, cut))
    reads_or_is_refused(path)


# What is no image


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def named_folder(path: Path) -> None:
    path.mkdir()


def folder_of_links(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").symlink_to("zarr.json")


def empty(path: Path) -> None:
    path.touch()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unreadable(path: Path) -> None:
    path.symlink_to("/proc/self/mem")


def no_text(path: Path) -> None:
    path.mkdir()
    for name in ("zarr.json", ".zarray", ".zattrs", ".zgroup"):
        (path / name).write_bytes(b"\xff\xfe\0{")


def deep_json(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("[" * 100_000)


def laughing_xml(path: Path) -> None:
    """Write XML whose entities name each other, a billion times in all."""
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
    text = f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY e0 "ha">{entities}]>'
    text += SETS_OF_FILES.partition("?>")[2].replace('Name="a"', 'Name="&e9;"')
    path.write_bytes(tiff(description=text.encode(), metadata=None, **GRAY))


STRANGE = [loop, named_folder, folder_of_links, empty, device, unreadable, no_text, deep_json]


@pytest.mark.parametrize("write", [*STRANGE, os.mkfifo, laughing_xml], ids=lambda w: w.__name__)
@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.npy", "a.zarr", "a.ozx", "a.lif", "a"])
def test_what_is_no_image_is_refused_in_words(tmp_path, write, name):
    path = tmp_path / name
    write(path)
    reads_or_is_refused(path)
    with suppress(OSError):
        path.unlink()

"""What is read of files in all dialects: makes them, opens them, and writes a table.

    python -m benchmarks.dialects > docs/dialects.md

Files made here are read back and compared with the pixels that were written; real images are added
where ``../shared/data`` is.
"""

from __future__ import annotations

import tempfile
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import imageio.v3 as iio
import numpy as np
import numpy.typing as npt
import tifffile
import zarr

from patchworks_core import ImageError, list_images, open_image
from patchworks_core.images.image import Image
from patchworks_core.tiles.regions import Region

SHARED = Path(__file__).parents[2] / "shared" / "data"
Pixels = npt.NDArray[Any]

STACK: Pixels = np.random.default_rng(0).integers(0, 4000, (5, 48, 64)).astype("u2")
PLANE, BYTES = STACK[0], (STACK >> 4).astype("u1")
RGB: Pixels = np.moveaxis(BYTES[:3], 0, -1)
GRAY: dict[str, Any] = {"photometric": "minisblack"}
TILED: dict[str, Any] = {"tile": (16, 16), "compression": "zlib"}
OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"

HEADER = """# What is read of which file

Made by `python -m benchmarks.dialects`. Every row is a file of its own that was opened with all its
channels, and with no other option than its first column names. *Pixels* says whether they are those
that were written, in canonical order of axes; of real images, whether all of them could be read.
Where a file is refused the row has what is said.

| file | read as | axes | shape | type | micrometers per pixel | pixels | said |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Case:
    """A file, and the pixels that it should have, in canonical order."""

    title: str
    path: Path
    pixels: Pixels | None = None
    options: tuple[tuple[str, Any], ...] = ()


def main() -> None:
    """Write the table."""
    print(HEADER)
    with tempfile.TemporaryDirectory(prefix="dialects-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, make in enumerate((tiffs, tiff_sets, others, zarrs, multiscales, refused)):
            part = Path(folder) / str(number)
            part.mkdir()
            for case in make(part):
                print(row(case))
        for case in real_images():
            print(row(case))


def row(case: Case) -> str:
    """Return the line of a file."""
    shown = [case.title]
    try:
        image = open_image(case.path, channel=None, **dict(case.options))
        shown += [image.format, image.axes, " × ".join(map(str, image.shape)), str(image.dtype)]  # noqa: RUF001
        shown += [calibration(image), verdict(image, case.pixels)]
        shown.append("; ".join(image.notes))
    except ImageError as error:
        shown += ["refused", *[""] * 5, str(error)]
    text = " | ".join(shown).replace("\n", " ").replace(str(case.path.parent), "…")
    return f"| {text} |"


def calibration(image: Image) -> str:
    """Say the size of a pixel per axis, with its unit where it is another."""
    units = {"micrometer": "", None: " (no unit)"}
    return ", ".join(
        f"{axis} {size:.4g}{units.get(unit := image.unit.get(axis), f' {unit}')}"
        for axis, size in image.pixel_size.items()
        if axis in image.axes
    )


def verdict(image: Image, expected: Pixels | None) -> str:
    """Say whether an image has the pixels that were written."""
    pixels = image.read(Region((0,) * image.ndim, image.shape))
    if expected is None:
        return "read"
    same = pixels.shape == expected.shape and pixels.dtype == expected.dtype
    return "same" if same and np.array_equal(pixels, expected) else "**other**"


def tiffs(folder: Path) -> Iterator[Case]:
    """Make TIFFs of one file each."""
    sizes = {"PhysicalSizeX": 0.325, "PhysicalSizeY": 0.325, "PhysicalSizeZ": 2.0}
    units = {f"PhysicalSize{axis}Unit": "µm" for axis in "XYZ"}
    imagej = {"axes": "ZYX", "unit": "um", "spacing": 2.0}
    metadata = {"axes": "ZYX", **sizes, **units}
    resolution: dict[str, Any] = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    dpi: dict[str, Any] = {"resolution": (300, 300), "resolutionunit": "INCH"}
    five = STACK[:4].reshape(2, 2, 48, 64)
    mask = PLANE > 2000
    files: list[tuple[str, Pixels, Pixels, dict[str, Any]]] = [
        ("plain TIFF", PLANE, PLANE, {"metadata": None, **GRAY}),
        ("plain TIFF, with a size in centimeters", PLANE, PLANE, {"metadata": None, **resolution}),
        ("plain TIFF, 300 dpi", PLANE, PLANE, {"metadata": None, **dpi}),
        ("plain TIFF of several pages, compressed", STACK, STACK, {"metadata": None, **TILED}),
        ("plain TIFF of several pages", STACK, STACK, {"metadata": None, **GRAY}),
        ("TIFF by tifffile (shaped)", STACK, STACK, GRAY),
        ("TIFF by tifffile, 4 axes", five, five, {"metadata": {"axes": "TZYX"}, **GRAY}),
        ("BigTIFF, tiled", STACK, STACK, {"bigtiff": True, **TILED, **GRAY}),
        ("big-endian TIFF in strips", PLANE, PLANE, {"byteorder": ">", "rowsperstrip": 7}),
        ("TIFF, LZW with predictor", PLANE, PLANE, {"compression": "lzw", "predictor": True}),
        ("TIFF, Zstandard, float", PLANE.astype("f4"), PLANE.astype("f4"), {"compression": "zstd"}),
        ("TIFF, 16-bit float", PLANE.astype("f2"), PLANE.astype("f2"), {}),
        ("TIFF, signed", PLANE.astype("i2"), PLANE.astype("i2"), {}),
        ("TIFF, RGB", RGB, BYTES[:3], {"photometric": "rgb"}),
        ("TIFF, RGB in planes", BYTES[:3], BYTES[:3], _planar()),
        ("TIFF, mask of 1 bit", mask, mask, {}),
        ("TIFF, 0 is white", BYTES[0], 255 - BYTES[0], {"metadata": None, "photometric": 0}),
        ("OME-TIFF", STACK, STACK, {"ome": True, "metadata": metadata}),
        ("OME-TIFF, channels", STACK[:2], STACK[:2], {"ome": True, "metadata": _channels()}),
        ("ImageJ TIFF", STACK, STACK, {"imagej": True, "metadata": imagej, "resolution": (3, 3)}),
        ("ImageJ hyperstack", five, five, {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    ]
    for number, (title, pixels, expected, options) in enumerate(files):
        path = folder / f"{number}{'.ome' if options.get('ome') else ''}.tif"
        tifffile.imwrite(path, pixels, **options)
        pages = title == "plain TIFF of several pages"
        chosen = (("axes", "zyx"),) if pages else ()
        hyperstack = title == "ImageJ hyperstack"
        expected = np.swapaxes(expected, 0, 1) if hyperstack else expected
        yield Case(title + (", axes=zyx" if pages else ""), path, expected, chosen)
    palette = folder / "palette.tif"
    tifffile.imwrite(palette, BYTES[0], colormap=_colours(), metadata=None)
    yield Case("TIFF, numbers of colours", palette)


def _planar() -> dict[str, Any]:
    return {"photometric": "rgb", "planarconfig": "separate", **TILED}


def _channels() -> dict[str, Any]:
    return {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}}


def _colours() -> Pixels:
    return np.random.default_rng(0).integers(0, 2**16, (3, 256)).astype("u2")


def tiff_sets(folder: Path) -> Iterator[Case]:
    """Make TIFFs of several levels, series or files, and slides."""
    path = folder / "pyramid.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(PLANE, subifds=1, metadata={"axes": "YX"}, **TILED)
        tif.write(PLANE[::2, ::2], subfiletype=1, **TILED)
    yield Case("OME-TIFF, pyramid", path, PLANE)
    yield Case("OME-TIFF, pyramid, level=1", path, PLANE[::2, ::2], (("level", 1),))
    path = folder / "series.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        for plane in STACK[:2]:
            tif.write(plane, metadata={"axes": "YX"})
    yield Case("OME-TIFF of two images", path, STACK[0])
    yield Case("OME-TIFF of two images, `#1`", path.with_name(path.name + "#1"), STACK[1])
    names = write_set(folder)
    yield Case("OME-TIFF in three files", folder / names[0], STACK[:3])
    (folder / names[2]).rename(folder / "lost")
    yield Case("OME-TIFF in three files, one is lost", folder / names[0])
    slide = folder / "a.svs"
    text = "Aperio Image Library v11\n64x48 [0,0 64x48] (16x16) |AppMag = 20|MPP = 0.4990"
    tifffile.imwrite(slide, RGB, description=text, metadata=None, photometric="rgb", **TILED)
    yield Case("SVS", slide, BYTES[:3])
    half = folder / "half.tif"
    tifffile.imwrite(half, STACK, imagej=True, metadata={"axes": "ZYX"})
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    yield Case("ImageJ TIFF, copied by half", half)


def write_set(folder: Path) -> list[str]:
    """Write an OME-TIFF in three files, and return their names."""
    ids = [uuid.UUID(int=i) for i in range(3)]
    names = [f"set_z{i}.ome.tif" for i in range(3)]
    data = "".join(
        f'<TiffData FirstZ="{i}" FirstT="0" FirstC="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{ids[i]}</UUID></TiffData>'
        for i, name in enumerate(names)
    )
    for own, name in enumerate(names):
        xml = (
            f'<?xml version="1.0"?><OME xmlns="{OME}" UUID="urn:uuid:{ids[own]}"><Image '
            'ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="64" '
            'SizeY="48" SizeZ="3" SizeC="1" SizeT="1" PhysicalSizeX="325" PhysicalSizeXUnit="nm">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
        )
        tifffile.imwrite(folder / name, STACK[own], description=xml.encode(), metadata=None)
    return names


def others(folder: Path) -> Iterator[Case]:
    """Make pictures and NumPy files."""
    for extension in ("png", "jpg", "bmp"):
        iio.imwrite(folder / f"a.{extension}", RGB)
        expected = None if extension == "jpg" else BYTES[:3]
        yield Case(f"{extension.upper()}, RGB", folder / f"a.{extension}", expected)
    iio.imwrite(folder / "gray.png", PLANE)
    yield Case("PNG, 16 bits", folder / "gray.png", PLANE)
    np.save(folder / "a.npy", STACK)
    yield Case(".npy", folder / "a.npy", STACK)
    np.save(folder / "fortran.npy", np.asfortranarray(STACK.astype(">u2")))
    yield Case(".npy, Fortran order, big-endian", folder / "fortran.npy", STACK)


def zarrs(folder: Path) -> Iterator[Case]:
    """Make Zarr arrays."""
    chunks: dict[str, Any] = {"chunks": (1, 16, 16)}
    named = {"dimension_names": ("z", "y", "x"), **chunks}
    kinds: dict[str, dict[str, Any]] = {
        "Zarr v2": {"zarr_format": 2, **chunks},
        "Zarr v3": chunks,
        "Zarr v3, axes named": named,
        "Zarr v3, shards": {"shards": (5, 48, 64), **chunks},
        "Zarr v3, gzip": {"compressors": zarr.codecs.GzipCodec(), **chunks},
    }
    for number, (title, options) in enumerate(kinds.items()):
        zarr.create_array(str(folder / f"{number}.zarr"), data=STACK, **options)
        yield Case(title, folder / f"{number}.zarr", STACK)


def multiscale(group: zarr.Group, version: str, name: str = "") -> None:
    """Write an OME-Zarr image of two channels in two levels."""
    is_v2 = group.metadata.zarr_format == 2
    separator = {"name": "v2", "separator": "." if version == "0.1" else "/"}
    options: dict[str, Any] = {"chunk_key_encoding": separator} if is_v2 else {}
    for level in (0, 1):
        data = STACK[:2, :: level + 1, :: level + 1]
        data = data[None, :, None] if version < "0.3" else data
        group.create_array(f"{level}", data=data, chunks=data.shape, **options)
    axes: Any = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    datasets: list[dict[str, Any]] = [{"path": "0"}, {"path": "1"}]
    if version >= "0.4":
        for level, dataset in enumerate(datasets):
            scale = [1.0, 0.5 * 2**level, 0.5 * 2**level]
            dataset["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
    content: dict[str, Any] = {"datasets": datasets, "version": version}
    if version >= "0.3":
        content["axes"] = axes if version >= "0.4" else ["c", "y", "x"]
    if version >= "0.6":
        content["coordinateSystems"] = [{"name": "physical", "axes": content.pop("axes")}]
    channels = {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}
    described: dict[str, Any] = {"multiscales": [content], "omero": channels}
    group.attrs.update(described if is_v2 else {"ome": {"version": version, **described}})


def multiscales(folder: Path) -> Iterator[Case]:
    """Make OME-Zarr of all versions, and groups of several images."""
    for version in ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6.dev1"):
        path = folder / f"{version}.ome.zarr"
        zarr_format: Any = 2 if version < "0.5" else 3
        multiscale(zarr.open_group(str(path), mode="w", zarr_format=zarr_format), version)
        pixels = STACK[None, :2, None] if version < "0.3" else STACK[:2]
        yield Case(f"OME-Zarr {version}", path, pixels)
    yield Case(
        "OME-Zarr 0.4, level=1", folder / "0.4.ome.zarr", STACK[:2, ::2, ::2], (("level", 1),)
    )
    packed = folder / "packed.ozx"
    with ZipFile(packed, "w") as archive:
        for file in sorted((folder / "0.5.ome.zarr").rglob("*")):
            archive.write(file, file.relative_to(folder / "0.5.ome.zarr"))
    yield Case("OME-Zarr 0.5 in a zip file", packed, STACK[:2])
    root = zarr.open_group(str(folder / "raw.zarr"), mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    for series in "01":
        multiscale(root.create_group(series), "0.4")
    yield Case("bioformats2raw", folder / "raw.zarr")
    yield Case("bioformats2raw, `/1`", folder / "raw.zarr" / "1", STACK[:2])
    grown = zarr.open_group(str(folder / "grown.zarr"), mode="w", zarr_format=2)
    multiscale(grown, "0.4")
    zarr.consolidate_metadata(grown.store)
    array = zarr.open_array(str(folder / "grown.zarr" / "0"), mode="r+")
    array.resize((2, 96, 64))
    array[:, 48:] = STACK[:2]
    grown_pixels = np.concatenate([STACK[:2]] * 2, axis=1)
    yield Case("OME-Zarr 0.4, grown since it was consolidated", folder / "grown.zarr", grown_pixels)


def refused(folder: Path) -> Iterator[Case]:
    """Make what is no image."""
    complex_numbers = folder / "complex.tif"
    tifffile.imwrite(complex_numbers, PLANE.astype("c8"))
    yield Case("TIFF, complex numbers", complex_numbers)
    np.save(folder / "objects.npy", np.array([{}], dtype=object))
    yield Case(".npy of Python objects", folder / "objects.npy")
    (folder / "empty.tif").touch()
    yield Case("empty file", folder / "empty.tif")
    (folder / "folder.tif").mkdir()
    yield Case("folder that is no Zarr", folder / "folder.tif")
    (folder / "notes.txt").write_text("no image")
    yield Case("text", folder / "notes.txt")


def real_images() -> Iterator[Case]:
    """Give the real images that are there, each image of a file."""
    if not SHARED.is_dir():
        return
    for path in sorted(SHARED.iterdir()):
        if path.suffix not in (".zarr", ".svs", ".tif", ".png"):
            continue
        for image in list_images(path):
            yield Case(f"`{image.removeprefix(str(SHARED) + '/')}`", Path(image))


if __name__ == "__main__":
    main()

"""OME-XML of a TIFF: which images it describes, and in which files their pixels are."""

from __future__ import annotations

from math import prod
from xml.etree import ElementTree

import tifffile

from patchworks_core.errors import ImageError

MAX_PLANES = 2**22
"""Of an image in a TIFF; more than a million tiles of a microscope."""


def other_names(tif: tifffile.TiffFile) -> tuple[str, ...]:
    """Return the names of the files, beside this one, in which OME-XML says that pixels are."""
    if not tif.is_ome or not tif.ome_metadata:
        return ()
    own = ElementTree.fromstring(tif.ome_metadata).get("UUID")
    names: dict[str, None] = {}
    for image in ome_images(tif):
        for data in (d for p in children(image, "Pixels") for d in children(p, "TiffData")):
            for uuid in children(data, "UUID"):
                name = str(uuid.get("FileName", ""))
                # A file that was renamed is known by its UUID.
                is_own = uuid.text == own if own else name.lower() == tif.filename.lower()
                if name and not is_own:
                    names[name] = None
    return tuple(names)


def check_described_here(tif: tifffile.TiffFile, axes: str | None, url: str) -> None:
    """Raise ImageError where another file says what the planes of this one are."""
    if not tif.is_ome or not tif.ome_metadata or axes is not None:
        return
    for element in children(ElementTree.fromstring(tif.ome_metadata), "BinaryOnly"):
        raise ImageError(
            f"a TIFF must say what its planes are, got {url!r}, of which "
            f"{element.get('MetadataFile')!r} says it; open the OME-TIFF that names all files of "
            "the image, or convert them to OME-Zarr; axes= opens the planes of this file alone"
        )


def check_counts(tif: tifffile.TiffFile, where: str) -> None:
    """Raise ImageError where OME-XML speaks of more planes than any image has.

    tifffile makes lists of that length before it looks for the planes.
    """
    if not tif.is_ome or not tif.ome_metadata:
        return
    counts = [0.0]
    for pixels in (p for image in ome_images(tif) for p in children(image, "Pixels")):
        sizes = [int(pixels.get(f"Size{axis}", 1)) for axis in "XYZCT"]
        counts += [prod(sizes[2:]), prod(sizes) / max(1, tif.pages.first.size)]
        for data in children(pixels, "TiffData"):
            counts += [int(data.get(name, 0)) for name in ("PlaneCount", "NumPlanes")]
    for along in ElementTree.fromstring(tif.ome_metadata).iter():
        if {"Start", "End"} <= set(along.keys()):
            start, end, step = (float(along.get(n, 1)) for n in ("Start", "End", "Step"))
            counts.append(abs(end - start) / max(abs(step), 1e-300))
    if not max(counts) <= MAX_PLANES:
        raise ImageError(
            f"an image may have {MAX_PLANES} planes, got {max(counts):.6g} in the OME-XML of "
            f"{where}; correct it"
        )


def ome_pixels(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> ElementTree.Element:
    """Return the Pixels element of the OME image that a series is."""
    images = ome_images(tif)
    # An image without data in any file is no series.
    named = [image for image in images if image.get("Name") == series.name]
    has_all = len(images) == len(tif.series)
    image = images[tif.series.index(series)] if has_all else [*named, *images][0]
    return children(image, "Pixels")[0]


def ome_images(tif: tifffile.TiffFile) -> list[ElementTree.Element]:
    """Return the Image elements of a TIFF, in the order of its series."""
    return children(ElementTree.fromstring(tif.ome_metadata or ""), "Image")


def children(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """Return the children of a name, in whatever namespace."""
    return [child for child in element if str(child.tag).rpartition("}")[2] == name]

"""OME-XML of a TIFF: which images it describes, and in which files their pixels are."""

from __future__ import annotations

from xml.etree import ElementTree

import tifffile


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

"""Which images are inside a Zarr group, as its metadata name them.

A plate holds wells, a well holds fields, and a field is an image at
``<plate>/<row>/<column>/<field>``. What bioformats2raw wrote holds one image per series of the
original file, a group of labels one per name. All are images with metadata of their own. Several
multiscales in one group are told apart by their numbers, after ``#``.
"""

from __future__ import annotations

from collections.abc import Sequence

import zarr

from patchworks_core.errors import ImageError
from patchworks_core.images.readers.ngff import (
    LABELS,
    LAYOUT,
    MULTISCALES,
    PLATE,
    WELL,
    describes,
    ome_attributes,
    parse_attributes,
)
from patchworks_core.images.readers.node_paths import member, path_within

_CORRECT = "correct them, or open a field by its path"
_OME = "OME"
_MAX_LISTED = 5


def images_within(group: zarr.Group, where: str) -> list[str] | None:
    """Return what is added to the location of a group to get that of each image.

    Parameters
    ----------
    group : zarr.Group
    where : str
        The group, for messages.

    Returns
    -------
    list of str or None
        In the order of the metadata: ``/B/03/0`` of a plate, ``/0`` of a well or of a root of
        bioformats2raw, ``/cells`` of a group of labels, ``#0`` where a group has several
        multiscales, and nothing where the group is one image. What is not written yet is left out;
        a well with metadata that are not valid stands for its fields. None where the metadata
        name no image.

    Raises
    ------
    ImageError
        If the metadata are not valid.
    """
    _, ome = ome_attributes(group)
    if MULTISCALES in ome:
        n = len(ome[MULTISCALES]) if isinstance(ome[MULTISCALES], list) else 1
        return [""] if n < 2 else [f"#{i}" for i in range(n)]
    if PLATE in ome:
        wells = _wells(group, where)
        return [f"/{path}" for well in wells for path in _fields_or_well(group, well, where)]
    if WELL in ome:
        return [f"/{path}" for path in _well_fields(group, where)]
    if LAYOUT in ome:
        return [f"/{path}" for path in _series(group, where)]
    if LABELS in ome:
        return [f"/{path}" for path in _written(group, ome[LABELS], where)]
    return None


def plate_fields(plate: zarr.Group, where: str) -> list[str]:
    """Return the path of every field of a plate, such as ``B/03/0``."""
    return [path for well in _wells(plate, where) for path in _fields_at(plate, well, where)]


def _fields_or_well(plate: zarr.Group, well: str, where: str) -> list[str]:
    """Return the fields of a well; itself where its metadata are not valid, which opening says."""
    try:
        return _fields_at(plate, well, where)
    except ImageError:
        return [well]


def _wells(plate: zarr.Group, where: str) -> list[str]:
    wells = parse_attributes(plate, PLATE, where, _CORRECT).wells
    return [path_within(well.path, where) for well in wells]


def _fields_at(plate: zarr.Group, path: str, where: str) -> list[str]:
    """Return the paths, from the plate, of the fields of a well; none where it is not written."""
    well = member(plate, path, where)
    if not isinstance(well, zarr.Group) or not describes(well, WELL):
        return []
    return [f"{path}/{field}" for field in _well_fields(well, f"well {path!r} of {where}")]


def check_one_image(group: zarr.Group, images: Sequence[str], where: str) -> None:
    """Raise ImageError, listing the first images, where a group holds other than one image.

    Parameters
    ----------
    group : zarr.Group
    images : sequence of str
        As `images_within` returns them.
    where : str
        The group, for messages.
    """
    kind, noun = "a group", "image"
    for name, what, part in ((PLATE, "a plate", "field"), (WELL, "a well", "field")):
        if describes(group, name):
            kind, noun = what, part
    if len(images) == 1 and noun == "image":
        return
    listed = ", ".join(repr(path[1:]) for path in images[:_MAX_LISTED]) or "none yet"
    more = f" and {len(images) - _MAX_LISTED} more" if len(images) > _MAX_LISTED else ""
    way_out = f"; name one, such as path{images[0]}" if images else ""
    per = ", one per field" if noun == "field" else ""
    raise ImageError(
        f"{kind} is many images{per}, got {where} with {noun}s {listed}{more}{way_out}"
    )


def _well_fields(well: zarr.Group, where: str) -> list[str]:
    """Return the path of every field of a well, such as ``0``."""
    images = parse_attributes(well, WELL, where, _CORRECT).images
    return [path_within(image.path, where) for image in images]


def _series(root: zarr.Group, where: str) -> list[str]:
    """Return the path of every series: those that are named, else 0, 1 and so on."""
    ome = member(root, _OME, where)
    named = ome_attributes(ome)[1].get("series") if isinstance(ome, zarr.Group) else None
    if named is not None:
        return _written(root, named, where)
    paths: list[str] = []
    while _is_image(member(root, str(len(paths)), where)):
        paths.append(str(len(paths)))
    return paths


def _written(group: zarr.Group, paths: object, where: str) -> list[str]:
    """Return those of the named images that are there."""
    if not isinstance(paths, list):
        raise ImageError(
            f"the metadata must name images in a list, got {paths!r} in {where}; correct them"
        )
    inside = [path_within(path, where) for path in paths]
    return [path for path in inside if _is_image(member(group, path, where))]


def _is_image(node: object) -> bool:
    return isinstance(node, zarr.Group) and describes(node, MULTISCALES)

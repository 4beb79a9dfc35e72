"""OME-Zarr plates (HCS): which fields a plate has, and why a plate or a well is no image.

A plate holds wells, a well holds fields, and a field is an image with metadata of its own, at
``<plate>/<row>/<column>/<field>``. The metadata of plate and wells are read through
`ome-zarr-models`, 0.4 and 0.5 alike.
"""

from __future__ import annotations

from typing import Any

import ome_zarr_models.v04.hcs
import ome_zarr_models.v04.well
import ome_zarr_models.v05.hcs
import ome_zarr_models.v05.well
import pydantic
import zarr

from patchworks_core.errors import ImageError

_MAX_LISTED = 5


def is_plate(group: zarr.Group) -> bool:
    """Tell whether a group carries the metadata of a plate, valid or not."""
    return "plate" in _ome(group)


def is_well(group: zarr.Group) -> bool:
    """Tell whether a group carries the metadata of a well, valid or not."""
    return "well" in _ome(group)


def plate_fields(plate: zarr.Group, where: str) -> list[str]:
    """Return the path of every field of a plate, in the order of its metadata.

    Parameters
    ----------
    plate : zarr.Group
        A group for which `is_plate` holds.
    where : str
        The plate, for messages.

    Returns
    -------
    list of str
        Such as ``B/03/0``. A well that the plate names and that is not written yet has none.

    Raises
    ------
    ImageError
        If the metadata of the plate or of a well are not valid.
    """
    model: Any = ome_zarr_models.v04.hcs.HCSAttrs
    if _is_05(plate):
        model = ome_zarr_models.v05.hcs.HCSAttrs
    wells = [_inside(well.path, where) for well in _parse(plate, model, where).plate.wells]
    fields = []
    for path in wells:
        well = plate.get(path)
        if isinstance(well, zarr.Group) and is_well(well):
            fields += [
                f"{path}/{field}" for field in well_fields(well, f"well {path!r} of {where}")
            ]
    return fields


def well_fields(well: zarr.Group, where: str) -> list[str]:
    """Return the path of every field of a well, such as ``0``, in the order of its metadata."""
    model: Any = ome_zarr_models.v04.well.WellAttrs
    if _is_05(well):
        model = ome_zarr_models.v05.well.WellAttrs
    return [_inside(image.path, where) for image in _parse(well, model, where).well.images]


def check_no_plate(group: zarr.Group, where: str) -> None:
    """Raise ImageError where a group is a plate or a well, listing the first fields."""
    if is_plate(group):
        kind, fields = "a plate", plate_fields(group, where)
    elif is_well(group):
        kind, fields = "a well", well_fields(group, where)
    else:
        return
    listed = ", ".join(map(repr, fields[:_MAX_LISTED])) or "none yet"
    more = f" and {len(fields) - _MAX_LISTED} more" if len(fields) > _MAX_LISTED else ""
    way_out = f"; name one, such as path/{fields[0]}" if fields else ""
    raise ImageError(
        f"{kind} is many images, one per field, got {where} with fields {listed}{more}{way_out}"
    )


def _ome(group: zarr.Group) -> dict[str, Any]:
    """Return the attributes that OME-Zarr speaks of, of either version."""
    attributes: dict[str, Any] = group.attrs.asdict()
    ome = attributes.get("ome")
    return ome if isinstance(ome, dict) else attributes


def _is_05(group: zarr.Group) -> bool:
    return isinstance(group.attrs.asdict().get("ome"), dict)


def _parse(group: zarr.Group, model: Any, where: str) -> Any:
    """Parse the attributes of a group with the model of its version."""
    ome = _ome(group)
    content = {name: ome[name] for name in ("version", "plate", "well") if name in ome}
    if isinstance(plate := content.get("plate"), dict):
        # Many writers leave the version out here, of which the models would warn.
        content["plate"] = {"version": "0.5" if _is_05(group) else "0.4", **plate}
    try:
        return model(**content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ImageError(
            f"the metadata are not a valid OME-Zarr 0.4 or 0.5 plate: {place}: {first['msg']} "
            f"({error.error_count()} in all) in {where}; correct them, or open a field by its path"
        ) from error


def _inside(path: str, where: str) -> str:
    """Return a path of the metadata, which must not lead out of the plate."""
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ImageError(
            f"a path in the metadata must lie within the plate, got {path!r} in {where}"
        )
    return path

"""OME-NGFF attributes of a Zarr group, 0.4 and 0.5: where they stand, and whether they are valid.

They are checked by the models of `ome-zarr-models`. What they mean is the business of
`images_within` and `ome_zarr`.
"""

from __future__ import annotations

from typing import Any

import ome_zarr_models.v04.hcs
import ome_zarr_models.v04.image
import ome_zarr_models.v04.well
import ome_zarr_models.v05.hcs
import ome_zarr_models.v05.image
import ome_zarr_models.v05.well
import pydantic
import zarr

from patchworks_core.errors import ImageError

MULTISCALES, PLATE, WELL, LABELS = "multiscales", "plate", "well", "labels"
"""What a group's attributes may describe."""

LAYOUT = "bioformats2raw.layout"
"""Attribute of a group that holds several images, one per series of the file it was made of."""

_MODELS: dict[tuple[str, str], Any] = {
    ("0.4", MULTISCALES): ome_zarr_models.v04.image.ImageAttrs,
    ("0.5", MULTISCALES): ome_zarr_models.v05.image.ImageAttrs,
    ("0.4", PLATE): ome_zarr_models.v04.hcs.HCSAttrs,
    ("0.5", PLATE): ome_zarr_models.v05.hcs.HCSAttrs,
    ("0.4", WELL): ome_zarr_models.v04.well.WellAttrs,
    ("0.5", WELL): ome_zarr_models.v05.well.WellAttrs,
}

_VERSIONS = "OME-Zarr 0.4 or 0.5"
_VALID = {
    MULTISCALES: f"valid {_VERSIONS}",
    PLATE: f"a valid {_VERSIONS} plate",
    WELL: f"a valid {_VERSIONS} well",
}


def ome_attributes(group: zarr.Group) -> tuple[str, dict[str, Any]]:
    """Return the version of the OME-NGFF attributes of a group, and the attributes.

    Examples
    --------
    >>> group = zarr.create_group({}, attributes={"ome": {"version": "0.5", "labels": ["cells"]}})
    >>> ome_attributes(group)
    ('0.5', {'version': '0.5', 'labels': ['cells']})
    """
    attributes: dict[str, Any] = group.attrs.asdict()
    ome = attributes.get("ome")
    return ("0.5", ome) if isinstance(ome, dict) else ("0.4", attributes)


def describes(group: zarr.Group, what: str) -> bool:
    """Tell whether a group carries attributes of that kind, valid or not."""
    return what in ome_attributes(group)[1]


def parse_attributes(group: zarr.Group, what: str, where: str, way_out: str) -> Any:
    """Parse the attributes of a group with the model of their kind and version.

    Raises
    ------
    ImageError
        If they are not valid; it ends with the `way_out`.
    """
    version, ome = ome_attributes(group)
    content = {name: ome[name] for name in ("version", what) if name in ome}
    if version == "0.4":
        content.pop("version", None)
    if what == PLATE and isinstance(plate := ome[PLATE], dict):
        # Many writers leave the version out here, of which the models would warn.
        content[PLATE] = {"version": version, **plate}
    try:
        return getattr(_MODELS[version, what](**content), what)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ImageError(
            f"the metadata are not {_VALID[what]}: {place}: {first['msg']} "
            f"({error.error_count()} in all) in {where}; {way_out}"
        ) from error

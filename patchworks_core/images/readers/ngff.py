"""OME-NGFF attributes of a Zarr group, 0.1 to 0.5: where they stand, and whether they are valid.

They are checked by the models of `ome-zarr-models`. What they mean is the business of
`images_within` and `ome_zarr`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import zarr

from patchworks_core.errors import ImageError

MULTISCALES, PLATE, WELL, LABELS = "multiscales", "plate", "well", "labels"
"""What a group's attributes may describe."""

LAYOUT = "bioformats2raw.layout"
"""Attribute of a group that holds several images, one per series of the file it was made of."""

_MODELS = {
    MULTISCALES: ("image", "ImageAttrs"),
    PLATE: ("hcs", "HCSAttrs"),
    WELL: ("well", "WellAttrs"),
}
"""Module and class of a model; imported when it is used, because that takes as long as Zarr."""

UNCALIBRATED = ("0.1", "0.2", "0.3")
"""Versions without sizes of pixels; the first two have the axes ``tczyx``, the third names them."""

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
    from pydantic import ValidationError

    version, ome = ome_attributes(group)
    content = {name: ome[name] for name in ("version", what) if name in ome}
    if version == "0.4":
        content.pop("version", None)
    if what == MULTISCALES and is_uncalibrated(ome):
        content[what] = [_as_04(multiscale) for multiscale in ome[what]]
    if what == PLATE and isinstance(plate := ome[PLATE], dict):
        # Many writers leave the version out here, of which the models would warn.
        content[PLATE] = {"version": version, **plate}
    try:
        return getattr(_model(version, what)(**content), what)
    except ValidationError as error:
        stated = stated_version(ome, what)
        if stated is not None and stated not in ("0.4", "0.5"):
            raise ImageError(
                f"{_VERSIONS} and images of 0.1 to 0.3 are read, got version {stated!r} in "
                f"{where}; convert it to one of them, or open the array of one level by its own "
                "path with axes="
            ) from error
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ImageError(
            f"the metadata are not {_VALID[what]}: {place}: {first['msg']} "
            f"({error.error_count()} in all) in {where}; {way_out}"
        ) from error


def _model(version: str, what: str) -> Any:
    module, name = _MODELS[what]
    package = f"ome_zarr_models.v{version.replace('.', '')}"
    return getattr(import_module(f"{package}.{module}"), name)


def stated_version(ome: dict[str, Any], what: str) -> str | None:
    """Return the version that attributes say they are of; None where they do not say."""
    part = ome.get(what)
    part = part[0] if isinstance(part, list) and part else part
    stated = part.get("version") if isinstance(part, dict) else None
    stated = ome.get("version", stated)
    return stated if isinstance(stated, str) else None


def is_uncalibrated(ome: dict[str, Any]) -> bool:
    """Tell whether attributes are of a version without sizes of pixels, and have none."""
    multiscales = ome.get(MULTISCALES)
    if stated_version(ome, MULTISCALES) not in UNCALIBRATED or not isinstance(multiscales, list):
        return False
    return not any("coordinateTransformations" in str(multiscale) for multiscale in multiscales)


def _as_04(multiscale: dict[str, Any]) -> dict[str, Any]:
    """Return a multiscale of an uncalibrated version in the words of 0.4."""
    kinds = {"t": "time", "c": "channel"}
    names = list(multiscale.get("axes") or "tczyx")
    axes = [{"name": name, "type": kinds.get(name, "space")} for name in names]
    unit_scale = [{"type": "scale", "scale": [1.0] * len(axes)}]
    datasets = [
        {"path": dataset["path"], "coordinateTransformations": unit_scale}
        for dataset in multiscale["datasets"]
    ]
    return {**multiscale, "version": "0.4", "axes": axes, "datasets": datasets}

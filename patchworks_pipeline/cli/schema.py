"""The command ``patchworks schema``: what editors need to know of ``patchworks.yaml``."""

from collections.abc import Mapping
from typing import Any

from patchworks_pipeline.cli.terminal import say_json

ENVIRONMENT = {
    "type": "object",
    "properties": {"env": {"type": "string", "description": "Variable of the environment."}},
    "required": ["env"],
    "additionalProperties": False,
}
"""What may stand in place of any value."""

NOTHING = {"type": "null"}

SIZE = {"type": "integer"}
"""Of all spatial axes, where a list has one for each."""

ALSO = {
    "channel": ({"type": "integer"},),
    "worker_memory": ({"type": "number"},),
    "tile_shape": (SIZE,),
    "overlap": (SIZE,),
}
"""What fields take beside their type."""


def schema() -> None:
    """Print the JSON schema of a home's patchworks.yaml, for editors that check it."""
    say_json(settings_schema())


def settings_schema() -> dict[str, Any]:
    """Return the JSON schema of a file of settings."""
    from patchworks_pipeline.definitions import RESOURCES
    from patchworks_pipeline.resources.backfills import Backfills
    from patchworks_pipeline.resources.resources import SegmentationDefaults
    from patchworks_pipeline.resources.settings import Deployed
    from patchworks_pipeline.resources.settings_file import RELATIONS, SEGMENTATIONS

    kinds: list[type[Deployed]] = [*RESOURCES.values(), Backfills]
    sections = {kind.section: _section(kind) for kind in kinds}
    blocks = {"type": "object", "additionalProperties": _section(SegmentationDefaults)}
    names = {"type": "object", "additionalProperties": {"type": "string"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of a patchworks home",
        "type": "object",
        "properties": {**sections, SEGMENTATIONS: blocks, RELATIONS: names},
        "additionalProperties": False,
    }


def _section(kind: Any) -> dict[str, Any]:
    """Return the schema of a section: the fields that its file may set."""
    record = kind.model_json_schema()
    allowed = {**record["properties"], **_limits(record["properties"])}
    fields = {
        name: {"anyOf": [allowed[name], *ALSO.get(name, ()), ENVIRONMENT, NOTHING]}
        for name in kind.file_fields()
    }
    description = (kind.__doc__ or "").strip().split("\n")[0]
    return {
        "type": ["object", "null"],
        "description": description,
        "properties": fields,
        "additionalProperties": False,
    }


def _limits(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a limit that is none where it is 0, and has a least value else."""
    from patchworks_core.machine.limits import LEAST_TIMEOUT

    if "tile_timeout" not in fields:
        return {}
    values = [{"const": 0}, {"type": "number", "minimum": LEAST_TIMEOUT}]
    words = {key: fields["tile_timeout"][key] for key in ("description", "title")}
    return {"tile_timeout": {**words, "anyOf": values}}

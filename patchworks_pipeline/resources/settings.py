"""Settings of a deployment: ``<home>/patchworks.yaml``, one section per resource, no code to edit.

A value in the file replaces a field that is at its default; what code or a run's config sets wins.
The file is read when a resource is used, so a change needs no restart.
"""

import os
from typing import Any, ClassVar, Self

import dagster as dg
import yaml
from pydantic import ValidationError

from patchworks_core.errors import PlanError
from patchworks_pipeline.instance.home import SETTINGS, home_folder


class Deployed(dg.ConfigurableResource):
    """A resource whose fields a home may set."""

    section: ClassVar[str] = ""
    """Name of its section in the file."""

    def of_home(self) -> Self:
        """Return this resource with the settings of the home where its fields are at default.

        Raises
        ------
        PlanError
            If the file has a field that the resource has not, or a value that it cannot take.
        """
        path = home_folder() / SETTINGS
        found = _section(self.section)
        fields = type(self).model_fields
        unknown = sorted(set(found) - set(fields))
        if unknown:
            raise PlanError(
                f"{path}: {self.section!r} has no {unknown!r}; its fields are {sorted(fields)!r}"
            )
        chosen = {
            name: value
            for name, field in fields.items()
            if (value := getattr(self, name)) != field.get_default(call_default_factory=True)
        }
        try:
            return type(self)(**{**found, **chosen})
        except ValidationError as error:
            first = error.errors()[0]
            raise PlanError(
                f"{path}: {self.section}.{'.'.join(map(str, first['loc']))}: {first['msg']}, "
                f"got {first['input']!r}"
            ) from error

    def create_resource(self, context: dg.InitResourceContext) -> Self:
        """Give assets and sensors the resource with the settings of the home."""
        return self.of_home()


def _section(name: str) -> dict[str, Any]:
    """Return a section of the settings; ``{env: NAME}`` stands for a variable's value."""
    path = home_folder() / SETTINGS
    if not path.exists():
        return {}
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise PlanError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise PlanError(f"{path} must hold one section per resource, got {settings!r}")
    section = settings.get(name) or {}
    if not isinstance(section, dict):
        raise PlanError(f"{path}: section {name!r} must hold fields, got {section!r}")
    return {field: _value(value, f"{path}: {name}.{field}") for field, value in section.items()}


def _value(value: Any, where: str) -> Any:
    if not (isinstance(value, dict) and set(value) == {"env"}):
        return value
    found = os.environ.get(str(value["env"]))
    if found is None:
        raise PlanError(f"{where} is the variable {value['env']!r}, which is not set; set it")
    return found

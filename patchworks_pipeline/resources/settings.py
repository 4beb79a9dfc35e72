"""Settings of a deployment: ``<home>/patchworks.yaml``, one section per resource, no code to edit.

Whose word counts, for every field the first of these that says something:

1. the config of a run, the argument of a call, or the option of a command;
2. what was chosen for the image (`Acquisition`), where images can choose;
3. the file;
4. what is built in, as `setting` declares it.

Saying something is to set the field, to whatever value: the built-in one set in a run's config
beats the file. A field that is not set, or set to null, says nothing. The file is read when a
resource is used, so a change needs no restart.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from typing import Any, ClassVar, Self

import dagster as dg
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from patchworks_core.errors import PlanError
from patchworks_pipeline.instance.home import SETTINGS, home_folder
from patchworks_pipeline.resources.settings_file import Section, read_section

_IS_SECRET = "dagster__is_secret"
"""How Dagster is told that its UI must not show a value."""

_PYDANTIC = re.compile(r"^(Input|List|String) should")
"""How pydantic begins to say what is allowed."""

NOT_IN_FILES = {"home", "block"}
"""Fields that say where in which file the others are."""

OF_DEPLOYMENT: Mapping[str, Collection[str]] = {
    "store": ("root",),
    "source": ("landing",),
    "segmentation": ("functions",),
    "cluster": ("config_file",),
    "alerts": ("smtp_host", "smtp_port", "email_to", "webhook_url"),
}
"""Fields that no config of a run sets, by section: where things lie and go, and what is allowed.
Who can open the UI could otherwise write, read and send as the deployment's user. So is `home`."""

_NUMBERS = (int, float, float | None, list[int])


def setting(built_in: Any, *, description: str, is_secret: bool = False, **allowed: Any) -> Any:
    """Declare a field of a resource.

    Parameters
    ----------
    built_in : Any
        The value where nobody sets one. Dagster is not told of it: it would write it into the
        config of every run, and what a run set would look like what nobody did.
    description : str
    is_secret : bool
        Whether the value is kept out of the UI and of errors.
    **allowed
        Limits, as `pydantic.Field` has them: ``gt``, ``ge``, ``le``.
    """
    shown = f" Built in: {built_in!r}." if built_in not in ("", [], {}, None) else ""
    return Field(
        default_factory=lambda: deepcopy(built_in),
        description=description + shown,
        json_schema_extra={_IS_SECRET: True} if is_secret else None,
        **allowed,
    )


class _RefusedError(PlanError):
    """A field that cannot have its value."""

    def __init__(self, field: str, rule: str, value: str) -> None:
        super().__init__(f"{field} {rule}, got {value}")
        self.field = field.split(".")[1]
        self.rule = f"{field} {rule}"

    @staticmethod
    def in_section(words: str, name: str) -> str:
        """Return words that begin with the name of a field, with that of its section in a file."""
        return f"{name}.{words.partition('.')[2]}"


class Deployed(dg.ConfigurableResource):
    """A resource whose fields a home may set."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")

    section: ClassVar[str] = ""
    """Name of its section in the file."""

    home: str = setting(
        "",
        description="Folder of the settings, below $PATCHWORKS_HOME or absolute, where a code "
        "location has several deployments; empty: $PATCHWORKS_HOME itself.",
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            # Not chained: pydantic's own words show every value, secrets too.
            raise self._refused(error) from None

    def __iter__(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        """Give the fields that were set; Dagster carries these, and no other, into a run."""
        for name, value in super().__iter__():
            if name in self.model_fields_set:
                yield name, value

    def of_home(self) -> Self:
        """Return this resource with the settings of the home in the fields that were not set.

        Raises
        ------
        PlanError
            If the file is not one of settings, has a field that the resource has not, or a value
            that it cannot take.
        """
        section = self.read_section()
        self._check(section)
        displaced = self.displaced()
        beneath = {name: value for name, value in section.values.items() if name not in displaced}
        return type(self)(**{**beneath, **dict(self)})

    def read_section(self) -> Section:
        """Return what the file of the home says."""
        return read_section(home_folder(self.home) / SETTINGS, self.section)

    def displaced(self) -> Collection[str]:
        """Return the fields of the file that do not fit what was set here."""
        return ()

    def create_resource(self, context: dg.InitResourceContext) -> Self:
        """Give assets and sensors the resource with the settings of the home.

        Raises
        ------
        PlanError
            If the config of the run sets what is the deployment's.
        """
        in_code = context.resource_def.config_schema.default_value or {}
        resource = self._resolved(dict(self))
        resource.check_run(self._resolved(in_code))
        return resource.of_home()

    def _resolved(self, values: Mapping[str, Any]) -> Self:
        """Return a resource like this; Dagster leaves some variables of the environment as names.

        It does so in what code set, where the config of a run sets anything else.
        """
        names = {
            field: value["env"] if isinstance(value, dict) else value.env_var_name
            for field, value in values.items()
            if isinstance(value, dg.EnvVar) or (isinstance(value, dict) and set(value) == {"env"})
        }
        variables = {field: dg.EnvVar(name).get_value() for field, name in names.items()}
        return type(self)(**{**values, **variables})

    def check_run(self, in_code: Self) -> None:
        """Raise PlanError where the config of a run, which this has, sets what it may not.

        Parameters
        ----------
        in_code : Deployed
            The same resource without the config of the run.
        """
        # The home first: the other fields are compared with what its file says.
        for name in ("home", *OF_DEPLOYMENT.get(self.section, ())):
            value = getattr(self, name)
            if name not in self.model_fields_set or value == getattr(in_code, name):
                continue
            if value != getattr(in_code.of_home(), name):
                shown = "a value not shown" if self._is_secret(name) else repr(value)
                raise PlanError(
                    f"{self.section}.{name} is the deployment's and cannot be set in the config of "
                    f"a run, got {shown}; leave it out there, or change the home's {SETTINGS}"
                )

    def _check(self, section: Section) -> None:
        """Raise, with file and line, where the file sets what cannot be, used or not."""
        fields = self.file_fields()
        for name in section.values:
            if name not in fields:
                raise PlanError(
                    f"{section.where(name)}: section {section.name!r} has no field {name!r}; its "
                    f"fields are {fields!r}"
                )
        try:
            type(self)(**section.values)
        except _RefusedError as error:
            where, variable = section.where(error.field), section.variables.get(error.field)
            if variable is not None:  # its value may be a secret
                rule = error.in_section(error.rule, section.name)
                raise PlanError(f"{where}: {rule}; correct the variable {variable!r}") from None
            raise PlanError(f"{where}: {error.in_section(str(error), section.name)}") from None

    @classmethod
    def file_fields(cls) -> list[str]:
        """Return the fields that a file may set: all but where it lies."""
        return sorted(set(cls.model_fields) - NOT_IN_FILES)

    @classmethod
    def _is_secret(cls, name: str) -> bool:
        """Tell whether a field is kept out of errors."""
        declared = cls.model_fields.get(name)
        extra = declared.json_schema_extra if declared is not None else None
        return isinstance(extra, dict) and _IS_SECRET in extra

    @classmethod
    def _refused(cls, error: ValidationError) -> _RefusedError:
        """Say the first thing that is wrong."""
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        field = ".".join(map(str, (cls.section, *first["loc"])))
        if first["type"] == "extra_forbidden":
            rule = f"is not a field; the fields are {cls.file_fields()!r}"
            return _RefusedError(field, rule, repr(first["input"]))
        rule = _PYDANTIC.sub("must", first["msg"]).removeprefix("Value error, ")
        if first["type"] == "list_type" and isinstance(first["input"], (str, int, float, dict)):
            rule = f"must be a list, such as {[first['input']]!r}"
        value = "a value not shown" if cls._is_secret(name) else repr(first["input"])
        return _RefusedError(field, rule, value)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: Any) -> Any:
        """Leave out what is None: it was not set."""
        return {name: value for name, value in values.items() if value is not None}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: Any) -> Any:
        """Refuse true and false where a number is wanted; Python counts them as 1 and 0."""
        items = value if isinstance(value, list) else [value]
        wants_number = cls.model_fields[info.field_name].annotation in _NUMBERS
        if wants_number and any(isinstance(item, bool) for item in items):
            raise PydanticCustomError("no_number", "must be a number")
        return value

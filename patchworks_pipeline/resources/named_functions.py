"""Which functions the config of a run may name: importing one runs the code of its module.

Whether there is a function is told here without importing it: that of a model takes seconds.
"""

import symtable
from importlib.util import find_spec
from typing import Protocol

from patchworks_core.errors import PlanError, SegmentationError
from patchworks_core.plugins.segmentation import import_path, segmentation_names, short_name
from patchworks_pipeline.instance.home import SETTINGS


class Naming(Protocol):
    """A segmentation of a deployment, which names functions."""

    function: str
    functions: list[str]


def check_named(function: str, deployment: Naming) -> None:
    """Raise PlanError unless a function is built in, an installed plugin, or named by a deployment.

    Parameters
    ----------
    function : str
        As the config of a run names it.
    deployment : Naming
    """
    allowed = {*segmentation_names(), deployment.function, *deployment.functions}
    if short_name(function) not in allowed:
        raise PlanError(
            f"segmentation.function must be one of {sorted(allowed)!r} in the config of a run, got "
            f"{function!r}; to allow it, add it to the field 'functions' of the segmentation in "
            f"the home's {SETTINGS}"
        )


def check_exists(function: str) -> None:
    """Raise SegmentationError where a function is not built in, no plugin, and in no module.

    Examples
    --------
    >>> check_exists("threshold"), check_exists("json:loads")
    (None, None)
    """
    name = short_name(function)
    if name in segmentation_names():
        return
    module, attribute = import_path(name)
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # the package that it is in, or no name of a module
        spec = None
    if spec is None:
        raise SegmentationError(
            f"there is no module {module!r} for the segmentation function {name!r}; it must be "
            "installed, or its folder on PYTHONPATH"
        )
    if spec.origin and spec.origin.endswith(".py"):
        with open(spec.origin, encoding="utf-8") as file:
            source = file.read()
        names = symtable.symtable(source, spec.origin, "exec").get_identifiers()
        # What a star brings, or a function of the module makes up, nobody knows before.
        if attribute.partition(".")[0] not in {*names} and not (
            "import *" in source or "__getattr__" in names
        ):
            raise SegmentationError(f"{spec.origin} has no {attribute!r}, of {name!r}; correct it")

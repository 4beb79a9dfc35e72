"""Which functions the config of a run may name: importing one runs the code of its module."""

from typing import Protocol

from patchworks_core.errors import PlanError
from patchworks_core.plugins.segmentation import segmentation_names, short_name
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

"""Which segmentations the images of a home have, as its file of settings says."""

from collections.abc import Callable
from dataclasses import dataclass, field

from patchworks_core.errors import PlanError
from patchworks_pipeline.instance.home import SETTINGS, home_folder
from patchworks_pipeline.lineage import Mount
from patchworks_pipeline.resources.resources import SegmentationDefaults
from patchworks_pipeline.resources.settings_file import (
    RELATIONS,
    SEGMENTATIONS,
    Section,
    read_section,
)


@dataclass(frozen=True, slots=True)
class Several:
    """The segmentations of every image of a home."""

    names: tuple[str, ...] = ()
    """Empty where there is one, without a name."""

    relations: dict[str, str] = field(default_factory=dict)
    """Segmentation to segmentation: objects of the first lie in objects of the second."""

    @classmethod
    def of_home(cls, home: str = "") -> "Several":
        """Read what the settings of a home say; nothing is one segmentation.

        Parameters
        ----------
        home : str
            As `Deployed.home`.

        Raises
        ------
        PlanError
            If both sections stand, or a name is none, or a relation names what is none; it says
            in which line.
        """
        path = home_folder(home) / SETTINGS
        section = read_section(path, SEGMENTATIONS)
        relations = read_section(path, RELATIONS)
        names = tuple(section.values)
        one = read_section(path, SegmentationDefaults.section)
        if names and one.values:
            raise PlanError(
                f"{one.where()}: sections 'segmentation' and 'segmentations' cannot both stand; "
                "make the one a block of the other, such as 'segmentations: {nuclei: {...}}'"
            )
        for i, name in enumerate(names, 1):  # each with those before it, so that its line is said
            _check(section, name, Mount, (), names[:i])
        for a, b in relations.values.items():
            _check(relations, a, Mount, (), names, ((a, b),))
        return cls(names, {str(a): str(b) for a, b in relations.values.items()})


def _check(section: Section, name: str, kind: Callable[..., object], *values: object) -> None:
    """Say of a value that cannot be in which line it stands."""
    try:
        kind(*values)
    except PlanError as error:
        raise PlanError(f"{section.where(name)}: {error}") from None

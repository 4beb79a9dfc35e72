"""Which segmentations the images of a home have, as its file of settings says."""

from dataclasses import dataclass, field

from patchworks_core.errors import PlanError
from patchworks_pipeline.instance.home import SETTINGS, home_folder
from patchworks_pipeline.lineage import Mount
from patchworks_pipeline.resources.resources import SegmentationDefaults
from patchworks_pipeline.resources.settings_file import RELATIONS, SEGMENTATIONS, read_section


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
            If both sections stand, or a name is none, or a relation names what is none.
        """
        path = home_folder(home) / SETTINGS
        section = read_section(path, SEGMENTATIONS)
        relations = read_section(path, RELATIONS)
        names = tuple(section.values)
        if names and read_section(path, SegmentationDefaults.section).values:
            raise PlanError(
                f"{path}: sections 'segmentation' and 'segmentations' cannot both stand; make the "
                "one a block of the other, such as 'segmentations: {nuclei: {...}}'"
            )
        try:
            Mount((), names, tuple(relations.values.items()))
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None
        return cls(names, {str(a): str(b) for a, b in relations.values.items()})

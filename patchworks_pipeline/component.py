"""The deployment as a component of Dagster: what `definitions` takes, written in a ``defs.yaml``.

``dg scaffold defs patchworks_pipeline.Segmentation NAME`` writes one.
"""

from typing import Any

import dagster as dg
from pydantic import Field

from patchworks_core.errors import PlanError
from patchworks_pipeline.definitions import RESOURCES, definitions
from patchworks_pipeline.lineage import OF_SEGMENTATION
from patchworks_pipeline.resources.backfills import Backfills
from patchworks_pipeline.resources.named_functions import check_exists
from patchworks_pipeline.resources.resources import SegmentationDefaults
from patchworks_pipeline.resources.several import Several


class Segmentation(dg.Component, dg.Model, dg.Resolvable):
    """Segment images larger than memory tile by tile into one consistent label image."""

    key_prefix: str = Field(
        "",
        description="Stands before every name, where a code location has several deployments or "
        "other assets too.",
    )
    segmentation: dict[str, Any] = Field(
        {}, description="Of images that have one: function, channel, tile_shape, overlap, ..."
    )
    segmentations: dict[str, dict[str, Any]] = Field(
        {}, description="Of images that have several: by name, with the same fields."
    )
    relations: dict[str, str] = Field(
        {}, description="In which objects of a second segmentation those of a first lie."
    )
    resources: dict[str, dict[str, Any]] = Field(
        {}, description="By name, such as {store: {root: /data/labels}}."
    )
    backfills: dict[str, Any] = Field({}, description="Such as {max_partitions_per_run: 1000}.")
    timezone: str = Field("UTC", description="Of the schedules, such as Europe/Berlin.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the definitions; what is not said here is as ``patchworks.yaml`` of the home says.

        Raises
        ------
        PlanError
            If both ways to say the segmentation are used, a name or a field is unknown, or another
            component has the same prefix.
        SegmentationError
            If there is no such function.
        """
        self._check_alone(context)
        if self.segmentation and self.segmentations:
            raise PlanError(
                "'segmentation' and 'segmentations' cannot both stand; make the one a block of the "
                "other"
            )
        fields = dict(self.resources)
        if self.segmentation:
            fields[OF_SEGMENTATION] = self.segmentation
        if unknown := sorted(set(fields) - set(RESOURCES)):
            raise PlanError(
                f"there is no resource {unknown[0]!r}; the resources are {sorted(RESOURCES)!r}"
            )
        named = {
            name: SegmentationDefaults(**chosen) for name, chosen in self.segmentations.items()
        }
        for chosen in (self.segmentation, *self.segmentations.values()):
            if "function" in chosen:
                check_exists(str(chosen["function"]))
        relations = self.relations
        if not (self.segmentation or self.segmentations):
            several = Several.of_home(self.key_prefix)
            named = {name: SegmentationDefaults() for name in several.names}
            relations = relations or several.relations
        return definitions(
            key_prefix=self.key_prefix,
            segmentations=named,
            relations=relations,
            resources={name: RESOURCES[name](**chosen) for name, chosen in fields.items()},
            backfills=Backfills(**self.backfills),
            timezone=self.timezone,
        )

    def _check_alone(self, context: dg.ComponentLoadContext) -> None:
        """Raise PlanError where two components would give the same names."""
        every = context.component_tree.get_all_components(of_type=type(self))
        n_same = sum(other.key_prefix == self.key_prefix for other in every)
        if n_same > 1:
            raise PlanError(
                f"every component patchworks_pipeline.Segmentation of a code location must have a "
                f"key_prefix of its own, got {self.key_prefix!r} in {n_same} of them; give each "
                "another in its defs.yaml"
            )

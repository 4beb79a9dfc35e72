"""How a backfill is cut into runs."""

from typing import ClassVar

import dagster as dg

from patchworks_pipeline.resources.settings import Deployed, setting


class Backfills(Deployed):
    """How a backfill of tiles is cut into runs; read when the code location is loaded."""

    section: ClassVar[str] = "backfills"

    max_partitions_per_run: int = setting(
        0,
        ge=0,
        description="Tiles of one run at most, so that several machines share a backfill, or that "
        "a run ends within a night; 0 is one run for all.",
    )

    def policy(self) -> dg.BackfillPolicy:
        """Return this as Dagster has it."""
        if self.max_partitions_per_run == 0:
            return dg.BackfillPolicy.single_run()
        return dg.BackfillPolicy.multi_run(self.max_partitions_per_run)

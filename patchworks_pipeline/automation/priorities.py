"""Which run goes first, where more wait than may run: Dagster takes those of higher priority.

A run that is nearer to the labels goes before one that begins another image, so that an image is
finished before the next is begun. All runs of an urgent image go before all of others.
"""

from enum import IntEnum

import dagster as dg

from patchworks_pipeline.resources.resources import Automation

PRIORITY = "dagster/priority"

PER_LEVEL = 10
"""How much one level of urgency is above another: more than the steps have."""


class Step(IntEnum):
    """How near a run is to the labels."""

    PLAN = 0
    STAGE = 1
    MERGE = 2


def priority_tags(level: int, step: Step, automation: Automation) -> dict[str, str]:
    """Return the tags of a run for an image of a level of urgency; 0 is the ordinary one."""
    priority = level * PER_LEVEL + (step if automation.finish_first else 0)
    return {PRIORITY: str(priority)} if priority else {}


def level_of_run(run: dg.DagsterRun) -> int:
    """Return the level of urgency that a run has by its tags."""
    try:
        return int(run.tags.get(PRIORITY, "0")) // PER_LEVEL
    except ValueError:  # a person may set any
        return 0

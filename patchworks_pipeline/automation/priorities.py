"""Which run goes first, where more wait than may run: Dagster takes those of higher priority.

A run that is nearer to the labels goes before one that begins another image, so that an image is
finished before the next is begun. All runs of an urgent image go before all of others.
"""

from dataclasses import replace
from enum import IntEnum

import dagster as dg

from patchworks_pipeline.automation.events import images_of_run
from patchworks_pipeline.lineage import Mount
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import Automation

PRIORITY = "dagster/priority"

PER_LEVEL = 10
"""How much one level of urgency is above another: more than the steps have."""


WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]
"""Of runs that have not begun."""


class Step(IntEnum):
    """How near a run is to the labels."""

    PLAN = 0
    STAGE = 1
    MERGE = 2


def priority_tags(level: int, step: Step, automation: Automation) -> dict[str, str]:
    """Return the tags of a run for an image of a level of urgency; 0 is the ordinary one."""
    priority = level * PER_LEVEL + (step if automation.finish_first else 0)
    return {PRIORITY: str(priority)} if priority else {}


def put_first(instance: dg.DagsterInstance, mount: Mount, folder: ImageFolder) -> int:
    """Let an image go before all others: its runs that wait, and those to come.

    Parameters
    ----------
    instance : DagsterInstance
    mount : Mount
        Whose runs are looked through.
    folder : ImageFolder
        Of the image, not of one segmentation.

    Returns
    -------
    int
        How many runs waited for it.
    """
    lineages = {mount.shared, *mount.lineages}
    own, highest = [], 0
    for run in instance.get_runs(dg.RunsFilter(statuses=WAITING)):
        images = {image for one in lineages for image in images_of_run(instance, one, run)}
        if folder.key in images:
            own.append(run)
        else:
            highest = max(highest, level_of_run(run))
    acquisition = folder.acquisition()
    level = max(highest + 1, acquisition.priority)
    folder.write_acquisition(replace(acquisition, priority=level))
    for run in own:
        step = _priority_of(run) % PER_LEVEL
        instance.add_run_tags(run.run_id, {PRIORITY: str(level * PER_LEVEL + step)})
    return len(own)


def level_of_run(run: dg.DagsterRun) -> int:
    """Return the level of urgency that a run has by its tags."""
    return _priority_of(run) // PER_LEVEL


def _priority_of(run: dg.DagsterRun) -> int:
    try:
        return int(run.tags.get(PRIORITY, "0"))
    except ValueError:  # a person may set any
        return 0

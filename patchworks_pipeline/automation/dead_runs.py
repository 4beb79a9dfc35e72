"""The sensor that ends runs whose process is gone, so that nothing waits for what they held.

Dagster's run monitoring looks every half minute, and frees a slot half a minute after its run has
ended; a home says in its ``dagster.yaml`` how often. A look costs milliseconds, so this looks in
every round of the daemon.
"""

import dagster as dg

from patchworks_pipeline.automation.defining import running_sensor
from patchworks_pipeline.lineage import Lineage


def define_dead_runs(lineage: Lineage) -> dg.SensorDefinition:
    """Define the sensor that ends dead runs."""
    return running_sensor(
        lineage,
        dead_runs,
        description="Ends runs whose process is gone, and frees the slots that they held.",
    )


def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """End dead runs, also while automation is switched off."""
    # SQLAlchemy takes half a second to import: whoever only loads the definitions goes without.
    from patchworks_pipeline.instance.run_processes import end_dead_runs

    ended = end_dead_runs(context.instance)
    for run_id, why in ended.items():
        context.log.warning(f"run {run_id} has ended: {why}")
    return dg.SkipReason(f"{len(ended)} runs had no process any more")

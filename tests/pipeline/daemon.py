"""What the Dagster daemon does with sensors, in this process: ticks, run keys, runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.definitions import defs
from patchworks_pipeline.resources.resources import AcquisitionSource, Automation, LabelStore

DEFAULTS = {
    "store": LabelStore(),
    "source": AcquisitionSource(),
    "automation": Automation(),
    "alerts": Alerts(),
}

SENSORS = {sensor.name: sensor for sensor in defs.sensors or ()}

landing_sensor, staging_sensor, merging_sensor = (
    SENSORS[name] for name in ("landing_sensor", "staging_sensor", "merging_sensor")
)

CHAIN = (landing_sensor, staging_sensor, merging_sensor)


@dataclass
class Daemon:
    """Ticks of sensors on one instance, and the runs they ask for."""

    instance: dg.DagsterInstance
    resources: dict[str, Any]
    cursors: dict[str, str | None] = field(default_factory=dict)
    runs: list[tuple[str, dg.RunRequest]] = field(default_factory=list)
    """Runs that were started, with their job."""
    location: dg.Definitions = defs
    prefix: str = ""
    """Of the deployment, where it is one of several in the code location."""
    names: tuple[str, ...] = ()
    """Of the sensors, where they are not the usual ones."""
    failed: list[str] = field(default_factory=list)
    """Jobs whose runs failed."""

    def chain(self) -> tuple[dg.SensorDefinition, ...]:
        """Return the sensors from landing to merge."""
        sensors = {sensor.name: sensor for sensor in self.location.sensors or ()}
        if self.names:
            return tuple(sensors[name] for name in self.names)
        if not self.prefix:
            return CHAIN
        return tuple(sensors[f"{self.prefix}__{sensor.name}"] for sensor in CHAIN)

    def round(self) -> None:
        """Tick the chain once."""
        for sensor in self.chain():
            self.tick(sensor)

    def resources_of(self, sensor: dg.SensorDefinition) -> dict[str, Any]:
        resources = {**DEFAULTS, **self.resources}
        return {key: resources[key] for key in sensor.required_resource_keys}

    def evaluate(self, sensor: dg.SensorDefinition) -> dg.SensorResult:
        """Evaluate a tick, and keep nothing of it."""
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get(sensor.name),
            resources=self.resources_of(sensor),
        ) as context:
            result = sensor(context)
        return dg.SensorResult(skip_reason=result) if isinstance(result, dg.SkipReason) else result

    def tick(self, sensor: dg.SensorDefinition, *, run: bool = True) -> list[dg.RunRequest]:
        """Do what the daemon does with a tick; return the runs that it started."""
        data = self.evaluate(sensor)
        for request in data.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(
                request.partitions_def_name, list(request.partition_keys)
            )
        for event in data.asset_events or []:
            self.instance.report_runless_asset_event(event)
        started = [r for r in data.run_requests or [] if not self.was_run(r.run_key)]
        for request in started:
            if request.partition_key is not None:  # a daemon refuses the whole tick otherwise
                assert self.instance.has_dynamic_partition(
                    "/".join(filter(None, (self.prefix, "images"))), request.partition_key
                )
            job = request.job_name or sensor.job_name
            self.runs.append((job, request))
            if run:
                self.execute(job, request)
        if data.cursor is not None:
            self.cursors[sensor.name] = data.cursor
        return started

    def was_run(self, run_key: str | None) -> bool:
        filters = dg.RunsFilter(tags={"dagster/run_key": str(run_key)})
        return bool(self.instance.get_runs(filters, limit=1))

    def execute(self, job: str, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        tags = {**request.tags, "dagster/run_key": str(request.run_key)}
        result = self.location.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=request.partition_key,
            tags=tags,
            run_config=request.run_config,
            asset_selection=request.asset_selection,
            raise_on_error=False,
        )
        self.failed += [] if result.success else [job]
        return result

    def until_quiet(self, after_each_round: Callable[[], None] = lambda: None) -> list[str]:
        """Tick the chain until no sensor asks for a run; return the jobs that ran."""
        before, quiet = len(self.runs), 0
        while quiet < 2:
            n = len(self.runs)
            self.round()
            quiet = quiet + 1 if len(self.runs) == n else 0
            after_each_round()
        return [job for job, _ in self.runs[before:]]

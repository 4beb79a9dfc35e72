"""patchworks as a Dagster pipeline: names, schedules and records around `patchworks_core`."""

"""Acquisitions are an asset of their own: what was refused is a check that failed, by image."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from patchworks_pipeline.cli.runs import open_home
from patchworks_pipeline.instance.home import BATCH_VARIABLE
from patchworks_pipeline.resources.resources import AcquisitionSource
from tests.pipeline.automation.test_sensors import SETTLE, clock
from tests.pipeline.daemon import Daemon, landing_sensor
from tests.tissue import tissue

__all__ = ["clock"]


@pytest.fixture
def instance(home, monkeypatch):
    """An instance as a new home has it."""
    monkeypatch.setenv(BATCH_VARIABLE, "1000")
    with open_home(home) as instance:
        yield instance


@pytest.fixture
def daemon(instance, clock, landing) -> Daemon:
    return Daemon(instance, {"source": AcquisitionSource(settle_seconds=SETTLE)})


@pytest.fixture
def landing(home) -> Path:
    return home / "landing"


def land(daemon: Daemon, clock) -> None:
    for _ in range(2):
        daemon.tick(landing_sensor, run=False)
        clock.now += SETTLE


def verdicts(instance: dg.DagsterInstance) -> dict[str | None, str]:
    """Return what the check of acquisitions says of each image."""
    history = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("acquisition"), "can_be_taken"), limit=10
    )
    return {record.partition: record.status.value for record in history}


def test_what_is_said_of_one_image_does_not_hide_what_is_said_of_another(
    daemon, clock, landing, instance
):
    np.save(landing / "a.npy", tissue((8, 8)))
    for name in ("b.tif", "c.tif"):
        (landing / name).write_bytes(b"not a tiff")
    land(daemon, clock)
    assert verdicts(instance) == {"a": "SUCCEEDED", "b": "FAILED", "c": "FAILED"}
    assert set(instance.get_dynamic_partitions("images")) == {"a", "b", "c"}
    # Replaced by another bad one, and then by a good one: each is told in its turn.
    (landing / "b.tif").write_bytes(b"no tiff either")
    land(daemon, clock)
    assert verdicts(instance)["b"] == "FAILED"
    (landing / "b.tif").unlink()
    np.save(landing / "b.npy", tissue((8, 8)))
    land(daemon, clock)
    assert verdicts(instance) == {"a": "SUCCEEDED", "b": "SUCCEEDED", "c": "FAILED"}
    landed = instance.get_materialized_partitions(dg.AssetKey("acquisition"))
    assert landed == {"a", "b"}


def test_a_refusal_for_the_name_of_another_is_not_told_of_the_other(
    daemon, clock, landing, instance
):
    for name in ("a b.npy", "a_b.npy"):
        np.save(landing / name, tissue((8, 8)))
    land(daemon, clock)
    assert verdicts(instance) == {"a_b": "SUCCEEDED", None: "FAILED"}

"""A home and an instance of their own for every test, and the jobs as calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click import unstyle
from typer.testing import CliRunner

from patchworks_pipeline.cli.main import app
from patchworks_pipeline.cli.runs import RANGE_END, RANGE_START, register
from patchworks_pipeline.definitions import defs
from patchworks_pipeline.partitions import tile_keys
from patchworks_pipeline.records import Acquisition, ImageFolder
from patchworks_pipeline.resources.resources import LabelStore
from tests.tissue import FUNCTIONS, HALO, TILE, environment_of_functions

QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


@dataclass
class Pipeline:
    """The jobs of one image on one instance."""

    instance: dg.DagsterInstance
    resources: dict[str, Any]

    def register(self, path: Path, key: str = "tissue", **chosen: Any) -> ImageFolder:
        """Make an image known, in tiles with a halo unless chosen otherwise."""
        chosen = {"tile_shape": (TILE,), "overlap": (HALO,), **chosen}
        chosen.setdefault("function", "tissue_functions:perfect")
        return register(self.instance, LabelStore(), key, Acquisition(str(path), **chosen))

    def run(self, job: str, **options: Any) -> dg.ExecuteInProcessResult:
        """Run a job; a failed run is returned, not raised."""
        ops = options.pop("ops", {})
        return defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            run_config={"resources": self.resources, "ops": ops, "loggers": QUIET},
            raise_on_error=False,
            **options,
        )

    def plan(self, folder: ImageFolder) -> dg.ExecuteInProcessResult:
        return self.run("plan_image", partition_key=folder.key)

    def stage(self, folder: ImageFolder, *blocks: str, **config: Any) -> dg.ExecuteInProcessResult:
        """Stage one block, or the range of all."""
        keys = tile_keys(folder.key, blocks or folder.plan().grid.block_keys())
        ops = {"staged_labels": {"config": config}} if config else {}
        if len(keys) == 1:
            return self.run("stage_tiles", partition_key=keys[0], ops=ops)
        return self.run("stage_tiles", tags={RANGE_START: keys[0], RANGE_END: keys[-1]}, ops=ops)

    def merge(self, folder: ImageFolder, **config: Any) -> dg.ExecuteInProcessResult:
        """Merge the labels; the report is not asked for, because its pictures take a second."""
        ops = {"global_lut": {"config": config}} if config else {}
        names = ("boundary_pairs", "global_lut", "merged_labels")
        keys = [dg.AssetKey(name) for name in names]
        return self.run("merge_image", partition_key=folder.key, ops=ops, asset_selection=keys)

    def run_to_labels(
        self, folder: ImageFolder, **config: Any
    ) -> dict[str, dg.ExecuteInProcessResult]:
        """Run the chain as far as merged labels, all of which must succeed."""
        done = {"plan": self.plan(folder), "stage": self.stage(folder)}
        done["merge"] = self.merge(folder, **config)
        return _all_succeeded(done)

    def run_all(self, folder: ImageFolder) -> dict[str, dg.ExecuteInProcessResult]:
        """Run the whole chain, which must succeed."""
        done = {"plan": self.plan(folder), "stage": self.stage(folder)}
        done["merge"] = self.run("merge_image", partition_key=folder.key)
        return _all_succeeded(done)


def _all_succeeded(
    done: dict[str, dg.ExecuteInProcessResult],
) -> dict[str, dg.ExecuteInProcessResult]:
    for result in done.values():
        assert result.success, error_of(result)
    return done


def call_command_line(*arguments: object) -> tuple[int, str]:
    """Call ``patchworks`` in this process; return the exit code and the printed words."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(unstyle(result.output).split())


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """Return the metadata of the one materialization of an asset."""
    (event,) = result.asset_materializations_for_node(asset)
    return {name: getattr(value, "value", value) for name, value in event.metadata.items()}


def error_of(result: dg.ExecuteInProcessResult) -> str:
    """Return why a run failed, in the words a person is shown."""
    (event,) = [event for event in result.all_events if event.is_step_failure]
    data = event.step_failure_data
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return data.user_failure_data.description if data.user_failure_data else error.message


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and the segmentation functions within reach."""
    home = tmp_path / "home"
    monkeypatch.setenv("PATCHWORKS_HOME", str(home))
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    for name, value in environment_of_functions().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATCHWORKS_TEST_MENDED", str(tmp_path / "mended"))
    monkeypatch.syspath_prepend(FUNCTIONS)
    return home


@pytest.fixture
def mended(tmp_path: Path) -> Path:
    """The file whose existence mends `tissue_functions.fails_at_mark`."""
    return tmp_path / "mended"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def pipeline(home: Path, instance: dg.DagsterInstance) -> Pipeline:
    return Pipeline(instance, {"budget": {"config": {"workers": 2}}})

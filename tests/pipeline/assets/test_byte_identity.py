"""The same input gives the same bytes, for any number and kind of workers."""

from __future__ import annotations

import dagster as dg
import pytest

from tests.pipeline.conftest import Pipeline
from tests.tissue import files_under, tissue, write_tiff


@pytest.fixture
def labels_of(home, tmp_path, monkeypatch):
    """Run everything in a home of its own; return every file of the merged labels."""
    path = write_tiff(tmp_path / "tissue.tif", tissue())

    def run(workers: int, kind: str) -> dict[str, bytes]:
        monkeypatch.setenv("PATCHWORKS_HOME", str(tmp_path / f"{kind}{workers}"))
        with dg.DagsterInstance.ephemeral() as instance:
            budget = {"workers": workers, "kind": kind}
            pipeline = Pipeline(instance, {"budget": {"config": budget}})
            folder = pipeline.register(path)
            pipeline.run_to_labels(folder)
        return files_under(folder.container / "labels")

    return run


@pytest.mark.slow
def test_workers_do_not_change_a_byte(labels_of):
    expected = labels_of(1, "threads")
    for workers, kind in [(2, "threads"), (2, "processes")]:
        assert labels_of(workers, kind) == expected

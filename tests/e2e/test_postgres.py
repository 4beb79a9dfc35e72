"""The same on PostgreSQL, by the file that `docs/deploy.md` says to copy."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from patchworks_pipeline.instance.home import BATCH_VARIABLE, prepare_home
from tests.e2e.day import spend_a_day
from tests.e2e.postgres import programs, running_postgres
from tests.pipeline.instance.test_event_storage import KEYS, as_it_is_read, run_tiles

ROOT = Path(__file__).parents[2]

DEPLOYED = ROOT / "deploy" / "dagster-postgres.yaml"

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed"),
    pytest.mark.skipif(
        importlib.util.find_spec("dagster_postgres") is None,
        reason="dagster-postgres is not installed",
    ),
]


RECIPE = re.compile(r"## One GPU server with PostgreSQL\n\n```console\n(.*?)```", re.DOTALL)


def follow_recipe(home: Path, url: str, *, then: str) -> str:
    """Run what the page on deploying says, up to `patchworks ui`; give what another command says.

    Left out is the installation; home and database are the test's.
    """
    (recipe,) = RECIPE.findall((ROOT / "docs" / "deploy.md").read_text())
    recipe = recipe.replace("/srv/patchworks/home", str(home))
    recipe, n = re.subn(r"(?<=DAGSTER_PG_URL=)\S+", url, recipe)
    install, *lines, serve = recipe.splitlines()
    assert n == 1
    assert (install[:12], serve) == ("pip install ", "patchworks ui")
    script = "\n".join([*lines, f"{sys.executable} -m patchworks_pipeline {then}"])
    own = ("PATCHWORKS_HOME", "DAGSTER_HOME", "DAGSTER_PG_URL")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_recipe_works_in_a_home_that_is_not_there_yet(tmp_path, monkeypatch):
    home = tmp_path / "home"
    with running_postgres() as url:
        follow_recipe(home, url, then="status")
        assert (home / "dagster" / "dagster.yaml").read_bytes() == DEPLOYED.read_bytes()
        monkeypatch.setenv("DAGSTER_PG_URL", url)
        with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
            assert type(instance.event_log_storage).__name__ == "PostgresEvents"
    assert not list((home / "dagster").rglob("*.db")), "something was kept in SQLite"


@pytest.mark.slow
def test_an_acquisition_that_lands_becomes_labels_on_postgresql(tmp_path):
    home = tmp_path / "home"
    prepare_home(home)
    shutil.copy(DEPLOYED, home / "dagster" / "dagster.yaml")
    with running_postgres() as url:
        timeline = spend_a_day(home, DAGSTER_PG_URL=url)
    print(f"\n{timeline}")
    assert not list((home / "dagster").rglob("*.db")), "something was kept in SQLite"


DAGSTERS_OWN = "storage: {postgres: {postgres_url: {env: DAGSTER_PG_URL}}}\n"


def test_what_is_written_together_reads_as_what_is_written_alone(tmp_path, monkeypatch):
    monkeypatch.setenv(BATCH_VARIABLE, "1000")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "dagster.yaml").write_text(DAGSTERS_OWN)
    (tmp_path / "ours").mkdir()
    shutil.copy(DEPLOYED, tmp_path / "ours" / "dagster.yaml")
    read = {}
    for name in ("ours", "own"):
        with running_postgres() as url:
            monkeypatch.setenv("DAGSTER_PG_URL", url)
            with dg.DagsterInstance.from_config(str(tmp_path / name)) as instance:
                storage = type(instance.event_log_storage).__name__
                assert storage == {"ours": "PostgresEvents", "own": "PostgresEventLogStorage"}[name]
                result = run_tiles(instance)
                assert result.success
                read[name] = as_it_is_read(instance, result.run_id)
    assert read["ours"] == read["own"]
    assert read["ours"]["partitions"] == KEYS

"""The same on PostgreSQL, by the file that `docs/deploy.md` says to copy."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from patchworks_pipeline.home import prepare_home
from tests.e2e.day import spend_a_day
from tests.e2e.postgres import programs, running_postgres

DEPLOYED = Path(__file__).parents[2] / "deploy" / "dagster-postgres.yaml"

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed"),
    pytest.mark.skipif(
        importlib.util.find_spec("dagster_postgres") is None,
        reason="dagster-postgres is not installed",
    ),
]


def test_an_acquisition_that_lands_becomes_labels_on_postgresql(tmp_path):
    home = tmp_path / "home"
    prepare_home(home)
    shutil.copy(DEPLOYED, home / "dagster" / "dagster.yaml")
    with running_postgres() as url:
        timeline = spend_a_day(home, DAGSTER_PG_URL=url)
    print(f"\n{timeline}")
    assert not list((home / "dagster").rglob("*.db")), "something was kept in SQLite"

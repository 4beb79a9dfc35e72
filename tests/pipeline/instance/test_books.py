"""What is said where the database of a home, or the disk of its store, is not there."""

from __future__ import annotations

import shutil

import pytest
from sqlalchemy.exc import OperationalError

from patchworks_pipeline.instance.books import fault_of_books, fault_of_server
from tests.pipeline.conftest import call_command_line
from tests.tissue import tissue, write_tiff

SETTINGS = """\
storage:
  sqlite:
    base_dir: {env: PATCHWORKS_TEST_BOOKS}
"""


def test_a_variable_of_the_settings_that_is_not_set_is_named(home, monkeypatch):
    monkeypatch.delenv("PATCHWORKS_TEST_BOOKS", raising=False)
    (home / "dagster").mkdir(parents=True)
    (home / "dagster" / "dagster.yaml").write_text(SETTINGS)
    code, printed = call_command_line("status", "--home", home)
    words = " ".join(printed.split())
    assert code == 2, words
    assert "takes PATCHWORKS_TEST_BOOKS from the environment, where it is not set" in words
    assert "move that folder away" not in words


def test_a_database_server_that_does_not_answer_is_to_be_started(tmp_path):
    psycopg2 = pytest.importorskip("psycopg2")
    utils = pytest.importorskip("dagster_postgres.utils")
    refused = OperationalError("select 1", {}, psycopg2.OperationalError("Connection refused"))
    given_up = utils.DagsterPostgresException("too many retries for DB connection")
    given_up.__cause__ = refused
    for error in (refused, given_up):
        fault = fault_of_books(error, tmp_path)
        assert fault is not None
        assert "Connection refused; start it" in str(fault)
        assert "move that folder" not in str(fault)
    assert fault_of_server(OperationalError("select 1", {}, Exception("locked")), tmp_path) is None


def test_a_store_whose_disk_is_not_there_is_said(home, tmp_path):
    image = write_tiff(tmp_path / "a.tif", tissue((40, 40)))
    chosen = ("--segmentation", "tissue_functions:perfect", "--tile-shape", 32, "--overlap", 8)
    assert call_command_line("run", image, *chosen)[0] == 0
    assert call_command_line("status")[0] == 0
    shutil.rmtree(home / "store")
    (home / "store").mkdir()  # where a disk is mounted, there is an empty folder without it
    code, printed = call_command_line("status")
    assert code == 2
    assert "no folder of 1 images is in the store" in " ".join(printed.split())

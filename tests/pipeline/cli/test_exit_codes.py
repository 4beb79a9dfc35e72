"""Exit codes: few, the same in every command, and all of them in the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from patchworks_core.errors import (
    ClusterError,
    ImageError,
    PlanError,
    StageError,
    StorageError,
    TilesFailedError,
)
from patchworks_pipeline.automation.in_process import JobError
from patchworks_pipeline.cli import serving
from patchworks_pipeline.cli.exit_codes import MEANINGS, code_of, code_of_step
from patchworks_pipeline.cli.image_runs import ImageRun
from patchworks_pipeline.cli.main import app
from tests.pipeline.conftest import call_command_line

PAGE = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text()


def test_the_documentation_has_every_exit_code_and_no_other():
    _, table = PAGE.split("## Exit codes\n", 1)
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", table.split("\n## ")[0], re.MULTILINE)
    assert {int(code): words for code, words in rows} == MEANINGS


def test_the_help_says_them():
    code, printed = call_command_line("--help")
    assert code == 0
    for number, words in MEANINGS.items():
        assert f"{number} {words}" in printed


@pytest.mark.parametrize(
    ("error", "code", "of_step"),
    [
        (PlanError("a label image only replaces what patchworks wrote itself"), 2, 2),
        (ImageError("cannot open"), 2, 2),
        (ClusterError("no workers"), 2, 2),
        (TilesFailedError("1 of 3 third views failed", {}), 3, 3),
        (StorageError("no space left on device"), 1, 1),
        # Before a run it is the image that is not staged; within one it was staged anew meanwhile.
        (StageError("tiles were staged again while they were merged"), 2, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_has_the_same_code_in_a_command_and_in_a_step_of_its_run(error, code, of_step):
    assert code_of(error) == code
    assert code_of_step(type(error).__name__) == of_step
    job = JobError(str(error), error_type=type(error).__name__)
    assert ImageRun.of_job(None, ["merge_image"], job).exit_code == of_step


def test_an_image_that_is_left_as_somebody_changed_it_is_a_matter_of_a_person():
    assert ImageRun.left(None, "it was changed").exit_code == 2
    assert ImageRun(None, (), (), None).exit_code == 0
    assert ImageRun(None, (), (), "another call is at image 'a'").exit_code == 1


def test_a_daemon_that_ends_ends_the_service_as_failed(home, monkeypatch, capsys):
    started = subprocess.Popen

    def quick(command, **options):
        code = "import time; time.sleep(60)" if "dagster_webserver" in command else "exit(-9)"
        return started([sys.executable, "-c", code], **options)

    monkeypatch.setattr(serving.subprocess, "Popen", quick)
    monkeypatch.setattr(serving, "_must_be_free", lambda host, port: None)
    assert serving.serve(home, host="127.0.0.1", port=3000) == 1
    assert "the daemon has ended, with exit code 247" in capsys.readouterr().err


def test_no_command_ends_with_another_code():
    sources = Path(serving.__file__).parent.glob("*.py")
    ends = [
        end
        for path in sources
        for end in re.findall(r"(?:typer\.Exit|sys\.exit|, code=)\(?(\d+)", path.read_text())
    ]
    assert ends == [], "codes have names"
    assert len(app.registered_commands) > 10

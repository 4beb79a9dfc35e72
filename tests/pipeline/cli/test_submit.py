"""An image as jobs of a batch system: ranges of tiles in any order, and the merge after them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr

from patchworks_pipeline.cli.submitting import _Record
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import LabelStore
from tests.e2e.conftest import until
from tests.pipeline.conftest import call_command_line
from tests.tissue import files_under, marked_tissue, tissue, write_tiff

TILED = ("--tile-shape", "32", "--overlap", "8")


@pytest.fixture
def image(tmp_path) -> Path:
    return write_tiff(tmp_path / "tissue.ome.tif", tissue())


def submitted(image: Path, home: Path, *options: object, function="perfect") -> Path:
    """Let jobs be written; return their folder."""
    named = ("--segmentation", f"tissue_functions:{function}", *TILED)
    code, words = call_command_line("submit", image, *named, "--home", home, *options)
    assert code == 0, words
    (script,) = re.findall(r"bash (\S+)$", words)
    return Path(script).parent


def ranges(scripts: Path) -> list[list[str]]:
    """Return the arguments of each task's command."""
    text = (scripts / "tiles.sh").read_text()
    first, last = (
        re.findall(rf"^{name}=\((.*)\)$", text, re.MULTILINE)[0].split()
        for name in ("FIRST", "LAST")
    )
    (command,) = re.findall(r"^exec (.*?) \"", text, re.MULTILINE)
    _, dash, module, *arguments = shlex.split(command)
    assert (dash, module) == ("-m", "patchworks_pipeline")
    assert f"#SBATCH --array=0-{len(first) - 1}\n" in text
    return [[*arguments, *pair] for pair in zip(first, last, strict=True)]


def folder_of(home: Path, key: str = "tissue") -> ImageFolder:
    return LabelStore(root=str(home / "store")).folder(key)


def labels_of(home: Path) -> dict[str, bytes]:
    (labels,) = home.glob("store/*/*/labels/labels/0")
    return files_under(labels)


def run_merge(scripts: Path) -> tuple[int, str]:
    (command,) = re.findall(r"^exec (.*)$", (scripts / "merge.sh").read_text(), re.MULTILINE)
    return call_command_line(*shlex.split(command)[3:])


def run_alone(image: Path, home: Path, function="perfect") -> None:
    """Run the image as `patchworks run` does."""
    named = ("--segmentation", f"tissue_functions:{function}", *TILED)
    code, words = call_command_line("run", image, *named, "--home", home)
    assert code == 0, words


@pytest.mark.slow
def test_tasks_in_any_order_and_some_of_them_twice_give_the_labels_of_a_run(home, image, tmp_path):
    scripts = submitted(image, home, "--tasks", 5)
    commands = ranges(scripts)
    assert len(commands) == 4, "12 tiles, three in each range, as few as there may be"
    for i in (2, 0, 3, 2, 1):
        assert folder_of(home).stage().missing_blocks()
        code, words = call_command_line(*commands[i])
        assert code == 0, words
    assert not folder_of(home).stage().missing_blocks()
    code, words = run_merge(scripts)
    assert code == 0, words
    assert "(staged, merged)" in words, "Dagster is told of the tiles"
    run_alone(image, tmp_path / "other")
    assert labels_of(home) == labels_of(tmp_path / "other")
    code, words = call_command_line("submit", image, "--home", home)
    assert (code, "no tile is missing" in words) == (0, True)
    (command,) = re.findall("merge it with 'patchworks (.*?)'", " ".join(words.split()))
    assert call_command_line(*shlex.split(command))[0] == 0, command


def test_a_tile_that_fails_is_written_in_jobs_again_when_its_cause_is_mended(
    home, mended, tmp_path
):
    image = write_tiff(tmp_path / "tissue.ome.tif", marked_tissue())
    scripts = submitted(image, home, "--tasks", 2, function="fails_at_mark")
    codes = [call_command_line(*command) for command in ranges(scripts)]
    assert sorted(code for code, _ in codes) == [0, 3]
    words = " ".join(words for _, words in codes)
    assert re.search("error: tissue/y001x002: ValueError: .* cannot segment", words)
    (failure,) = folder_of(home).failures()
    assert failure.block == "y001x002"
    mended.touch()
    (command,) = ranges(submitted(image, home, function="fails_at_mark"))
    assert command[-2:] == ["y001x002", "y001x002"]
    assert call_command_line(*command)[0] == 0
    assert not folder_of(home).failures()
    assert not folder_of(home).stage().missing_blocks()


def test_jobs_of_another_plan_stage_nothing(home, image):
    commands = ranges(submitted(image, home))
    assert call_command_line("submit", image, "--overlap", "4", "--home", home)[0] == 0
    code, words = call_command_line(*commands[0])
    assert code == 2
    assert "planned anew since these jobs were written; write them again" in words
    assert len(folder_of(home).stage().missing_blocks()) == 12


def test_tiles_that_are_worked_on_while_an_image_is_planned_anew_are_no_failures_of_that_plan(
    home, image, monkeypatch
):
    commands = ranges(submitted(image, home, "--tasks", 1))
    started = _Record.started

    def planned_anew(*arguments):
        assert call_command_line("submit", image, "--overlap", "4", "--home", home)[0] == 0
        started(*arguments)

    monkeypatch.setattr(_Record, "started", planned_anew)
    code, words = call_command_line(*commands[0], "--workers", "1", "--worker-kind", "threads")
    assert (code, "was begun anew by another call" in words) == (3, True)
    assert words.count("begun anew") < 12, "the others are not tried"
    assert not folder_of(home).failures()


def test_a_range_of_which_the_last_tile_comes_first_is_refused(home, image):
    submitted(image, home)
    words_of = ("stage-range", "tissue", "y001x000", "y000x001", "--home", home)
    code, words = call_command_line(*words_of)
    assert (code, "tile 'y000x001' comes before 'y001x000'" in words) == (2, True)


def test_what_jobs_ask_of_slurm_and_of_workers_is_in_their_scripts(home, image):
    options = ("--sbatch=--gres=gpu:1", "--sbatch", "--time=1:00:00", "--merge-sbatch=--mem=64G")
    scripts = submitted(image, home, *options, "--workers", 2, "--worker-kind", "processes")
    tiles, merge = ((scripts / name).read_text() for name in ("tiles.sh", "merge.sh"))
    assert "\n#SBATCH --gres=gpu:1\n#SBATCH --time=1:00:00\n" in tiles
    assert "\n#SBATCH --mem=64G\n" in merge
    assert "gres" not in merge
    assert "--workers=2 --worker-kind=processes" in tiles
    assert "--workers=2 --worker-kind=processes" in merge


def test_a_range_of_an_image_that_nobody_knows_is_refused(home):
    code, words = call_command_line("stage-range", "none", "y000x000", "y000x001", "--home", home)
    assert (code, "no image 'none' in" in words) == (2, True)


@pytest.mark.slow
def test_a_task_that_is_killed_is_run_again(home, image, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHWORKS_TEST_RECORD", str(tmp_path / "record"))
    scripts = submitted(image, home, "--tasks", 3, function="recorded")

    def start(i: int) -> subprocess.Popen[bytes]:
        command = ["bash", str(scripts / "tiles.sh")]
        return subprocess.Popen(command, env={**os.environ, "SLURM_ARRAY_TASK_ID": str(i)})

    killed = start(1)
    stage = folder_of(home).stage()
    until(lambda: len(stage.missing_blocks()) < 12, seconds=120, what="the first tile")
    killed.kill()
    killed.wait()
    assert len(stage.missing_blocks()) > 8, "it was killed before it was done"
    assert [task.wait(240) for task in [start(2), start(1)]] == [0, 0]
    # Without SLURM, and twice at once.
    twice = [subprocess.Popen(["bash", str(scripts / "tiles.sh"), "0"]) for _ in range(2)]
    assert [task.wait(240) for task in twice] == [0, 0]
    assert subprocess.run(["bash", str(scripts / "merge.sh")]).returncode == 0
    run_alone(image, tmp_path / "other", "recorded")
    assert labels_of(home) == labels_of(tmp_path / "other")


def lose_record(home: Path) -> Path:
    record = folder_of(home).path / "acquisition.json"
    record.unlink()
    return record


def test_jobs_that_would_replace_what_was_made_by_lost_choices_are_written_only_with_overwrite(
    home, image
):
    submitted(image, home)
    lose_record(home)
    (code, words), (_, words_of_run) = (
        call_command_line(command, image, "--home", home) for command in ("submit", "run")
    )
    assert code == 2
    assert words_of_run.endswith(words), "run says the same"
    assert "with --overwrite to replace what is there" in words
    assert not (folder_of(home).path / "acquisition.json").exists()
    scripts = submitted(image, home, "--overlap", 4, "--overwrite")
    (merge,) = re.findall(r"^exec (.*)$", (scripts / "merge.sh").read_text(), re.MULTILINE)
    assert "--overwrite" in shlex.split(merge)
    assert all("--overwrite" not in command for command in ranges(scripts))


def test_the_merge_of_jobs_makes_nothing_by_other_choices_than_they_were_written_for(home, image):
    scripts = submitted(image, home, "--overwrite")
    before = folder_of(home).plan().fingerprint
    record = lose_record(home)
    code, words = run_merge(scripts)
    assert code == 2
    assert "its acquisition.json, which says what was chosen for it, is gone" in words
    assert (record.exists(), folder_of(home).plan().fingerprint) == (False, before)
    submitted(image, home, "--overlap", 4, "--overwrite")  # by other choices, from here on
    merge = re.sub(r"--plan \S+", f"--plan {before}", (scripts / "merge.sh").read_text())
    (scripts / "merge.sh").write_text(merge)
    code, words = run_merge(scripts)
    assert (code, "was planned anew since these jobs were written" in words) == (2, True)
    assert len(folder_of(home).stage().missing_blocks()) == 12, "nothing is staged"


def test_jobs_are_not_written_where_their_merge_would_replace_a_corrected_table(
    home, image, monkeypatch
):
    submitted(image, home)
    monkeypatch.setattr(ImageFolder, "has_changed_objects", True)
    code, words = call_command_line("submit", image, "--home", home)
    assert (code, "is not what objects.parquet beside it says" in words) == (2, True)
    assert submitted(image, home, "--overwrite")


@pytest.mark.parametrize("options", [(), ("--overlap", 4)])
def test_jobs_are_not_written_where_their_merge_would_refuse_corrected_labels(home, image, options):
    submitted(image, home)
    folder = folder_of(home)
    labels = folder.labels(folder.plan()).path  # as if somebody had put some there
    zarr.save(str(labels / "0"), np.ones((4, 4), np.int32))
    content, stage = files_under(labels), files_under(folder.path / "stage.zarr")
    code, words = call_command_line("submit", image, *options, "--home", home)
    assert code == 2
    assert f"{labels} is" in words
    assert "and pass --overwrite" in words
    assert files_under(folder.path / "stage.zarr") == stage, "nothing is planned anew"
    merge = (submitted(image, home, *options, "--overwrite") / "merge.sh").read_text()
    assert "--overwrite" in merge
    assert files_under(labels) == content

"""How the command line speaks: of its options, without tracebacks, and with the way out."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

import patchworks_core
from patchworks_core import ImageError, convert_image, open_image, tile_process
from patchworks_core.errors import StorageError
from patchworks_core.images.readers import sources
from patchworks_pipeline.automation.in_process import _captured_deaf, _error_of
from patchworks_pipeline.cli.demo import describe
from patchworks_pipeline.cli.terminal import OPTIONS, in_options
from patchworks_pipeline.resources.resources import LabelStore
from tests.pipeline.conftest import call_command_line
from tests.tissue import marked_tissue, write_tiff


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        ("no halo: merge='touching', or overlap=", "no halo: --merge touching, or --overlap"),
        ("pass tile_shape=(1, 64, 64) (or axes=).", "pass --tile-shape 1,64,64 (or --axes)."),
        ("max_workers=3 with workers='threads'", "--workers 3 with --worker-kind threads"),
        ("pass resume=True, or resume=False", "pass --resume, or --no-resume"),
        ("or overwrite=True (--overwrite on the command line)", "or --overwrite"),
        ("channel=2 (--channel 2), or say channel=0", "--channel 2, or say --channel 0"),
        ("no image at '/data/axes=zyx/a.tif', n_axes=3", None),
        ("write_to= keeps the tiles", "--output keeps the tiles"),
    ],
)
def test_arguments_of_the_library_are_said_as_options(said, printed):
    assert in_options(said) == (said if printed is None else printed)


def test_every_option_that_is_said_is_one_of_segment_or_run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    known = call_command_line("segment", "--help")[1] + call_command_line("run", "--help")[1]
    assert [name for name in OPTIONS.values() if f"--{name}" not in known] == []


def test_an_error_speaks_of_options(home, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 8, 9), "u1"))
    for command in (["segment", "-o", tmp_path / "o.zarr"], ["run"]):
        code, printed = call_command_line(*command, tmp_path / "a.npy")
        assert code == 2
        assert "pass --axes, such as" in printed
        assert "axes=" not in printed


def test_segment_says_which_tiles_failed_without_a_traceback(home, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 16), "u1"))
    (tmp_path / "failing_here.py").write_text("def fn(tile):\n    raise ValueError('no model')\n")
    sys.path.insert(0, str(tmp_path))
    try:
        output = ("-o", tmp_path / "o.zarr", "--tile-shape", "8", "--overlap", "0")
        call = ("segment", tmp_path / "a.npy", *output, "--segmentation", "failing_here:fn")
        code, printed = call_command_line(*call)
    finally:
        sys.path.remove(str(tmp_path))
    assert code == 3
    assert "2 of 2 tiles failed, the first is 'y000x000': failing_here.py, line 2" in printed
    assert "ValueError: no model none is staged; mend what failed and call again" in printed
    assert "Traceback" not in printed


def test_what_a_step_refuses_is_said_in_its_own_words():
    said = {}
    for name in ("patchworks_core.errors.PlanError", "KeyError"):
        error = SimpleNamespace(message=f"{name}: it is left\n", cls_name="", cause=None)
        data = SimpleNamespace(user_failure_data=None, error=error)
        event = SimpleNamespace(is_step_failure=True, step_failure_data=data)
        job = SimpleNamespace(name="merge_image")
        found = _error_of(SimpleNamespace(job_def=job, all_events=[event]))
        said[found.error_type] = found.message
    assert said == {"PlanError": "it is left", "KeyError": "KeyError: it is left"}


def test_the_demo_names_the_program_as_it_was_typed(tmp_path, monkeypatch):
    program = tmp_path / "patchworks"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = []
    for called in (str(program), ".venv/bin/patchworks", "/venv/patchworks_pipeline/__main__.py"):
        monkeypatch.setattr(sys, "argv", [called])
        lines.append(describe(Path(".patchworks")).splitlines()[-1])
    assert [line.split(",")[0].strip() for line in lines] == [
        "the lineage: patchworks ui",
        "the lineage: .venv/bin/patchworks ui",
        "the lineage: patchworks ui",
    ]
    assert "ui --home lab, then open Lineage" in describe(Path("lab"))


@pytest.fixture
def without_s3fs(monkeypatch):
    """A place where the extra s3 is not installed."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.ome.zarr"])
def test_an_image_on_s3_without_the_extra_names_it(without_s3fs, name):
    with pytest.raises(ImageError, match=r"pip install 'patchworks-pipeline\[s3\]'"):
        open_image(f"s3://bucket/{name}")


def test_an_output_on_s3_without_the_extra_names_it(without_s3fs):
    pixels = np.zeros((8, 9), "u1")
    for write in (
        lambda url: tile_process(pixels, "threshold", tile_shape=8, write_to=url),
        lambda url: convert_image(pixels, url),
    ):
        with pytest.raises(StorageError, match=r"pip install 'patchworks-pipeline\[s3\]'"):
            write("s3://bucket/o.ome.zarr")


def refuse(*arguments: object, **options: object) -> None:
    """Raise what the client of an object store does."""
    kind = type("NoCredentialsError", (Exception,), {"__module__": "botocore.exceptions"})
    raise kind("Unable to locate credentials")


def test_an_object_store_that_refuses_to_be_read_says_what_it_wants(monkeypatch):
    monkeypatch.setattr(sources, "_open_source", refuse)
    words = r"cannot open 's3://b/a.tif': Unable to locate credentials; give its credentials, such"
    with pytest.raises(ImageError, match=words):
        open_image("s3://b/a.tif")


def test_an_object_store_that_refuses_is_said_in_one_line(home, monkeypatch):

    monkeypatch.setattr(patchworks_core, "open_image", refuse)
    code, printed = call_command_line("segment", "s3://bucket/a.tif", "-o", "o.zarr")
    assert code == 1
    assert "an object store refuses: Unable to locate credentials; give its cred" in printed


STOPPED = """
import sys

class Stopped:
    def find_spec(self, name, *more):
        if name == "patchworks_pipeline.cli.main":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Stopped())
from patchworks_pipeline.__main__ import main
main()
"""


def test_ctrl_c_while_the_program_starts_shows_no_traceback():
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_is_not_heard_by_the_processes_that_capture_what_is_printed():
    """Each of Dagster's would show a traceback of its own."""
    show = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"

    class Manager:
        @contextmanager
        def capture_logs(self, key: str):
            yield subprocess.check_output([sys.executable, "-c", show], text=True).strip()

    def blocked() -> bool:
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    manager = Manager()
    instance = SimpleNamespace(compute_log_manager=manager)
    # The second is looked up once the first is entered.
    with _captured_deaf(instance), manager.capture_logs("step") as is_deaf:
        assert (is_deaf, blocked()) == ("True", False)
    with manager.capture_logs("step") as is_deaf:
        assert is_deaf == "False"


@pytest.mark.slow
def test_of_small_tiles_blocks_are_counted_and_the_tile_that_failed_is_named(
    home, tmp_path, mended, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "400")
    image = write_tiff(tmp_path / "small.tif", marked_tissue())
    fails = ("--segmentation", "tissue_functions:fails_at_mark", "--tile-shape", "4")
    code, printed = call_command_line("run", image, *fails, "--overlap", "0")
    assert code == 3
    assert "small: staging 48 of 48 tile blocks" in printed
    assert "small/y002x004" in printed
    folder = LabelStore().folder("small")
    failures = {failure.block: failure.message for failure in folder.failures()}
    assert "object (in tile (11, 19), y 44:48, x 76:80)" in failures["y002x004"]
    code, printed = call_command_line("status", "small")
    assert "small: 768 tiles in 48 blocks, which are what is counted" in printed
    code, printed = call_command_line("merge", "small", "--allow-missing-tiles")
    assert "4 of 48 tile blocks are left out, and are 0 in the labels" in printed
    mended.touch()
    assert call_command_line("retry", "small")[0] == 0
    labels = zarr.open_array(str(folder.labels(folder.plan()).path / "0"))[...]
    assert ((labels != 0) == (marked_tissue() != 0)).all()

"""A run that was killed: it is marked as failed, and its slot is freed for the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.utils import make_new_run_id

from patchworks_pipeline.cli.runs import open_home
from patchworks_pipeline.instance import heartbeats, run_processes, slots
from patchworks_pipeline.instance.heartbeats import Heartbeats, beating
from patchworks_pipeline.instance.run_processes import (
    HOST,
    PROCESS,
    RUN,
    STARTED,
    end_dead_runs,
    started,
    tags_of_process,
)
from patchworks_pipeline.instance.slots import NoSlotError, only_call, take_pool_slot
from patchworks_pipeline.launcher import WatchedRunLauncher
from patchworks_pipeline.partitions import IMAGE
from tests.faults.runs import open_ends
from tests.pipeline.conftest import call_command_line
from tests.pipeline.daemon import SENSORS
from tests.tissue import files_under, python_command, tissue, write_tiff

STARTED_RUN = dg.DagsterRunStatus.STARTED

_ORIGIN = RemoteJobOrigin(
    RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__"), "stage_tiles"
)
"""Every queued run has one."""


@pytest.fixture
def books(home: Path) -> Iterator[dg.DagsterInstance]:
    with open_home(home) as instance:
        yield instance


def enter(
    instance: dg.DagsterInstance, *, status: dg.DagsterRunStatus = STARTED_RUN, **changed: str
) -> dg.DagsterRun:
    """Enter a run of this process in the books, some of its tags changed."""
    run_id = make_new_run_id()
    names = {"host": HOST, "process": PROCESS, "begun": STARTED, "run": RUN, "grpc": GRPC_INFO_TAG}
    names["image"] = IMAGE
    tags = {**tags_of_process(run_id), **{names[name]: value for name, value in changed.items()}}
    is_queued = status is dg.DagsterRunStatus.QUEUED
    origin = _ORIGIN if is_queued else None
    run = dg.DagsterRun(
        "stage_tiles", run_id=run_id, status=status, tags=tags, remote_job_origin=origin
    )
    instance.run_storage.add_run(run)
    return run


def gone_process() -> str:
    """Return the id of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return str(ended.pid)


def status_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def test_a_run_in_a_living_process_is_never_declared_dead(books):
    run = enter(books)
    assert end_dead_runs(books) == {}
    assert status_of(books, run) is STARTED_RUN


def test_a_run_whose_process_is_gone_has_failed_and_says_why(books):
    pid = gone_process()
    run = enter(books, process=pid)
    assert list(end_dead_runs(books)) == [run.run_id]
    assert status_of(books, run) is dg.DagsterRunStatus.FAILURE
    messages = [str(event.dagster_event.message) for event in books.all_logs(run.run_id)]
    assert any(f"its process {pid}" in message for message in messages), messages
    assert end_dead_runs(books) == {}


def test_another_process_with_the_same_id_is_told_by_its_start(books):
    mine = started(os.getpid())
    assert mine is not None
    run = enter(books, begun=mine + "0")
    assert list(end_dead_runs(books)) == [run.run_id]


@pytest.mark.parametrize(
    "changed",
    [
        {"host": "another"},
        {"grpc": "{}"},  # a code server started it, which the launcher asks
        {"run": "another"},  # made in the UI from a run of the command line
    ],
    ids=["on another host", "of a code server", "made from another"],
)
def test_what_cannot_be_seen_from_here_is_left_alone(books, changed):
    run = enter(books, process=gone_process(), **changed)
    assert end_dead_runs(books) == {}
    assert status_of(books, run) is STARTED_RUN


def test_a_queued_run_is_in_no_process_yet(books):
    run = enter(books, status=dg.DagsterRunStatus.QUEUED, process=gone_process())
    assert end_dead_runs(books) == {}
    assert status_of(books, run) is dg.DagsterRunStatus.QUEUED


def test_a_zombie_is_gone():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    assert started(ended.pid) is None
    ended.wait()


def test_the_daemon_sees_that_the_process_of_a_command_is_gone(books):
    launcher = WatchedRunLauncher()
    launcher.register_instance(books)
    alive, dead = enter(books), enter(books, process=gone_process())
    assert launcher.check_run_worker_health(alive).status.name == "RUNNING"
    health = launcher.check_run_worker_health(dead)
    assert health.status.name == "FAILED"
    assert "is gone" in str(health.msg)


def test_a_run_of_before_without_tags_is_ended_once_it_is_silent(books, monkeypatch):
    run_id = make_new_run_id()
    run = dg.DagsterRun("stage_tiles", run_id=run_id, status=STARTED_RUN)
    books.run_storage.add_run(run)
    data = dg._core.events.EngineEventData.in_process(int(gone_process()))
    books.report_engine_event("Executing steps in process", run, data)
    assert end_dead_runs(books) == {}, "it may be at a long tile, on another host"
    monkeypatch.setattr(run_processes, "SILENT_SECONDS", 0)
    assert list(end_dead_runs(books)) == [run_id]


def test_a_wait_says_who_holds_the_slot_and_ends(books):
    holder, waiting = enter(books, image="a"), enter(books)
    said: list[str] = []
    take_pool_slot(books, "gpu", holder, "staged_labels", say=said.append)
    assert said == []
    used = time.process_time()
    with pytest.raises(NoSlotError, match=f"no slot of pool 'gpu'.*run {holder.run_id[:8]}"):
        take_pool_slot(books, "gpu", waiting, "staged_labels", say=said.append, seconds=2)
    assert time.process_time() - used < 1, "a wait is no work"
    assert f"run {holder.run_id[:8]} of stage_tiles of image 'a' (process {os.getpid()}" in said[0]
    books.event_log_storage.free_concurrency_slots_for_run(holder.run_id)
    take_pool_slot(books, "gpu", waiting, "staged_labels", say=said.append, seconds=5)


SERVER_THAT_IS_GONE = '{"host": "localhost", "socket": "/tmp/there is no such socket"}'


def log_process(books: dg.DagsterInstance, run: dg.DagsterRun, pid: str) -> None:
    """Let a run say in which process it is, as those of a code server do."""
    data = dg._core.events.EngineEventData.in_process(int(pid))
    books.report_engine_event("Started process for run", run, data)


@pytest.mark.parametrize("process", ["none", "gone", "alive"])
def test_a_run_of_a_code_server_that_is_gone_has_failed_unless_its_process_is_there(books, process):
    run = enter(books, grpc=SERVER_THAT_IS_GONE)
    if process != "none":
        log_process(books, run, gone_process() if process == "gone" else str(os.getpid()))
    is_alive = process == "alive"
    assert list(end_dead_runs(books)) == ([] if is_alive else [run.run_id])
    assert status_of(books, run) is (STARTED_RUN if is_alive else dg.DagsterRunStatus.FAILURE)


def test_four_dead_runs_are_ended_at_once_by_the_daemon_and_their_slot_is_freed(books):
    runs = [enter(books, process=gone_process()), enter(books, begun="long ago")]
    runs += [enter(books, grpc=SERVER_THAT_IS_GONE) for _ in range(2)]
    odd = enter(books, process="it is no number")
    take_pool_slot(books, "gpu", runs[0], "staged_labels", say=print)
    with dg.build_sensor_context(instance=books) as context:
        assert "4 runs had no process" in str(SENSORS["dead_runs"](context))
        assert "0 runs had no process" in str(SENSORS["dead_runs"](context))
    assert {status_of(books, run) for run in runs} == {dg.DagsterRunStatus.FAILURE}
    assert status_of(books, odd) is STARTED_RUN
    assert books.event_log_storage.get_concurrency_info("gpu").claimed_slots == []


def test_the_slot_of_a_run_that_ended_is_freed_once_its_process_is_gone(books):
    alive, dead = (enter(books, grpc="{}") for _ in range(2))
    for run, pid in ((alive, str(os.getpid())), (dead, gone_process())):
        log_process(books, run, pid)
        take_pool_slot(books, "gpu", run, "staged_labels", say=print)
        books.report_run_failed(run)
        end_dead_runs(books)
        claimed = books.event_log_storage.get_concurrency_info("gpu").claimed_slots
        assert [slot.run_id for slot in claimed] == ([run.run_id] if run is alive else [])
        books.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def test_a_run_of_another_host_is_gone_once_its_count_stands_still(books, monkeypatch):
    monkeypatch.setattr(heartbeats, "SECONDS_TO_BEAT", 0.02)
    monkeypatch.setattr(heartbeats, "SECONDS_TO_BE_GONE", 0.5)
    silent, run = enter(books, host="another"), enter(books, host="another")
    watch = Heartbeats()
    with beating(books, run.run_id):
        for moment in (0.0, 1e9, -1e9):  # whatever the clock says
            monkeypatch.setattr(time, "time", lambda moment=moment: moment)
            time.sleep(0.3)
            assert end_dead_runs(books, watch) == {}
    monkeypatch.undo()
    monkeypatch.setattr(heartbeats, "SECONDS_TO_BE_GONE", 0.5)
    assert end_dead_runs(books, watch) == {}
    time.sleep(0.6)
    assert end_dead_runs(books) == {}, "one look cannot tell"
    assert list(end_dead_runs(books, watch)) == [run.run_id]
    assert status_of(books, silent) is STARTED_RUN, "it never counted: it is of an older version"


def test_who_waits_for_a_run_of_another_host_sees_it_end(books, monkeypatch):
    monkeypatch.setattr(heartbeats, "SECONDS_TO_BE_GONE", 0.5)
    monkeypatch.setattr(slots, "SECONDS_TO_LOOK_FOR_DEAD", 0.2)
    holder, waiting = enter(books, host="another"), enter(books)
    with beating(books, holder.run_id):
        take_pool_slot(books, "gpu", holder, "staged_labels", say=print)
    take_pool_slot(books, "gpu", waiting, "staged_labels", say=print, seconds=20)
    assert status_of(books, holder) is dg.DagsterRunStatus.FAILURE


def test_the_slot_of_a_run_that_never_came_into_the_books_is_freed(books, monkeypatch):
    lost, waiting = (
        dg.DagsterRun("stage_tiles", run_id=make_new_run_id()),
        enter(books),
    )
    monkeypatch.setattr(slots, "note_process", lambda *_: None)  # as an older version
    take_pool_slot(books, "gpu", lost, "staged_labels", say=print)
    end_dead_runs(books)
    with pytest.raises(NoSlotError):
        take_pool_slot(books, "gpu", waiting, "staged_labels", say=print, seconds=0)
    monkeypatch.setattr(run_processes, "SECONDS_TO_BEGIN", -1)
    end_dead_runs(books)
    take_pool_slot(books, "gpu", waiting, "staged_labels", say=print, seconds=5)


def test_a_run_that_was_killed_before_it_came_into_the_books_is_waited_for_no_minute(books):
    alive = dg.DagsterRun("stage_tiles", run_id=make_new_run_id())
    alive = alive.with_tags(tags_of_process(alive.run_id))
    lost = dg.DagsterRun("stage_tiles", run_id=make_new_run_id())
    lost = lost.with_tags({**tags_of_process(lost.run_id), PROCESS: gone_process()})
    for run, is_there in ((alive, True), (lost, False)):
        take_pool_slot(books, "gpu", run, "staged_labels", say=print)
        end_dead_runs(books)
        claimed = books.event_log_storage.get_concurrency_info("gpu").claimed_slots
        assert bool(claimed) is is_there
        books.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def test_a_second_call_for_an_image_waits_says_for_whom_and_gives_up_in_time(books, home):
    lines: list[str] = []
    with only_call(books, "a", say=lines.append):
        run = enter(books, image="a")
        with (
            pytest.raises(NoSlotError, match=f"another call is at image 'a'.*{run.run_id[:8]}"),
            only_call(books, "a", say=lines.append, seconds=0.7),
        ):
            raise AssertionError("two are at it")
        with only_call(books, "b", say=lines.append):
            pass
    (line,) = lines
    assert f"run {run.run_id[:8]} of stage_tiles of image 'a' (process {os.getpid()}" in line
    with pytest.raises(NoSlotError), only_call(books, "a", say=lines.append, seconds=0):
        raise AssertionError("a run of the UI is at it")
    books.report_run_failed(run)
    with only_call(books, "a", say=lines.append, seconds=0):
        assert len(lines) == 1


def begin(home: Path, image: Path, *more: str) -> subprocess.Popen[str]:
    """Begin ``patchworks run`` as a process of its own."""
    command = [python_command("patchworks"), "run", str(image), "--home", str(home), *more]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_until_staging(home: Path, key: str) -> None:
    """Wait until a run of the command line has the slot of the pool."""
    deadline = time.monotonic() + 120
    with open_home(home) as instance:
        while time.monotonic() < deadline:
            claimed = instance.event_log_storage.get_concurrency_info("gpu").claimed_slots
            stage = home / "store" / key / "stage.zarr" / "plan.json"
            if claimed and stage.exists():
                return
            time.sleep(0.2)
    raise AssertionError("no run began to stage")


def test_a_killed_run_bricks_nothing(home, tmp_path):
    image = write_tiff(tmp_path / "a.tif", tissue((40, 40)))
    other = write_tiff(tmp_path / "b.tif", tissue((40, 40)))
    slow = ("--segmentation", "tissue_functions:waits")
    first = begin(home, image, *slow)
    try:
        wait_until_staging(home, "a")
        second = begin(home, other)
        try:
            # A wait says who is before it, and a service manager's SIGTERM ends it.
            line = second.stderr.readline()
            while "waiting for a slot" not in line:
                assert line, "it ended instead of waiting"
                line = second.stderr.readline()
            assert f"process {first.pid}" in line
            second.send_signal(signal.SIGTERM)
            assert second.wait(30) == 128 + signal.SIGTERM
        finally:
            second.kill()
            second.communicate()
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    begun = time.monotonic()
    third = begin(home, other)
    _, err = third.communicate(timeout=120)
    assert third.returncode == 0, err
    assert f"that was left open is ended: its process {first.pid} on" in err
    assert "waiting for a slot" not in err
    print(f"the next run took {time.monotonic() - begun:.1f} s")
    with open_home(home) as instance:
        (dead,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        assert dead.tags[PROCESS] == str(first.pid)
        assert instance.event_log_storage.get_concurrency_info("gpu").claimed_slots == []


def test_a_command_says_which_dead_runs_it_ended(books, home):
    pid = gone_process()
    enter(books, process=pid, image="plate")
    enter(books, process=pid)
    code, printed = call_command_line("status")
    assert code == 0
    assert f"a run of plate that was left open is ended: its process {pid} on" in printed
    assert "a run of this home that was left open is ended" in printed
    assert "left open" not in call_command_line("status")[1]


def test_the_ui_ends_killed_runs_before_it_serves(books, home, monkeypatch, capsys):
    from patchworks_pipeline.cli import serving

    run = enter(books, process=gone_process())
    take_pool_slot(books, "gpu", run, "staged_labels", say=print)

    class Ended:
        returncode = 0

        def __init__(self, *args: object, **options: object) -> None:
            pass

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(serving.subprocess, "Popen", Ended)
    serving.serve(home, host="127.0.0.1", port=0)
    assert "that was left open is ended" in capsys.readouterr().err
    assert status_of(books, run) is dg.DagsterRunStatus.FAILURE
    assert books.event_log_storage.get_concurrency_info("gpu").claimed_slots == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_says_what_is_kept_and_frees_its_slot(number, home, tmp_path):
    image = write_tiff(tmp_path / "a.tif", tissue((40, 40)))
    run = begin(home, image, "--segmentation", "tissue_functions:waits", "--workers", "1")
    try:
        wait_until_staging(home, "a")
        time.sleep(2)  # until the function is called
        begun = time.monotonic()
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert time.monotonic() - begun < 20
    assert run.returncode == 128 + number, err
    assert "tiles of a are staged and kept; run it" in " ".join(err.split())
    with open_home(home) as instance:
        assert open_ends(instance) == []


@pytest.mark.slow
def test_a_home_whose_books_are_lost_goes_on_from_its_store(home, tmp_path):
    image = write_tiff(tmp_path / "a.tif", tissue((40, 40)))
    chosen = ("--segmentation", "tissue_functions:perfect", "--tile-shape", 32, "--overlap", 8)
    assert call_command_line("run", image, *chosen)[0] == 0
    (home / "dagster" / "history" / "runs.db").write_bytes(b"no database" * 999)
    code, printed = call_command_line("status")
    assert code == 2
    assert "cannot be opened" in printed
    assert "move that folder away" in printed
    (home / "dagster").rename(tmp_path / "damaged")
    blocks = files_under(home / "store" / "a" / "stage.zarr")
    code, printed = call_command_line("run", image)
    assert code == 0, printed
    assert files_under(home / "store" / "a" / "stage.zarr") == blocks
    assert "nothing was missing" in call_command_line("run", image)[1]

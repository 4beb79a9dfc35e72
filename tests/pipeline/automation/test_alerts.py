"""Alerts reach a real mail server and a real webhook, once per image and cause."""

from __future__ import annotations

import email
import json
import logging
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import unquote

import dagster as dg
import pytest
from upath import UPath

from patchworks_core.files.storage import as_path
from patchworks_pipeline.automation.alert_sensors import (
    failed_checks,
)
from patchworks_pipeline.automation.alerts import (
    MAX_CAUSES,
    Alert,
    Alerts,
    alerts_of_tiles,
    link_to_failed_tiles,
    without_numbers,
)
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.partitions import images
from patchworks_pipeline.resources.resources import LabelStore
from patchworks_pipeline.tile_failures import TileFailure
from tests.pipeline.conftest import Pipeline
from tests.pipeline.daemon import SENSORS
from tests.tissue import marked_tissue, tissue, write_tiff

LOG = logging.getLogger("alerts")


class Mailbox(socketserver.BaseRequestHandler):
    """As much of SMTP as a message needs."""

    def handle(self) -> None:
        lines = self.request.makefile("rb")
        self.request.sendall(b"220 test\r\n")
        for line in lines:
            command = line.strip().upper()
            if command.startswith(b"DATA"):
                self.request.sendall(b"354 go on\r\n")
                content = b"".join(iter(lines.readline, b".\r\n"))
                self.server.messages.append(email.message_from_bytes(content))
            elif command.startswith(b"QUIT"):
                self.request.sendall(b"221 bye\r\n")
                return
            self.request.sendall(b"250 ok\r\n")


class Webhook(BaseHTTPRequestHandler):
    """Answers every POST with the server's status."""

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.messages.append(json.loads(content))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[socketserver.TCPServer]:
    server.messages = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def mail() -> Iterator[socketserver.TCPServer]:
    with serving(socketserver.TCPServer(("127.0.0.1", 0), Mailbox)) as server:
        yield server


@pytest.fixture
def webhook() -> Iterator[HTTPServer]:
    with serving(HTTPServer(("127.0.0.1", 0), Webhook)) as server:
        server.status = 200
        yield server


@pytest.fixture
def memory(tmp_path) -> UPath:
    return as_path(tmp_path / "store" / ".alerts.json")


def to_mail(server: socketserver.TCPServer) -> dict[str, object]:
    return {
        "smtp_host": "127.0.0.1",
        "smtp_port": server.server_address[1],
        "email_to": ["a@example.org", "b@example.org"],
    }


def to_webhook(server: HTTPServer) -> dict[str, str]:
    return {"webhook_url": f"http://127.0.0.1:{server.server_address[1]}/hook"}


def text_of(message: Message) -> str:
    return message.get_payload(decode=True).decode()


ALERT = Alert("a", "ValueError: no", "/runs/1", n_tiles=3)


def test_an_alert_is_mailed_to_everyone(mail, memory):
    alerts = Alerts(**to_mail(mail), base_url="https://dagster.example.org/")
    assert alerts.send([ALERT], memory=memory, log=LOG) == 1
    (message,) = mail.messages
    assert message["To"] == "a@example.org, b@example.org"
    assert message["Subject"] == "patchworks: image a needs attention, 3 failed tiles"
    assert "ValueError: no" in text_of(message)
    assert "https://dagster.example.org/runs/1" in text_of(message)


def test_an_alert_is_posted_as_slack_wants_it(webhook, memory):
    Alerts(**to_webhook(webhook)).send([ALERT], memory=memory, log=LOG)
    (message,) = webhook.messages
    assert message == {"text": ALERT.text("http://127.0.0.1:3000")}


@pytest.mark.parametrize(
    ("setting", "variable", "address"),
    [
        ("", None, "http://127.0.0.1:3000"),
        ("", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://dagster.example.org", "http://127.0.0.1:8080", "https://dagster.example.org"),
    ],
)
def test_links_lead_to_where_the_ui_is_served(
    setting: str, variable: str | None, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PATCHWORKS_UI", raising=False)
    if variable is not None:
        monkeypatch.setenv("PATCHWORKS_UI", variable)
    assert Alerts(base_url=setting).address == address


def test_the_same_cause_is_told_once(webhook, memory):
    alerts = Alerts(**to_webhook(webhook))
    again = Alert("a", "ValueError: no", "/runs/2", n_tiles=7)
    assert alerts.send([ALERT, again], memory=memory, log=LOG) == 1
    assert alerts.send([again], memory=memory, log=LOG) == 0
    others = [Alert("b", ALERT.cause, "/runs/3"), Alert("a", "OSError: full", "/runs/3")]
    assert alerts.send(others, memory=memory, log=LOG) == 2
    assert len(webhook.messages) == 3


def test_the_same_cause_is_told_again_after_the_quiet_hours(webhook, memory):
    alerts = Alerts(**to_webhook(webhook), quiet_hours=0)
    assert [alerts.send([ALERT], memory=memory, log=LOG) for _ in range(2)] == [1, 1]


def test_numbers_do_not_make_another_cause():
    assert without_numbers("tile (0, 3): 12 pixels at 0x7f") == without_numbers(
        "tile (4, 9): 7 pixels at 0x1a"
    )
    assert without_numbers("out of memory") != without_numbers("disk full")


def test_a_sink_that_fails_is_logged_and_the_other_gets_its_message(mail, webhook, memory, caplog):
    webhook.status = 500
    alerts = Alerts(**to_mail(mail), **to_webhook(webhook))
    assert alerts.send([ALERT], memory=memory, log=LOG) == 1
    assert len(mail.messages) == 1
    assert "an alert could not be sent to webhook: HTTPError: HTTP Error 500" in caplog.text


def test_what_no_sink_took_is_tried_again(webhook, memory, caplog):
    webhook.status = 500
    alerts = Alerts(**to_webhook(webhook))
    assert alerts.send([ALERT], memory=memory, log=LOG) == 0
    webhook.status = 200
    assert alerts.send([ALERT], memory=memory, log=LOG) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "no url"])
def test_an_address_that_is_none_is_logged(url, memory, caplog):
    assert Alerts(webhook_url=url).send([ALERT], memory=memory, log=LOG) == 0
    assert "an alert could not be sent" in caplog.text


def test_without_a_sink_an_alert_is_in_the_log(memory, caplog):
    assert Alerts().send([ALERT], memory=memory, log=LOG) == 1
    assert "image a needs attention" in caplog.text


def test_a_damaged_memory_is_forgotten(webhook, memory):
    memory.parent.mkdir(parents=True)
    memory.write_text("{")
    assert Alerts(**to_webhook(webhook)).send([ALERT], memory=memory, log=LOG) == 1


# Of tiles


@pytest.fixture
def folder(pipeline: Pipeline, tmp_path):
    folder = pipeline.register(write_tiff(tmp_path / "a.tif", tissue()), "a")
    pipeline.plan(folder)
    return folder


def test_many_tiles_of_one_cause_are_one_alert(folder):
    for n, block in enumerate(folder.plan().grid.block_keys()):
        folder.write_failure(TileFailure(block, "ValueError", f"{n} pixels missing", ""))
    (alert,) = alerts_of_tiles(Lineage(), folder)
    assert alert.n_tiles == folder.plan().grid.n_blocks
    assert alert.cause == "ValueError: 0 pixels missing"


def test_many_causes_are_counted(folder):
    for block, letter in zip(folder.plan().grid.block_keys(), "abcdefgh", strict=False):
        folder.write_failure(TileFailure(block, "ValueError", letter, ""))
    alerts = alerts_of_tiles(Lineage(), folder)
    assert len(alerts) == MAX_CAUSES + 1
    assert sum(alert.n_tiles for alert in alerts) == 8


def test_the_link_shows_the_failed_tiles_of_the_image(folder):
    link = link_to_failed_tiles(Lineage(), folder)
    assert link.startswith("/assets/staged_labels?view=partitions&status=FAILED&default_range=")
    assert unquote(link).endswith("[a/y000x000...a/y002x003]")


def test_an_image_that_was_never_planned_has_no_alerts(home):
    assert alerts_of_tiles(Lineage(), LabelStore().folder("a")) == []


# Of runs


def alert_of_run(pipeline: Pipeline, result: dg.ExecuteInProcessResult, alerts: Alerts) -> None:
    context = dg.build_run_status_sensor_context(
        sensor_name="run_failure_alerts",
        dagster_instance=pipeline.instance,
        dagster_run=result.dagster_run,
        dagster_event=result.get_run_failure_event(),
        resources={"store": LabelStore(), "alerts": alerts},
    ).for_run_failure()
    SENSORS["run_failure_alerts"](context)


def test_a_staging_run_that_failed_is_told_with_cause_count_and_link(
    pipeline, webhook, mended, tmp_path
):
    path = write_tiff(tmp_path / "a.tif", marked_tissue())
    folder = pipeline.register(path, "a", function="tissue_functions:fails_at_mark")
    pipeline.plan(folder)
    result = pipeline.stage(folder)
    alerts = Alerts(**to_webhook(webhook))
    alert_of_run(pipeline, result, alerts)
    (message,) = webhook.messages
    assert "image a needs attention, 1 failed tiles" in message["text"]
    assert "ValueError: tissue_functions.py, line " in message["text"]
    assert "cannot segment [b]marked[/b] object" in message["text"]
    assert "status=FAILED" in message["text"]
    alert_of_run(pipeline, pipeline.stage(folder), alerts)
    assert len(webhook.messages) == 1


def test_a_merge_that_failed_is_told_with_the_run(pipeline, webhook, folder):
    result = pipeline.merge(folder)
    alert_of_run(pipeline, result, Alerts(**to_webhook(webhook)))
    (message,) = webhook.messages
    assert "tile blocks are not staged" in message["text"]
    assert f"/runs/{result.run_id}" in message["text"]


@pytest.mark.parametrize("passes", [True, False])
def test_a_check_that_failed_is_told(instance, webhook, home, passes):
    @dg.asset(
        partitions_def=images, check_specs=[dg.AssetCheckSpec("is_good", asset="merged_labels")]
    )
    def merged_labels() -> dg.MaterializeResult:
        found = dg.AssetCheckResult(
            check_name="is_good",
            passed=passes,
            severity=dg.AssetCheckSeverity.WARN,
            description="3 objects are too large",
        )
        return dg.MaterializeResult(check_results=[found])

    instance.add_dynamic_partitions("images", ["a"])
    job = dg.define_asset_job("merge_image", [merged_labels])
    job = dg.Definitions(assets=[merged_labels], jobs=[job]).resolve_job_def("merge_image")
    result = job.execute_in_process(instance=instance, partition_key="a")
    context = dg.build_run_status_sensor_context(
        sensor_name="check_failure_alerts",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=result.get_run_success_event(),
        resources={"store": LabelStore(), "alerts": Alerts(**to_webhook(webhook))},
    )
    SENSORS["check_failure_alerts"](context)
    assert len(webhook.messages) == (0 if passes else 1)
    if not passes:
        (alert,) = failed_checks(instance, result.dagster_run, ["a"])
        assert alert.cause == "check 'is_good' of merged_labels failed: 3 objects are too large"
        assert webhook.messages[0]["text"] == alert.text("http://127.0.0.1:3000")

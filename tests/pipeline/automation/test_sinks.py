"""Whatever is at the other end, no sink stops another one, the caller, or a tick."""

from __future__ import annotations

import itertools
import json
import logging
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

import dagster as dg
import pytest

from patchworks_core.files.storage import as_path
from patchworks_pipeline.automation import events, sinks
from patchworks_pipeline.automation.alerts import MEMORY, MISSED, Alert, Alerts
from patchworks_pipeline.automation.outbox import KEPT_SECONDS, LONGEST_WAIT, Letter, Outbox
from patchworks_pipeline.automation.sinks import Message, WebhookSink, tell
from patchworks_pipeline.resources.resources import AcquisitionSource, Automation, LabelStore
from tests.pipeline.automation.test_alerts import (  # the fixtures are found by their names
    ALERT,
    LOG,
    mail,
    memory,
    to_mail,
    to_webhook,
    webhook,
)
from tests.pipeline.daemon import SENSORS, landing_sensor

__all__ = ["mail", "memory", "webhook"]

TIMEOUT = 2.0

# A process starts in a moment, but this machine may be busy.
SLACK = 8.0


def junk(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


def half_a_line(connection: socket.socket, stopped: threading.Event) -> None:
    connection.recv(1)
    connection.sendall(b"HTT")


def half_the_headers(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(b"220 test\r\n250-HTTP/1.1 20")


def nothing(connection: socket.socket, stopped: threading.Event) -> None:
    stopped.wait()


def a_byte_at_a_time(connection: socket.socket, stopped: threading.Event) -> None:
    while not stopped.wait(0.1):
        connection.sendall(b"2")


def reset(connection: socket.socket, stopped: threading.Event) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def closed(connection: socket.socket, stopped: threading.Event) -> None:
    pass


def the_same_place(connection: socket.socket, stopped: threading.Event) -> None:
    port = connection.getsockname()[1]
    answer = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:{port}/\r\n\r\n"
    connection.sendall(answer.encode())


BEHAVIOURS = [
    junk,
    half_a_line,
    half_the_headers,
    nothing,
    a_byte_at_a_time,
    reset,
    closed,
    the_same_place,
]


@contextmanager
def badly(behaviour: Callable[[socket.socket, threading.Event], None]) -> Iterator[int]:
    """Serve in this way; give the port."""
    stopped = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # the other end is gone
                behaviour(self.request, stopped)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


def sink_at(kind: str, port: int) -> dict[str, object]:
    if kind == "webhook":
        return {"webhook_url": f"http://127.0.0.1:{port}/hook"}
    return {"smtp_host": "127.0.0.1", "smtp_port": port, "email_to": ["a@example.org"]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webhook", "mail"])
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_sink_that_is_none_raises_nothing_and_ends_in_time(behaviour, kind, memory, caplog):
    with badly(behaviour) as port:
        alerts = Alerts(**sink_at(kind, port), timeout_seconds=TIMEOUT)
        begun = time.monotonic()
        assert alerts.send([ALERT], memory=memory, log=LOG) == 0
        assert time.monotonic() - begun < TIMEOUT + SLACK
    assert f"an alert could not be sent to {kind}: " in caplog.text


@pytest.mark.parametrize("behaviour", [junk, nothing, reset])
def test_what_was_missed_is_told_at_the_next_call_and_once(behaviour, webhook, memory):
    with badly(behaviour) as port:
        alerts = Alerts(**sink_at("webhook", port), timeout_seconds=TIMEOUT)
        alerts.send([ALERT], memory=memory, log=LOG)
    mended = Alerts(**to_webhook(webhook))
    assert mended.send([], memory=memory, log=LOG) == 1
    assert mended.send([], memory=memory, log=LOG) == 0
    assert mended.send([ALERT], memory=memory, log=LOG) == 0
    (message,) = webhook.messages
    assert message == {"text": ALERT.text("http://127.0.0.1:3000")}


def test_one_sink_that_fails_is_told_again_without_the_other(mail, webhook, memory):
    webhook.status = 500
    alerts = Alerts(**to_mail(mail), **to_webhook(webhook))
    assert alerts.send([ALERT], memory=memory, log=LOG) == 1
    webhook.status = 200
    assert alerts.send([], memory=memory, log=LOG) == 1
    assert (len(mail.messages), len(webhook.messages)) == (1, 2)


def test_many_alerts_wait_no_longer_for_a_sink_that_hangs(memory):
    many = [Alert(name, "ValueError: no", "/runs/1") for name in "abcdefghij"]
    with badly(nothing) as port:
        alerts = Alerts(**sink_at("webhook", port), timeout_seconds=TIMEOUT)
        begun = time.monotonic()
        assert alerts.send(many, memory=memory, log=LOG) == 0
        assert time.monotonic() - begun < TIMEOUT + SLACK
    assert len(list((memory.parent / MISSED).iterdir())) == len(many)


def test_an_answer_that_breaks_off_after_its_status_is_one(memory):
    def half_the_body(connection: socket.socket, stopped: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    with badly(half_the_body) as port:
        alerts = Alerts(**sink_at("webhook", port))
        assert alerts.send([ALERT], memory=memory, log=LOG) == 1
        assert alerts.send([], memory=memory, log=LOG) == 0


def test_a_message_that_is_refused_does_not_hold_up_the_next(webhook, memory):
    webhook.status = 400
    first, second = Message("a", "a"), Message("b", "b")
    url = str(to_webhook(webhook)["webhook_url"])
    found = tell(WebhookSink(url), [first, second], timeout_seconds=30)
    assert [outcome.is_taken for outcome in found] == [False, False]
    assert [message["text"] for message in webhook.messages] == ["a", "b"]


def test_a_redirection_is_named_and_not_followed(webhook, memory, caplog):
    webhook.status = 301
    assert Alerts(**to_webhook(webhook)).send([ALERT], memory=memory, log=LOG) == 0
    assert "it answered 301, a redirection; give the address that it points to" in caplog.text


def test_a_process_that_cannot_talk_is_a_sink_that_fails(monkeypatch):
    monkeypatch.setattr(sinks.sys, "executable", "/nowhere/python")
    (found,) = tell(WebhookSink("http://127.0.0.1:9/"), [Message("a", "a")], timeout_seconds=5)
    assert not found.is_taken
    assert "no process could be started" in str(found.reason)


@pytest.mark.slow
def test_a_mail_server_that_hangs_when_it_is_left_has_the_message(memory):
    def hangs_on_quit(connection: socket.socket, stopped: threading.Event) -> None:
        lines = connection.makefile("rb")
        connection.sendall(b"220 test\r\n")
        for line in lines:
            if line.upper().startswith(b"DATA"):
                connection.sendall(b"354 go on\r\n")
                list(iter(lines.readline, b".\r\n"))
            elif line.upper().startswith(b"QUIT"):
                stopped.wait()
            connection.sendall(b"250 ok\r\n")

    with badly(hangs_on_quit) as port:
        # The time is for starting the process too, on a machine that may be busy.
        alerts = Alerts(**sink_at("mail", port), timeout_seconds=6)
        assert alerts.send([ALERT], memory=memory, log=LOG) == 1


def test_a_secret_is_in_no_argument_and_no_log(memory, caplog):
    alerts = Alerts(webhook_url="http://127.0.0.1:9/hook with hunter2")
    assert alerts.send([ALERT], memory=memory, log=LOG) == 0
    assert "the address is not one of the web" in caplog.text
    assert "hunter2" not in caplog.text


# The outbox


@pytest.fixture
def outbox(tmp_path) -> Outbox:
    return Outbox(as_path(tmp_path / "missed"))


def test_what_fails_again_and_again_is_tried_ever_more_rarely():
    letter = Letter("webhook", "a", "subject", "text", written=1000)
    waits = []
    for _ in range(40):
        letter = letter.missed(2000)
        waits.append(letter.due - 2000)
    assert waits[:4] == [0, 30, 60, 120]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT


def test_letters_come_oldest_first_and_damaged_ones_go(outbox, caplog):
    assert list(outbox.letters(LOG)) == []
    later, sooner = (
        Letter("mail", name, name, name, when) for name, when in (("a", 2.0), ("b", 1.0))
    )
    for letter in (later, sooner):
        outbox.keep(letter)
    (outbox.folder / "c-mail.json").write_text('{"sink": 1')
    (outbox.folder / "d-mail.json").write_text(json.dumps({**asdict(later), "written": "soon"}))
    (outbox.folder / "e-mail.json").write_text("[" * 100_000)
    (outbox.folder / "f-mail.json").mkdir()
    assert list(outbox.letters(LOG)) == [sooner, later]
    for name in ("c-mail.json", "d-mail.json", "e-mail.json"):
        assert f"{name} is not an alert and is removed" in caplog.text
        assert not (outbox.folder / name).exists()
    assert "f-mail.json is an alert that cannot be read, and is passed over" in caplog.text
    assert list(outbox.letters(LOG)) == [sooner, later]


def test_what_could_not_be_told_for_days_is_given_up(webhook, memory, caplog):
    outbox = Outbox(memory.parent / MISSED)
    outbox.keep(Letter("webhook", "a", "subject", "text", time.time() - KEPT_SECONDS - 1))
    assert Alerts(**to_webhook(webhook)).send([], memory=memory, log=LOG) == 0
    assert list(outbox.letters(LOG)) == []
    assert "given up: subject" in caplog.text


def test_a_store_that_cannot_be_written_stops_nobody(webhook, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    memory = as_path(tmp_path / "file" / ".alerts.json")
    assert Alerts(**to_webhook(webhook)).send([ALERT], memory=memory, log=LOG) == 1
    assert "cannot be kept in the store" in caplog.text


# Ticks


def test_a_landing_tick_outlives_its_webhook_and_the_next_one_tells(
    home, instance, webhook, monkeypatch
):
    clock = itertools.count(1000, 20)
    monkeypatch.setattr(events, "now", lambda: next(clock))
    landing = home / "landing"
    landing.mkdir(parents=True)
    (landing / "a.tif").write_bytes(b"no image")

    def tick(alerts: Alerts, cursor: str | None) -> str | None:
        resources = {
            "store": LabelStore(),
            "source": AcquisitionSource(settle_seconds=10),
            "automation": Automation(),
            "alerts": alerts,
        }
        with dg.build_sensor_context(instance, cursor, resources=resources) as context:
            return landing_sensor(context).cursor

    with badly(junk) as port:
        broken = Alerts(**sink_at("webhook", port), timeout_seconds=TIMEOUT)
        cursor = tick(broken, tick(broken, None))
    assert json.loads(str(cursor))
    assert not webhook.messages
    tick(Alerts(**to_webhook(webhook)), cursor)
    (message,) = webhook.messages
    assert "image a needs attention" in message["text"]


def test_a_sensor_of_its_own_tells_what_was_missed(home, instance, webhook, caplog):
    store = LabelStore()
    with badly(closed) as port:
        memory = store.path() / MEMORY
        Alerts(**sink_at("webhook", port)).send([ALERT], memory=memory, log=logging.getLogger())
    resources = {"store": store, "alerts": Alerts(**to_webhook(webhook))}
    with dg.build_sensor_context(instance, resources=resources) as context:
        found = SENSORS["missed_alerts"](context)
    assert found.skip_message == "told of 1 alerts that were missed"
    assert len(webhook.messages) == 1

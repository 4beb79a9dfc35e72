"""A PostgreSQL server of the test's own: Debian's programs, a data folder that goes away again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "dagster"


def programs() -> Path | None:
    """Return the folder of initdb and pg_ctl; None where PostgreSQL is not installed."""
    found = shutil.which("pg_ctl")
    if found:
        return Path(found).parent
    # Debian keeps them off the path, one folder per version.
    return max(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")),
        key=lambda folder: int(folder.parent.name),
        default=None,
    )


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a server on a free port; yield the URL of an empty database."""
    folder = programs()
    assert folder is not None
    # A server refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="patchworks-postgres-") as home:
        if user:
            shutil.chown(home, user)
        data = f"{home}/data"

        def call(*command: str) -> None:
            # The server outlives `pg_ctl start` and would hold a pipe open.
            with Path(home, "calls.log").open("ab") as log:
                done = subprocess.run(command, user=user, cwd=home, stdout=log, stderr=log)
            assert done.returncode == 0, Path(home, "calls.log").read_text()

        call(str(folder / "initdb"), "-D", data, "-U", USER, "-A", "trust", "--no-sync")
        options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [str(folder / "pg_ctl"), "-D", data, "-w"]
        call(*control, "-o", options, "-l", f"{home}/server.log", "start")
        try:
            yield f"postgresql+psycopg2://{USER}@127.0.0.1:{port}/postgres"
        finally:
            call(*control, "-m", "immediate", "stop")

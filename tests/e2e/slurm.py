"""A SLURM of the test's own: Debian's programs, one node that says it has two GPUs."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.conftest import until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "sbatch", "scancel", "squeue")

N_GPUS = 2

CONF = """\
ClusterName=patchworks
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=1000000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
"""Memory and processors are more than there are, so that what a job books is there."""


def missing_program() -> str | None:
    """Return a program that is not installed; None where SLURM can be started."""
    return next((name for name in PROGRAMS if _program(name) is None), None)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def running_slurm() -> Iterator[dict[str, str]]:
    """Run munge, a controller and one node; yield the variables by which commands find them."""
    # Not below the folder of a test: a socket has a short name.
    with tempfile.TemporaryDirectory(prefix="pw-slurm-", dir="/tmp") as name:
        home = Path(name)
        home.chmod(0o755)
        environment = _configured(home)
        key = home / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        files = {"key-file": key, "socket": home / "munge.socket", "pid-file": home / "munge.pid"}
        files |= {"seed-file": home / "munge.seed", "log-file": home / "munge.log"}
        options = [f"--{option}={path}" for option, path in files.items()]
        commands = [
            ["munged", "--foreground", "--force", *options],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D", "-N", socket.gethostname().split(".")[0]],
        ]
        started: list[subprocess.Popen[bytes]] = []
        with (home / "log").open("ab") as log:
            try:
                for command in commands:
                    program = str(_program(command[0]))
                    started.append(
                        subprocess.Popen(
                            [program, *command[1:]], env=environment, stdout=log, stderr=log
                        )
                    )
                    if command[0] == "munged":
                        until(files["socket"].exists, seconds=20, what="munge")
                until(lambda: _is_idle(environment), seconds=60, what=f"the node\n{_logs(home)}")
                yield {name: environment[name] for name in ("SLURM_CONF",)}
            finally:
                subprocess.run(
                    ["scancel", "--full", "-u", str(os.geteuid())],
                    env=environment,
                    stdout=log,
                    stderr=log,
                )
                for process in reversed(started):
                    process.terminate()
                for process in reversed(started):
                    try:
                        process.wait(20)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()


def _configured(home: Path) -> dict[str, str]:
    """Write the configuration; return the environment of the programs."""
    for folder in ("state", "spool"):
        (home / folder).mkdir()
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    devices = [home / f"gpu{i}" for i in range(N_GPUS)]
    for device in devices:
        device.touch()
    host = socket.gethostname().split(".")[0]
    values = {"host": host, "controller": ports[0], "node": ports[1], "gpus": N_GPUS}
    user = "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
    (home / "slurm.conf").write_text(CONF.format(**values, home=home, user=user))
    (home / "gres.conf").write_text(
        "AutoDetect=off\n" + "".join(f"Name=gpu File={device}\n" for device in devices)
    )
    return {**os.environ, "SLURM_CONF": str(home / "slurm.conf")}


def _is_idle(environment: dict[str, str]) -> bool:
    state = subprocess.run(
        ["sinfo", "--noheader", "-o", "%T"], env=environment, capture_output=True, text=True
    )
    return state.stdout.strip() == "idle"


def _logs(home: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-2000:] for path in home.glob("*log"))

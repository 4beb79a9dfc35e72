"""The Dockerfile says what is so: what it copies is there, what it starts exists, ports agree.

`tests/e2e/test_container.py` builds it, where it can be built.
"""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchworks_pipeline.cli import serving
from tests.pipeline.conftest import call_command_line

CHECKOUT = Path(__file__).parents[3]

DEPLOY = CHECKOUT / "deploy"

PORT = 3000


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, with what follows each, in order."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def project() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def pod() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "patchworks.yaml").read_text())
    (deployment,) = [d for d in documents if d["kind"] == "Deployment"]
    return dict(deployment["spec"]["template"]["spec"])


def test_what_is_copied_is_there_and_not_ignored():
    ignored = (CHECKOUT / ".dockerignore").read_text().splitlines()
    for line in of("COPY"):
        *sources, _ = line.split()
        for source in sources:
            assert (CHECKOUT / source).exists(), source
            assert not [pattern for pattern in ignored if fnmatch.fnmatch(source, pattern)]


def test_its_python_is_one_that_the_project_is_for():
    (version,) = re.findall(r"^python:(\d+\.\d+)-slim$", of("FROM")[0])
    assert f"Programming Language :: Python :: {version}" in project()["classifiers"]


def test_what_is_installed_beside_are_extras_and_releases_that_are_tested():
    (install,) = [line for line in of("RUN") if line.startswith("pip install")]
    (extras,) = re.findall(r'"\.\[(.*?)\]"', install)
    optional = project()["optional-dependencies"]
    assert set(extras.split(",")) <= set(optional)
    assert set(re.findall(r'"(\w[\w-]*==[\d.*]+)"', install)) <= set(optional["e2e"])


def test_what_it_starts_is_a_command_that_serves_the_port_it_names(monkeypatch, tmp_path):
    served = {}
    monkeypatch.setattr(serving, "serve", lambda home, **options: served.update(options) or 0)
    program, *arguments = json.loads(of("CMD")[0])
    assert program in project()["scripts"]
    assert call_command_line(*arguments, "--home", tmp_path)[0] == 0
    assert served == {"host": "0.0.0.0", "port": PORT, "automation": True}
    assert of("EXPOSE") == [str(PORT)]
    assert f"http://127.0.0.1:{PORT}/server_info" in of("HEALTHCHECK")[0]
    assert f"-p 127.0.0.1:{PORT}:{PORT}" in (CHECKOUT / "docs" / "deploy.md").read_text()
    assert f"proxy_pass http://127.0.0.1:{PORT};" in (DEPLOY / "nginx.conf").read_text()
    (container,) = pod()["containers"]
    assert container["ports"] == [{"containerPort": PORT}]
    assert container["readinessProbe"]["httpGet"] == {"path": "/server_info", "port": PORT}


def test_the_health_check_is_code_that_fails_where_nobody_answers():
    _, _, command = of("HEALTHCHECK")[0].partition("CMD ")
    python, option, code = json.loads(command)
    assert (python, option) == ("python", "-c")
    with pytest.raises(OSError, match="refused"):
        exec(code.replace(f":{PORT}/", ":1/"))


def test_the_home_is_the_volume_and_of_the_user_that_pods_run_as():
    environment = dict(pair.split("=") for line in of("ENV") for pair in line.split())
    assert environment["PATCHWORKS_HOME"] == of("VOLUME")[0] == "/data"
    assert environment["DAGSTER_HOME"] == "/data/dagster"
    (user,) = of("USER")
    assert any(f"chown {user} /data" in line for line in of("RUN"))
    security = pod()["securityContext"]
    assert user == f"{security['runAsUser']}:{security['fsGroup']}"
    assert {mount["mountPath"] for mount in pod()["containers"][0]["volumeMounts"]} >= {"/data"}


def test_a_pod_gives_the_service_the_time_that_it_takes_to_end():
    slowest = 2 * serving.SECONDS_TO_STOP + serving.SECONDS_TO_FOLLOW
    assert pod()["terminationGracePeriodSeconds"] > slowest
    assert "--stop-timeout 60" in (CHECKOUT / "docs" / "deploy.md").read_text()
    assert slowest < 60


def test_a_home_on_kubernetes_is_given_the_storage_that_reads_the_address_of_its_server():
    (before,) = pod()["initContainers"]
    (container,) = pod()["containers"]
    assert before["image"] == container["image"]
    (source,) = re.findall(r"cp (\S+) \$DAGSTER_HOME/dagster.yaml", before["command"][-1])
    assert source.startswith(f"{of('WORKDIR')[-1]}/deploy/")
    assert "mv /src/deploy ." in " ".join(of("RUN"))
    settings = yaml.safe_load((DEPLOY / Path(source).name).read_text())
    storage = settings["storage"]["custom"]["config"]
    assert storage["postgres_url"]["env"] in {variable["name"] for variable in container["env"]}

"""A script of a user passes ``mypy --strict``, and runs; importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import patchworks_core

SCRIPT = Path(__file__).with_name("user_script.py")
PACKAGE = Path(patchworks_core.__file__).parent


def test_a_script_of_a_user_runs(tmp_path):
    command = [sys.executable, "-W", "error", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_script_of_a_user_passes_mypy_strict(tmp_path):
    config = tmp_path / "mypy.ini"
    foreign = "".join(
        f"[mypy-{n}.*]\nignore_missing_imports = True\n" for n in ("scipy", "pyarrow")
    )
    config.write_text(f"[mypy]\nstrict = True\nmypy_path = {PACKAGE.parent}\n{foreign}")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), str(SCRIPT)]
    command += ["--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Success" in done.stdout, done.stdout + done.stderr
    wrong = SCRIPT.read_text().replace("per_plane=True", "per_plan=True")
    wrong = wrong.replace("resume=True", "resume='yes'").replace("max_workers=1", "max_workers='1'")
    (tmp_path / "wrong.py").write_text(wrong)
    command[5] = "wrong.py"
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Found 3 errors" in failed.stdout, failed.stdout


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, patchworks_core; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert not modules & {"numpy", "zarr", "dask", "scipy", "pyarrow", "dagster", "tifffile"}


def test_every_public_name_is_there_and_listed_once():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    names = [a.asname for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names]
    assert sorted(names) == sorted({*names}) == sorted(patchworks_core.__all__)
    for name in names:
        assert getattr(patchworks_core, name).__module__.startswith("patchworks_core.")
    with pytest.raises(AttributeError, match="nothing"):
        patchworks_core.nothing  # noqa: B018

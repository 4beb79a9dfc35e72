"""Take pictures of the UI of a home with one failed tile: ``python -m tests.e2e.screenshots OUT``.

A script, not a test: it needs playwright and a Chromium, and a person looks at the pictures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.e2e.conftest import serving
from tests.tissue import (
    environment_of_functions,
    marked_tissue,
    python_command,
    tissue,
    write_tiff,
)

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PAGES = {
    "lineage": "/asset-groups",
    "staged_labels_partitions": "/assets/staged_labels?view=partitions&status=FAILED",
    "merged_labels": "/assets/merged_labels?view=partitions&partition=immunohistochemistry",
    "quality_report": "/assets/quality_report?view=partitions&partition=immunohistochemistry",
    "image": "/assets/image?view=partitions&partition=immunohistochemistry",
    "runs": "/runs",
}


def main(out: Path) -> None:
    """Make a home, serve it, and take every picture."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="patchworks-shots-") as folder:
        home = _home(Path(folder))
        with serving(home) as served, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
            page = browser.new_page(viewport={"width": 1440, "height": 1000})
            for name, path in PAGES.items():
                page.goto(served.url + path)
                page.wait_for_timeout(5000)
                if name == "lineage":
                    page.keyboard.press("Alt+KeyE")  # the UI's shortcut: expand all groups
                _shoot(page, out / f"{name}.png")
                shown = page.locator("text=[Show Markdown]")
                if shown.count():
                    shown.first.click()
                    _shoot(page, out / f"{name}_picture.png")
            browser.close()


def _shoot(page: Any, path: Path) -> None:
    page.wait_for_timeout(1500)
    page.screenshot(path=path)
    print(path, flush=True)


def _home(folder: Path) -> Path:
    """Return a home with the demo, a plain tissue, and one with a tile that failed."""
    marked = write_tiff(folder / "marked.tif", marked_tissue())
    plain = write_tiff(folder / "plain.tif", tissue())
    os.environ["PATCHWORKS_TEST_MENDED"] = str(folder / "mended")
    environment = {**os.environ, **environment_of_functions()}
    function = ["--segmentation", "tissue_functions:fails_at_mark"]
    options = ["--tile-shape", "32", "--overlap", "8", "--home", str(folder / "home")]
    patchworks = python_command("patchworks")
    images = [str(marked), str(plain)]
    subprocess.run([patchworks, "run", *images, *function, *options], env=environment)
    subprocess.run([patchworks, "demo", "--home", str(folder / "home")], check=True)
    return folder / "home"


if __name__ == "__main__":
    main(Path(sys.argv[1]))

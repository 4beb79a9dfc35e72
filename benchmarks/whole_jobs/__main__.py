"""Whole jobs beside other tools: seconds, processor, memory, and whether the labels are right.

    python -m benchmarks.whole_jobs [--workloads W1 W2] [--tools patchworks dask] [--repeats 3]

Each tool runs in a process, and those of the registry in an environment of their own under
``build/bench``. Repeats are interleaved, so that a busy minute hits all tools. Figures are medians;
the table says ratios too, because machines differ. Writes `RESULTS.md` and a chart: beside this
folder where everything was measured, and into ``build/bench`` where some was left out.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from pathlib import Path

from benchmarks.whole_jobs.limits import limits, wrong_pixels
from benchmarks.whole_jobs.measured import Measured, measure
from benchmarks.whole_jobs.report import Cell, Row, write_report
from benchmarks.whole_jobs.tools import TOOLS
from benchmarks.whole_jobs.workloads import (
    BY_NAME,
    WORKLOADS,
    Workload,
    write_image,
    write_truth,
)
from patchworks_core.images.image import open_image
from patchworks_core.ome_zarr.convert import convert_image

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench"

PACKAGES = {
    "peer": ["patchworks==3.3.0"],
    "ngio": ["ngio==1.1.3", "dask[array]"],
    "ccl": ["tilewise-ccl", "connected-components-3d", "zarr>=3.1", "dask[array]"],
}
ENVIRONMENT = {
    "peer": "peer",
    "peer merge": "peer",
    "peer counted merge": "peer",
    "cc3d": "ccl",
    "tilewise": "ccl",
    "ngio": "ngio",
}
"""Which environment a tool runs in; ours where it is not listed."""

LIMIT = 600.0
"""Seconds after which a run is ended."""


def main() -> None:
    """Measure, and write what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workloads", nargs="+", choices=BY_NAME, default=[w.name for w in WORKLOADS]
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of RESULTS.md and results.png; by default, of all workloads and tools "
        "benchmarks/, and build/bench/ of some",
    )
    args = parser.parse_args()
    is_whole = {*args.workloads} >= {w.name for w in WORKLOADS} and {*args.tools} == {*TOOLS}
    results = args.results or (ROOT / "benchmarks" if is_whole else BUILD)
    pythons = {tool: python_of(tool) for tool in args.tools}
    rows = []
    with tempfile.TemporaryDirectory(prefix="patchworks-bench-") as scratch:
        for name in args.workloads:
            row = measure_workload(
                BY_NAME[name], pythons, args.repeats, args.workers, Path(scratch)
            )
            rows.append(row)
            write_report(rows, results, repeats=args.repeats, workers=args.workers)
            print(json.dumps({name: {tool: str(cell) for tool, cell in row.cells.items()}}))


def python_of(tool: str) -> str:
    """Return the interpreter a tool runs in, and make its environment where there is none."""
    name = ENVIRONMENT.get(tool)
    if name is None:
        return sys.executable
    folder = BUILD / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name]]
        subprocess.run(command, check=True)
    return str(python)


def measure_workload(
    workload: Workload, pythons: dict[str, str], repeats: int, workers: int, scratch: Path
) -> Row:
    """Run every tool on a workload, in turn."""
    image, truth, tiles = prepared(workload, workers)
    runs: dict[str, list[Measured]] = defaultdict(list)
    wrong: dict[str, int] = {}
    for number in range(repeats):
        for tool, python in pythons.items():
            if not is_for(tool, workload) or any(run.error for run in runs[tool]):
                continue
            # Results stay until all is measured: ext4 takes up to .2 ms more to make a file within
            # seconds of removing thousands.
            out = scratch / f"{workload.name}_{tool}_{number}".replace(" ", "_") / "out.zarr"
            source = as_ome_zarr(workload, image) if tool == "ngio" else image
            module = ["-m", "benchmarks.whole_jobs.tools", tool, workload.name]
            command = [python, *module, str(source), str(tiles), str(out), str(workers)]
            run = measure(command, limit=LIMIT, folder=ROOT)
            runs[tool].append(run)
            if not run.error and tool != "dask" and tool not in wrong:
                result = source / "labels" / "labels" / "0" if tool == "ngio" else array_in(out)
                wrong[tool] = wrong_pixels(truth, result)
    cells = {tool: cell_of(tool_runs, wrong.get(tool)) for tool, tool_runs in runs.items()}
    measured_limits = limits(workload, image, truth, scratch / "limits.zarr", workers)
    return Row(workload, cells, measured_limits)


def prepared(workload: Workload, workers: int) -> tuple[Path, Path, Path]:
    """Return image, whole labels and labels of each tile; made once, and kept."""
    folder = BUILD / "images"
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"{workload.image_name}.zarr"
    truth = folder / f"{workload.image_name}_labels.zarr"
    tiles = folder / f"{workload.name}_tiles.zarr"
    for path, write in (
        (image, lambda path: write_image(workload, path)),
        (truth, lambda path: write_truth(workload, image, path)),
        (tiles, lambda path: write_tiles(workload, image, path, workers)),
    ):
        if not path.exists():
            temporary = path.with_name(f".{path.name}")
            shutil.rmtree(temporary, ignore_errors=True)
            write(temporary)
            temporary.rename(path)
    return image, truth, tiles


def as_ome_zarr(workload: Workload, image: Path) -> Path:
    """Return the image as OME-Zarr, beside which ngio writes its labels; made once, and kept."""
    path = image.with_suffix(".ome.zarr")
    if not path.exists():
        opened = open_image(image, axes=workload.axes)
        convert_image(opened, path, chunks=workload.chunks, shards=None, levels=1, labels=False)
    return path


def write_tiles(workload: Workload, image: Path, path: Path, workers: int) -> None:
    """Write the labels of each tile on its own."""
    module = ["-m", "benchmarks.whole_jobs.tools", "dask", workload.name]
    command = [sys.executable, *module, str(image), "", str(path), str(workers)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def is_for(tool: str, workload: Workload) -> bool:
    """Tell whether a tool does what a workload is about.

    What is four times as large is for whether seconds and memory grow with it. ngio takes some
    0.2 s for each tile, so it is given no more than 64.
    """
    if workload.name.endswith("x4"):
        return tool in ("patchworks", "peer", "dask")
    if tool == "ngio" and workload.name in ("W3", "W4"):
        return False
    is_components = workload.kind == "nuclei"
    return is_components or not (tool in ("cc3d", "tilewise") or tool.endswith("merge"))


def array_in(out: Path) -> Path:
    """Return the array of labels that a tool wrote."""
    return out / "labels" if (out / "labels").exists() else out


def cell_of(runs: list[Measured], wrong: int | None) -> Cell:
    """Return the medians of the runs of a tool."""
    error = next((run.error for run in runs if run.error), "")
    if error:
        return Cell(math.nan, math.nan, math.nan, math.nan, 0, error=error)
    seconds = sorted(run.seconds for run in runs)
    typical = min(runs, key=lambda run: abs(run.seconds - statistics.median(seconds)))
    return Cell(
        statistics.median(seconds),
        seconds[0],
        seconds[-1],
        statistics.median(run.cpu_seconds for run in runs),
        max(run.peak_bytes for run in runs),
        wrong,
        typical.phases,
    )


if __name__ == "__main__":
    main()

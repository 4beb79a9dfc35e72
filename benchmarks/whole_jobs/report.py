"""What was measured, as a page and a chart."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path

from benchmarks.whole_jobs.workloads import Workload


@dataclass(frozen=True)
class Cell:
    """A tool on a workload."""

    seconds: float
    least: float
    most: float
    cpu_seconds: float
    peak_bytes: int
    wrong_pixels: int | None = None
    """None where the tool does not merge."""

    phases: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"failed: {self.error}"
        wrong = f", **{self.wrong_pixels:,} pixels wrong**" if self.wrong_pixels else ""
        spread = f"{self.least:.2f}–{self.most:.2f}"  # noqa: RUF001
        memory = f"{self.peak_bytes / 1e6:.0f} MB"
        return f"{self.seconds:.2f} s ({spread}; {self.cpu_seconds:.1f} s CPU; {memory}){wrong}"


@dataclass(frozen=True)
class Row:
    """All tools on a workload."""

    workload: Workload
    cells: Mapping[str, Cell]
    limits: Mapping[str, float]


MEANING = {
    "patchworks": "this project, `tile_process`",
    "peer": "`patchworks` 3.3.0 of the registry, `tile_process`",
    "dask": "`dask.array.map_blocks` and `to_zarr`: no halo and **no merge**",
    "cc3d": "whole image in memory, `connected-components-3d`",
    "tilewise": "`tilewise-ccl`, which labels components only",
    "ngio": "`ngio` 1.1.3, with a halo of 8 where the others have none, stitched by IoU",
    "merge": "this project, `merge_tile_labels`, of labels that are there",
    "peer merge": "the peer's `merge_tile_labels`, of a copy of the same",
    "peer counted merge": "the same, told how many labels each tile has (`label_counts`)",
}


def write_report(rows: list[Row], folder: Path, *, repeats: int, workers: int) -> None:
    """Write ``RESULTS.md`` and ``results.png``."""
    tools = [tool for tool in MEANING if any(tool in row.cells for row in rows)]
    lines = [
        "# Whole jobs beside other tools",
        "",
        _introduction(repeats, workers),
        "",
        *(f"- **{tool}**: {MEANING[tool]}" for tool in tools),
        "",
        "| workload | " + " | ".join(tools) + " |",
        "|---" * (len(tools) + 1) + "|",
        *(_line(row, tools) for row in rows),
        "",
        "Seconds over those of this project in the same run, above 1 where it is faster: of the "
        "two merges of the peer over those of `merge`, of all else over those of `patchworks`:",
        "",
        "| workload | " + " | ".join(tools[1:]) + " |",
        "|---" * len(tools) + "|",
        *(_ratios(row, tools[1:]) for row in rows),
        "",
        "Where the seconds of `patchworks` go, beside what the machine takes: copying the labels "
        "in memory, coding and writing them, reading the image, and the function alone; and how "
        "many times the last three together the job takes. Phases are of the run nearest the "
        "median:",
        "",
        "| workload | phases | limits | times |",
        "|---|---|---|---|",
        *(_phases(row) for row in rows if "patchworks" in row.cells),
        *_growths(rows, tools),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "RESULTS.md").write_text("\n".join(lines) + "\n")
    _draw(rows, tools, folder / "results.png")


def _introduction(repeats: int, workers: int) -> str:
    versions = {name: version(name) for name in ("numpy", "zarr", "dask")}
    return (
        f"Written by `python -m benchmarks.whole_jobs --repeats {repeats}` (`make bench` repeats 3 "
        f"times) on {date.today()}, of commit {_commit()}: medians of interleaved runs (least and "
        f"most in parentheses), {workers} workers each; {platform.machine()}, {os.cpu_count()} "
        f"cores, Python {platform.python_version()}, NumPy {versions['numpy']}, Zarr "
        f"{versions['zarr']}, Dask {versions['dask']}. Seconds are of the job without imports; CPU "
        "is of the whole process; memory is the peak of the process tree, the highest of all runs. "
        "The partition of voxels is compared with that of the whole image: nothing said means no "
        "pixel is wrong, of all but `dask`, which merges nothing and is not compared. A tool "
        "without a figure was not run: it does another thing, or takes too long."
    )


@cache
def _commit() -> str:
    """Return the commit that is measured, and whether anything differed from it at first."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return answer.stdout.strip() or "unknown"


def _line(row: Row, tools: list[str]) -> str:
    cells = (str(row.cells[tool]) if tool in row.cells else "" for tool in tools)
    return f"| {row.workload.name}: {row.workload.what} | " + " | ".join(cells) + " |"


def _ratios(row: Row, tools: list[str]) -> str:
    cells = []
    for tool in tools:
        against = "merge" if tool.endswith(" merge") else "patchworks"
        if tool in row.cells and against in row.cells and not row.cells[tool].error:
            cells.append(f"{row.cells[tool].seconds / row.cells[against].seconds:.2f}")
        else:
            cells.append("")
    return f"| {row.workload.name} | " + " | ".join(cells) + " |"


def _phases(row: Row) -> str:
    def words(seconds: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())

    ours = row.cells["patchworks"]
    least = sum(row.limits[name] for name in ("write labels", "read image", "function"))
    return (
        f"| {row.workload.name} | {words(ours.phases)} | {words(row.limits)} | "
        f"{ours.seconds / least:.2f} |"
    )


def _growths(rows: list[Row], tools: list[str]) -> list[str]:
    """Say what an image four times as large takes, where both sizes were measured."""
    by_name = {row.workload.name: row for row in rows}
    lines = []
    for name, row in by_name.items():
        large = by_name.get(f"{name}x4")
        for tool in tools:
            if large and tool in large.cells and not large.cells[tool].error:
                small, four = row.cells[tool], large.cells[tool]
                lines.append(
                    f"| {name} | {tool} | {four.seconds / small.seconds / 4:.2f} | "
                    f"{four.peak_bytes / small.peak_bytes:.2f} |"
                )
    heading = "Four times the image: seconds per pixel and memory, over those of the image itself:"
    table = ["| workload | tool | seconds per pixel | memory |", "|---|---|---|---|"]
    return ["", heading, "", *table, *lines] if lines else []


def _draw(rows: list[Row], tools: list[str], path: Path) -> None:
    """Draw seconds per workload, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 1.3 * len(rows), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(tools)
    for i, tool in enumerate(tools):
        places = [n for n, row in enumerate(rows) if tool in row.cells]
        heights = [rows[n].cells[tool].seconds for n in places]
        axes.bar([n + i * width for n in places], heights, width, label=tool)
    axes.set_yscale("log")
    axes.set_ylabel("seconds")
    axes.set_xticks(
        [n + 0.4 - width / 2 for n in range(len(rows))], [row.workload.name for row in rows]
    )
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)

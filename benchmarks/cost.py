"""The cost of runs as it is predicted, and as it is measured: ``python -m benchmarks.cost``.

Each image is planned (``patchworks plan --cost --json``, with a few tiles measured) and run in a
fresh home (``patchworks run``), in processes of their own. Prints a Markdown table of processor
seconds, bytes and files, predicted and measured. Constants were fitted to the first four images,
not to the one held out. Images are made in a temporary folder, 250 MB in all.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.whole_jobs.workloads import NUCLEI_2D, NUCLEI_3D, Workload, write_image

FUNCTION = "benchmarks.whole_jobs.workloads:label_bright"

WORKLOADS = (
    Workload("tiny", "to start", "nuclei", (256, 256), (256, 256), NUCLEI_2D),
    Workload("2-D", "many small objects", "nuclei", (4096, 4096), (1024, 1024), 2 * NUCLEI_2D),
    Workload("3-D", "64, 256, 256", "nuclei", (128, 512, 512), (64, 256, 256), NUCLEI_3D, halo=8),
    Workload("many tiles", "of 128²", "nuclei", (4096, 4096), (128, 128), NUCLEI_2D),
    Workload("held out", "no constant is of it", "nuclei", (3072, 5120), (512, 512), NUCLEI_2D),
)


@dataclass(frozen=True)
class Measurement:
    """What a run took, or would take."""

    core_seconds: float
    bytes_staged: float
    bytes_written: float
    files: float


def patchworks(*arguments: object) -> tuple[str, float]:
    """Call a command; return what it printed and its processor seconds, with its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "patchworks_pipeline", *map(str, arguments)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return answer.stdout, seconds


def predicted(arguments: list[object]) -> Measurement:
    """Return what the plan says."""
    text, _ = patchworks("plan", *arguments, "--cost", "--json")
    cost = {name: amount["value"] for name, amount in json.loads(text)["cost"].items()}
    names = ("bytes_staged", "bytes_written", "files")
    return Measurement(cost["core_hours"] * 3600, *(cost[name] for name in names))


def measured(arguments: list[object], home: Path) -> Measurement:
    """Return what the run took."""
    _, seconds = patchworks("run", *arguments, "--workers", 1)
    (stage,) = home.glob("store/**/stage.zarr")
    (labels,) = home.glob("store/**/labels/labels")
    of_stage, of_labels = files_of(stage), files_of(labels)
    return Measurement(seconds, sum(of_stage), sum(of_labels), len(of_stage) + len(of_labels))


def files_of(folder: Path) -> list[int]:
    """Return the bytes of each file below a folder."""
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def main() -> None:
    """Print the table."""
    print("| image | what | predicted | measured | predicted over measured |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="patchworks-cost-") as folder:
        for workload in WORKLOADS:
            image, home = Path(folder) / f"{workload.name}.zarr", Path(folder) / workload.name
            write_image(workload, image)
            arguments: list[object] = [image, "--segmentation", FUNCTION]
            arguments += ["--axes", workload.axes, "--home", home, "--name", "image"]
            arguments += ["--tile-shape", ",".join(map(str, workload.tile_shape))]
            arguments += ["--overlap", workload.halo]
            plan, run = predicted(arguments), measured(arguments, home)
            rows = (
                ("core s", plan.core_seconds, run.core_seconds),
                ("stage, MB", plan.bytes_staged / 1e6, run.bytes_staged / 1e6),
                ("labels, MB", plan.bytes_written / 1e6, run.bytes_written / 1e6),
                ("files", plan.files, run.files),
            )
            for what, model, real in rows:
                ratio = f"{model / real:.2f}"
                print(f"| {workload.name} | {what} | {model:.2f} | {real:.2f} | {ratio} |")
            sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    main()

"""An image as jobs of a batch system: scripts for ranges of tiles, and what one of them does.

1. `write_scripts` cuts what is missing of an image into ranges, and writes an array job whose tasks
   each stage one, a job that merges, and the commands that submit both.
2. `stage_range` is such a task: it stages what is missing in a range. It opens no Dagster instance,
   whose database many nodes would lock; the stage itself says what is done.
3. The job that merges is ``patchworks run``: it tells Dagster of the tiles that are staged.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from patchworks_core.errors import PlanError
from patchworks_core.files.storage import as_path, write_text
from patchworks_core.machine.engine import Outcome
from patchworks_core.machine.pools import Pool
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import StagedBlock, StagingCount, stage_all
from patchworks_core.tiles.grid import TileBlock
from patchworks_pipeline.assets.planned import planned_function
from patchworks_pipeline.assets.staging import keep_failure, staging_of
from patchworks_pipeline.cli.advice import only_of, planned_anew
from patchworks_pipeline.cli.terminal import errors, say
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.gpus import GpuPool
from patchworks_pipeline.resources.pools import DeployedCompute
from patchworks_pipeline.tile_failures import TileFailure

TILES_SCRIPT, MERGE_SCRIPT, SUBMIT_SCRIPT = "tiles.sh", "merge.sh", "submit.sh"

_TILES = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --output={folder}/tiles-%a.log
{directives}
# Task i stages what is missing from the i-th tile of FIRST to the i-th of LAST.
# Without SLURM: bash {script} i
set -eu
FIRST=({first})
LAST=({last_keys})
i=${{SLURM_ARRAY_TASK_ID:-${{1:?number of the range, 0 to {last}}}}}
exec {command} "${{FIRST[$i]}}" "${{LAST[$i]}}"
"""

_MERGE = """\
#!/bin/bash
#SBATCH --job-name={name}-merge
#SBATCH --output={folder}/merge.log
{directives}
set -eu
exec {command}
"""

_SUBMIT = """\
#!/bin/bash
set -eu
tiles=$(sbatch --parsable {tiles})
sbatch --dependency="afterok:${{tiles%%;*}}" --kill-on-invalid-dep=yes {merge}
"""


@dataclass(frozen=True, slots=True)
class Directives:
    """What the jobs ask of SLURM, such as ``--gres=gpu:1``."""

    tiles: Sequence[str] = ()
    """Each task of the array."""

    merge: Sequence[str] = ()
    """The job that merges."""


def write_scripts(
    folder: ImageFolder,
    home: Path,
    missing: Sequence[str],
    *,
    n_tasks: int,
    directives: Directives,
    options: Sequence[str] = (),
    overwrite: bool = False,
) -> Path | None:
    """Write the scripts of an image; return the one that submits, None where nothing is missing.

    Parameters
    ----------
    folder : ImageFolder
        Of an image that is planned.
    home : Path
        Absolute, and reached by all nodes.
    missing : sequence of str
        Keys of the tiles that are to be staged, in row-major order.
    n_tasks : int
        Ranges of tiles, at most.
    directives : Directives
    options : sequence of str
        Of the command line, for the tasks and for the merge.
    overwrite : bool
        Let the merge replace labels and tables that were changed.
    """
    plan = folder.plan()
    size = -(-len(missing) // n_tasks)
    ranges = [missing[i : i + size] for i in range(0, len(missing), max(1, size))]
    to = home / "submit" / folder.title
    own = [sys.executable, "-m", "patchworks_pipeline"]
    rest = [*only_of(folder), "--home", str(home), *options]
    of_plan = ["--plan", plan.fingerprint, *rest]
    run = ["run", folder.acquisition().url, "--name", folder.key, *of_plan]
    run += ["--overwrite"] if overwrite else []
    stage = ["stage-range", folder.key, *of_plan]
    name = "patchworks-" + folder.title.replace("/", "-")
    common = {"name": shlex.quote(name), "folder": to}
    scripts = {
        MERGE_SCRIPT: _MERGE.format(
            **common, directives=_lines(directives.merge), command=shlex.join([*own, *run])
        )
    }
    if ranges:
        scripts[TILES_SCRIPT] = _TILES.format(
            **common,
            script=TILES_SCRIPT,
            directives=_lines(directives.tiles),
            last=len(ranges) - 1,
            first=" ".join(keys[0] for keys in ranges),
            last_keys=" ".join(keys[-1] for keys in ranges),
            command=shlex.join([*own, *stage]),
        )
        scripts[SUBMIT_SCRIPT] = _SUBMIT.format(
            tiles=shlex.quote(str(to / TILES_SCRIPT)), merge=shlex.quote(str(to / MERGE_SCRIPT))
        )
    for script, text in scripts.items():
        write_text(as_path(to / script), text)
    return to / SUBMIT_SCRIPT if ranges else None


def _lines(directives: Sequence[str]) -> str:
    return "\n".join(f"#SBATCH {directive}" for directive in directives)


@dataclass(slots=True)
class _Record:
    """Keeps beside the stage why tiles failed; listens to `stage_all`."""

    folder: ImageFolder
    stage: Stage
    failed_before: frozenset[str]
    failures: list[TileFailure] = field(default_factory=list)

    def started(self, pool: Pool, count: StagingCount) -> None:
        """Say what the tiles run on."""
        say(f"{self.folder.title}: staging {count.n_blocks} tiles; {pool.reason}", on=errors)

    def finished(self, outcome: Outcome[TileBlock, StagedBlock], count: StagingCount) -> bool:
        """Keep why a tile failed, or forget why it did before; go on unless planned anew."""
        failure = keep_failure(self.folder, self.stage, outcome, self.failed_before)
        if failure is None:
            return True
        self.failures.append(failure)
        return self.stage.is_current


def stage_range(
    folder: ImageFolder,
    first: str,
    last: str,
    *,
    budget: ComputeBudget,
    gpus: GpuPool,
    plan: str = "",
) -> list[TileFailure]:
    """Stage the missing tiles of a range; return those that failed.

    Parameters
    ----------
    folder : ImageFolder
        Of an image that is planned.
    first, last : str
        Keys of tiles, such as ``y001x002``; all between them in row-major order belong to it.
    budget : ComputeBudget
    gpus : GpuPool
    plan : str
        Fingerprint of the plan that the range is of; empty is whatever is planned.

    Raises
    ------
    PlanError
        If there are no such tiles, the last one comes before the first, or another plan was made
        since.
    """
    planned = folder.plan()
    if plan and planned.fingerprint != plan:
        raise PlanError(planned_anew(folder))
    keys = planned.grid.block_keys()
    for key in (first, last):
        planned.grid.block_of_key(key)
    chosen = keys[keys.index(first) : keys.index(last) + 1]
    if not chosen:
        raise PlanError(f"tile {last!r} comes before {first!r}; name the first one first")
    stage = folder.stage(planned)
    missing = set(stage.missing_blocks())
    blocks = [planned.grid.block_of_key(key) for key in chosen if key in missing]
    function = planned_function(folder, planned)
    compute = DeployedCompute(
        budget, gpus, None, wants_gpu=function.wants_gpu, declared=function.worker_kind
    )
    if compute.unkept_limits:
        say(f"{folder.title}: {compute.unkept_limits}", on=errors)
    before = frozenset(failure.block for failure in folder.failures())
    record = _Record(folder, stage, before)
    with stage_all(staging_of(folder, stage, function), blocks, compute, record):
        pass  # nothing else runs on this pool
    return record.failures

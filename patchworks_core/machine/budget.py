"""The budget: what this process was granted, and what a tile block needs of it.

Limits are read where they bind: the SLURM allocation, the cgroups this process is in (v2, then v1),
the address space it may use, the CPU affinity, and last the machine. The smallest wins, and each
says where it came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from patchworks_core.errors import PlanError
from patchworks_core.tiles.grid import TileGrid

FUNCTION_BYTES_PER_PIXEL = 64
"""Assumed for a segmentation function that was not measured: eight float64 working arrays.

The built-in watershed peaks at 40 to 60 bytes per pixel it sees.
"""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit and who set it."""

    value: int
    """Cores, or bytes."""

    source: str
    """Where it was read."""


CGROUP = Path("/sys/fs/cgroup")
"""Where the kernel shows control groups."""

PROCESS = Path("/proc/self")
"""Where the kernel shows this process."""


def granted_cores(
    *, environ: Mapping[str, str] | None = None, cgroup: Path = CGROUP, process: Path = PROCESS
) -> Limit:
    """Return the cores this process may use, at least 1."""
    limits = list(_core_limits(os.environ if environ is None else environ, cgroup, process))
    return min(limits, key=lambda limit: limit.value)


def _core_limits(environ: Mapping[str, str], cgroup: Path, process: Path) -> Iterator[Limit]:
    if hasattr(os, "sched_getaffinity"):
        yield Limit(len(os.sched_getaffinity(0)), "CPU affinity")
    else:
        yield Limit(os.cpu_count() or 1, "machine")
    slurm = environ.get("SLURM_CPUS_PER_TASK") or environ.get("SLURM_CPUS_ON_NODE")
    if slurm and slurm.isdigit():
        yield Limit(max(1, int(slurm)), "SLURM")
    for folder in _own_cgroups(cgroup, process):
        quota, _, period = _content(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            yield Limit(max(1, int(quota) // int(period)), "cgroup v2")
    for folder in _own_cgroups(cgroup, process, controller="cpu"):
        quota, period = (_content(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):
            yield Limit(max(1, int(quota) // int(period)), "cgroup v1")


def granted_memory_bytes(
    *, environ: Mapping[str, str] | None = None, cgroup: Path = CGROUP, process: Path = PROCESS
) -> Limit:
    """Return the memory this process may still take, in bytes."""
    limits = list(_memory_limits(os.environ if environ is None else environ, cgroup, process))
    return min(limits, key=lambda limit: limit.value)


def _memory_limits(environ: Mapping[str, str], cgroup: Path, process: Path) -> Iterator[Limit]:
    import psutil

    yield Limit(psutil.virtual_memory().available, "free memory")
    space = address_space_limit()
    if space is not None:
        left = space - psutil.Process().memory_info().vms
        yield Limit(max(0, left), "address space limit")
    per_node = environ.get("SLURM_MEM_PER_NODE", "")
    if per_node.isdigit() and int(per_node):
        yield Limit(int(per_node) << 20, "SLURM")
    per_core = environ.get("SLURM_MEM_PER_CPU", "")
    if per_core.isdigit() and int(per_core):
        cores = environ.get("SLURM_CPUS_PER_TASK", "1")
        yield Limit(int(per_core) * int(cores if cores.isdigit() else 1) << 20, "SLURM")
    files = (
        ("", "memory.max", "memory.current", "cgroup v2"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "cgroup v1"),
    )
    for controller, limit, used, source in files:
        for folder in _own_cgroups(cgroup, process, controller=controller):
            allowed, usage = _content(folder / limit), _content(folder / used)
            if allowed.isdigit():
                held = int(usage) - _reclaimable(folder) if usage.isdigit() else 0
                yield Limit(max(0, int(allowed) - max(0, held)), source)


def _reclaimable(folder: Path) -> int:
    """Return the bytes of a control group that only cache files; the kernel gives them up first."""
    lines = (line.partition(" ") for line in _content(folder / "memory.stat").splitlines())
    figures = {name: int(value) for name, _, value in lines if value.isdigit()}
    return figures.get("total_inactive_file", figures.get("inactive_file", 0))


def address_space_limit() -> int | None:
    """Return the bytes of address space this process may use (``ulimit -v``), None if no limit."""
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else int(soft)


def _own_cgroups(cgroup: Path, process: Path, *, controller: str = "") -> Iterator[Path]:
    """Yield the folders of the control group this process is in, and of those around it.

    In a container the group is mounted as the root; on a node of a batch system it lies below, and
    the root itself sets no limit.
    """
    root = cgroup / controller
    for line in _content(process / "cgroup").splitlines():
        # hierarchy:controllers:path, see cgroups(7); the v2 hierarchy names no controller.
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = root / path.strip("/")
            yield from (g for g in (group, *group.parents) if g != root and root in g.parents)
            break
    yield root


def _content(path: Path) -> str:
    """Return what a kernel file says, or nothing where there is no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def block_bytes(
    grid: TileGrid,
    dtype: np.dtype[np.generic],
    *,
    function_bytes_per_pixel: int = FUNCTION_BYTES_PER_PIXEL,
) -> int:
    """Return the memory that staging one tile block takes at its peak, in bytes.

    Counts the pixels read with their halo, the copy the function gets, its own working memory,
    the labels it returns (int64 at worst), their dense form, and the strips.
    """
    tile = prod(t + 2 * h for t, h in zip(grid.tile_shape, grid.halo, strict=True))
    cores = (t * b for t, b in zip(grid.tile_shape, grid.block_shape, strict=True))
    block = prod(c + 2 * h for c, h in zip(cores, grid.halo, strict=True))
    strips = sum(
        2 * (2 * h or 1) * tile // (t + 2 * h)
        for t, h in zip(grid.tile_shape, grid.halo, strict=True)
    )
    n_tiles = prod(grid.block_shape)
    per_tile = tile * (dtype.itemsize + 8 + function_bytes_per_pixel)
    return block * (dtype.itemsize + 4 + 4) + per_tile + 4 * strips * n_tiles


@dataclass(frozen=True, slots=True)
class WorkerDecision:
    """How many tile blocks are worked on at once, and why."""

    count: int
    """Workers."""

    bytes_per_worker: int
    """What one tile block takes at its peak."""

    reason: str
    """In words."""


def decide_workers(
    needed_bytes: int,
    *,
    cores: Limit,
    memory: Limit,
    memory_fraction: float = 0.8,
    cores_left_free: int = 1,
    at_most: int | None = None,
) -> WorkerDecision:
    """Decide how many tile blocks fit the cores and the memory.

    Parameters
    ----------
    needed_bytes : int
        Memory of one tile block, as `block_bytes` gives it.
    cores, memory : Limit
        What was granted.
    memory_fraction : float
        Share of the memory to use.
    cores_left_free : int
        Cores to leave to others; one is always used.
    at_most : int, optional
        What the user set.

    Raises
    ------
    PlanError
        If not even one tile block fits the memory.

    Examples
    --------
    >>> decide_workers(
    ...     2_000, cores=Limit(8, "SLURM"), memory=Limit(10_000, "cgroup v2")
    ... ).reason
    '4 workers: memory of cgroup v2 (8.0 kB usable) holds 4 tiles of 2.0 kB'
    """
    usable = int(memory.value * memory_fraction)
    fit = usable // max(1, needed_bytes)
    if fit < 1:
        raise PlanError(
            f"one tile needs about {human_bytes(needed_bytes)} and {human_bytes(usable)} are "
            f"usable ({memory_fraction:.0%} of {memory.source}); use smaller tiles or a smaller "
            "halo, or raise the memory fraction"
        )
    by_cores = max(1, cores.value - cores_left_free)
    counts = {
        f"memory of {memory.source} ({human_bytes(usable)} usable) holds {fit} tiles of "
        f"{human_bytes(needed_bytes)}": fit,
        f"{cores.source} grants {cores.value} cores, {cores_left_free} left free": by_cores,
    }
    if at_most is not None:
        counts[f"{at_most} set by the user"] = max(1, at_most)
        if at_most <= cores.value:  # a person who says a number does not want a core left free
            counts.pop(f"{cores.source} grants {cores.value} cores, {cores_left_free} left free")
    reason, count = min(counts.items(), key=lambda entry: entry[1])
    plural = "" if count == 1 else "s"
    return WorkerDecision(count, needed_bytes, f"{count} worker{plural}: {reason}")


def human_bytes(n: float) -> str:
    """Return a number of bytes as people write it.

    Examples
    --------
    >>> human_bytes(2_500_000)
    '2.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"

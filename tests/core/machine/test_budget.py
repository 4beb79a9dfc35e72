"""What a process was granted, read from made-up kernel files."""

from __future__ import annotations

import resource

import pytest

from patchworks_core.machine.budget import granted_cores, granted_memory_bytes


@pytest.fixture
def kernel(tmp_path):
    """A node of a batch system: the root group has no limit, the job's group has."""

    def write(name: str, content: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    (tmp_path / "cgroup").mkdir()
    return tmp_path, write


def memory(root) -> tuple[int, str]:
    found = granted_memory_bytes(environ={}, cgroup=root / "cgroup", process=root / "process")
    return found.value, found.source


def cores(root, **environ) -> tuple[int, str]:
    found = granted_cores(environ=environ, cgroup=root / "cgroup", process=root / "process")
    return found.value, found.source


@pytest.mark.parametrize("place", ["", "slurm/job_7/"])
def test_limits_of_cgroup_v2_are_found_in_a_container_and_below_the_root(kernel, place):
    root, write = kernel
    write("process/cgroup", f"0::/{place.rstrip('/')}\n")
    write(f"cgroup/{place}memory.max", "5000000")
    write(f"cgroup/{place}memory.current", "1000000")
    write(f"cgroup/{place}cpu.max", "100000 100000")
    assert memory(root) == (4_000_000, "cgroup v2")
    assert cores(root) == (1, "cgroup v2")


def test_the_tightest_of_nested_groups_counts(kernel):
    root, write = kernel
    write("process/cgroup", "0::/slurm/job_7/step_0\n")
    write("cgroup/slurm/job_7/memory.max", "3000000")
    write("cgroup/slurm/job_7/step_0/memory.max", "max")
    write("cgroup/slurm/memory.max", "9000000")
    assert memory(root) == (3_000_000, "cgroup v2")


def test_limits_of_cgroup_v1_are_found_for_each_controller(kernel):
    root, write = kernel
    write("process/cgroup", "9:name=systemd:/\n4:memory:/job/a\n1:cpu,cpuacct:/job/b\n0::/\n")
    write("cgroup/memory/job/a/memory.limit_in_bytes", "8000000")
    write("cgroup/memory/job/a/memory.usage_in_bytes", "2000000")
    write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    write("cgroup/cpu/job/b/cpu.cfs_quota_us", "100000")
    write("cgroup/cpu/job/b/cpu.cfs_period_us", "100000")
    assert memory(root) == (6_000_000, "cgroup v1")
    assert cores(root) == (1, "cgroup v1")


@pytest.mark.parametrize("line", ["inactive_file 900000", "total_inactive_file 900000"])
def test_files_in_the_cache_are_not_held_against_the_group(kernel, line):
    root, write = kernel
    write("cgroup/memory.max", "5000000")
    write("cgroup/memory.current", "1000000")
    write("cgroup/memory.stat", f"anon 100000\n{line}\n")
    assert memory(root)[0] == 4_900_000


def test_slurm_grants_cores(kernel):
    assert cores(kernel[0], SLURM_CPUS_PER_TASK="1") == (1, "SLURM")


def test_an_address_space_limit_counts_less_what_is_taken(kernel, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 50, 1 << 50))
    assert memory(kernel[0])[1] == "free memory"
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, 1000))
    assert memory(kernel[0]) == (0, "address space limit")

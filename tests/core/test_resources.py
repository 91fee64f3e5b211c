"""What is left of memory: the least of what the kernel, the control groups and the limits leave."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ss_lens.core import resources
from ss_lens.core.errors import Unavailable
from ss_lens.core.resources import check_disk, check_memory, free_memory, in_gb

GB = 10**9


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB available, whose kernel's files are ours."""
    monkeypatch.setattr(resources, "_ROOT", tmp_path)
    written(tmp_path / "proc/meminfo", f"MemTotal: 9 kB\nMemAvailable:   {8 * GB // 1024} kB\n")
    return tmp_path


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_the_kernel_calls_available_is_free(machine: Path) -> None:
    assert free_memory() == pytest.approx(8 * GB, abs=1024)


@pytest.mark.parametrize("where", ["own", "parent", "a container's top"])
def test_a_control_group_of_version_2_sets_the_limit(where: str, machine: Path) -> None:
    written(machine / "proc/self/cgroup", "0::/user/job\n")
    group = machine / "sys/fs/cgroup" / {"own": "user/job", "parent": "user"}.get(where, "")
    written(group / "memory.max", f"{5 * GB}\n")
    written(group / "memory.current", f"{3 * GB}\n")
    written(group / "memory.stat", f"anon 7\ninactive_file {GB}\n")
    assert free_memory() == 3 * GB


def test_a_control_group_without_limit_sets_none(machine: Path) -> None:
    written(machine / "proc/self/cgroup", "0::/user\n")
    written(machine / "sys/fs/cgroup/user/memory.max", "max\n")
    assert free_memory() == pytest.approx(8 * GB, abs=1024)


def test_a_control_group_of_version_1_sets_the_limit(machine: Path) -> None:
    written(machine / "proc/self/cgroup", "9:cpu:/x\n4:memory:/job\n")
    group = machine / "sys/fs/cgroup/memory/job"
    written(group / "memory.limit_in_bytes", f"{2 * GB}")
    written(group / "memory.usage_in_bytes", f"{GB}")
    written(group / "memory.stat", "total_inactive_file 0\n")
    assert free_memory() == GB


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
def test_a_limit_of_the_address_space_counts() -> None:
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 * 10**9, resource.RLIM_INFINITY))\n"
        "from ss_lens.core.resources import free_memory\n"
        "print(free_memory())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 2 * GB
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_too_little_is_told_with_both_numbers_and_a_remedy(machine: Path) -> None:
    check_memory(7 * GB, "it", "wait")
    with pytest.raises(Unavailable, match=r"^it needs 9\.0 GB of memory, and 8\.0 GB .*; wait\.$"):
        check_memory(9 * GB, "it", "wait")
    check_disk(1, machine / "not" / "yet", "it")
    with pytest.raises(Unavailable, match=r"^it needs 1000000\.0 GB of disk, and .* SS_LENS_HOME"):
        check_disk(10**15, machine / "not" / "yet", "it")
    with pytest.raises(Unavailable, match=r"free some space, or choose another folder\.$"):
        check_disk(10**15, machine, "it", instead="choose another folder")


def test_sizes_are_read_at_a_glance() -> None:
    assert [in_gb(n) for n in (1_117_320_768, 98_362_432)] == ["1.1 GB", "98 MB"]

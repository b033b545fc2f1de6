"""How many threads compute on a machine that is described by files, and how they wait."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from agentflow.threads import Cores, available_cores, num_threads, sleep_soon, waiting_variables

STARTER = 788_160
FOUR = frozenset(range(4))


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, math.inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        # The limit of a group around the own one holds as well.
        (
            {
                "proc/self/cgroup": "0::/slice/unit",
                "sys/fs/cgroup/slice/cpu.max": "200000 100000",
                "sys/fs/cgroup/slice/unit/cpu.max": "300000 100000",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/17\n2:memory:/docker/17\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/docker/17/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/docker/17/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        # In a container the path is the host's, and the mount is the group itself.
        (
            {
                "proc/self/cgroup": "3:cpuacct,cpu:/docker/17",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            math.inf,
        ),
    ],
)
def test_the_quota_of_control_groups_of_either_version(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    assert available_cores(machine(tmp_path, files), allowed=FOUR) == Cores(4, 4, quota)


def test_siblings_on_one_physical_core_count_once_and_cores_of_others_not_at_all(tmp_path: Path) -> None:
    siblings = {
        f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}" for i in range(8)
    }
    root = machine(tmp_path, siblings)
    assert available_cores(root, allowed=frozenset(range(8))) == Cores(8, 4)
    assert available_cores(root, allowed=frozenset({0, 1, 4})) == Cores(3, 2)


@pytest.mark.parametrize(
    ("cores", "usable"), [(Cores(8, 4), 4), (Cores(8, 4, 2.9), 2), (Cores(8, 8, 0.5), 1), (Cores(1, 1), 1)]
)
def test_no_thread_is_without_a_core_and_one_is_always_there(cores: Cores, usable: int) -> None:
    assert cores.usable == usable


@pytest.mark.parametrize(
    ("wanted", "num_parameters", "environ", "expected"),
    [
        ("auto", STARTER, {}, 4),
        ("auto", 100_000, {}, 1),
        ("auto", 600_000_000, {}, 16),
        ("auto", 600_000_000, {"OMP_NUM_THREADS": "3"}, 3),
        ("auto", STARTER, {"OMP_NUM_THREADS": "24, 2"}, 24),  # more than there are cores: who says so means it
        ("auto", 600_000_000, {"OMP_NUM_THREADS": "many"}, 16),
        (5, STARTER, {"OMP_NUM_THREADS": "1"}, 5),
    ],
)
def test_threads_are_those_wanted_or_set_or_of_use(
    wanted: int | Literal["auto"], num_parameters: int, environ: dict[str, str], expected: int
) -> None:
    assert num_threads(wanted, num_parameters, cores=Cores(16, 16), environ=environ) == expected


def test_a_quota_bounds_what_a_large_model_has_use_for() -> None:
    assert num_threads("auto", 10**9, cores=Cores(64, 32, 4.0), environ={}) == 4


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_how_threads_wait_is_left_to_a_user_who_has_said_so(name: str) -> None:
    theirs = {name: "7"}
    sleep_soon(theirs)
    assert theirs == {name: "7"}
    assert waiting_variables(theirs) == {}


_COMMAND = """
import sys
from agentflow.cli import main
sys.argv = ["agentflow", "version"]
main()
assert "torch" not in sys.modules
import torch
"""


@pytest.mark.skipif(sys.platform != "linux", reason="torch's builds for other systems bring another OpenMP")
@pytest.mark.parametrize(
    ("theirs", "spins"), [({}, "1000"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0"), ({"GOMP_SPINCOUNT": "17"}, "17")]
)
def test_a_command_says_how_threads_wait_before_torch_is_loaded(theirs: dict[str, str], spins: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND],
        env={**clean, **theirs, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    # What OpenMP itself says when it is loaded.
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr

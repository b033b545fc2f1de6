"""Which GPUs and cores a server is given."""

from pathlib import Path

import pytest

from agentflow.errors import ConfigError
from agentflow.policies.vllm.launch import Served, check, launches
from agentflow.policies.vllm.servers import Launch, ServerConfig
from agentflow.threads import Cores

NAME = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def _all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NAME, "VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def served(*, gpus: int, learner_gpu: int | None) -> Served:
    return Served(Path("model"), "bfloat16", 512, gpus, lora_rank=0, learner_gpu=learner_gpu)


@pytest.mark.parametrize(
    ("visible", "learner", "expected"),
    [
        ("", 0, ["0,1", "2,3,0"]),  # the learner's comes last: vLLM computes with the first ones
        ("", 3, ["0,1,3", "2,3"]),
        ("", None, ["0,1", "2,3"]),
        ("GPU-a,GPU-b,GPU-c,GPU-d", 0, ["GPU-a,GPU-b", "GPU-c,GPU-d,GPU-a"]),
    ],
)
def test_each_server_has_gpus_of_its_own_and_sees_the_learners(
    visible: str, learner: int | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible:
        monkeypatch.setenv(NAME, visible)
    config = ServerConfig(count=2, gpus=2)
    starts = launches(config, served(gpus=4, learner_gpu=learner), python="python", logs=Path("logs"))
    assert [start.environment[NAME] for start in starts] == expected


def test_more_gpus_than_there_are_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"policy.servers.count = 2 with policy.servers.gpus = 2 takes 4 GPUs; 3 visible"
    ):
        check(ServerConfig(count=2, gpus=2), gpus=3)


def test_servers_on_one_cpu_share_its_cores_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    starts = launches(ServerConfig(count=2), served(gpus=0, learner_gpu=None), python="python", logs=Path("logs"))
    assert [start.environment["VLLM_CPU_OMP_THREADS_BIND"] for start in starts] == ["0,1", "2,3,4"]


def on_cpu(cores: Cores, servers: int) -> list[Launch]:
    cpu = served(gpus=0, learner_gpu=None)
    return launches(ServerConfig(count=servers), cpu, python="python", logs=Path("logs"), cores=cores)


@pytest.mark.parametrize(("servers", "each"), [(1, "6"), (4, "1")])
def test_servers_have_no_more_threads_than_control_groups_grant_time_for(servers: int, each: str) -> None:
    for start in on_cpu(Cores(64, 32, quota=6.5), servers):
        assert start.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind", "vLLM would take every core"
        assert start.environment["OMP_NUM_THREADS"] == each
    assert all("OMP_NUM_THREADS" not in start.environment for start in on_cpu(Cores(64, 32), servers))


def test_threads_of_servers_sleep_soon_unless_the_user_has_said_how_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    (start,) = on_cpu(Cores(8, 8), 1)
    assert start.environment["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    (start,) = on_cpu(Cores(8, 8), 1)
    assert "GOMP_SPINCOUNT" not in start.environment

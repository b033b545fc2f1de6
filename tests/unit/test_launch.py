"""Which GPUs and cores a server is given."""

from pathlib import Path

import pytest

from agentflow.errors import ConfigError
from agentflow.policies.vllm.launch import Served, check, launches
from agentflow.policies.vllm.servers import ServerConfig

NAME = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def _all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)


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
    config = ServerConfig(servers=2, gpus=2)
    starts = launches(config, served(gpus=4, learner_gpu=learner), python="python", logs=Path("logs"))
    assert [start.environment[NAME] for start in starts] == expected


def test_more_gpus_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy.servers = 2 with policy.gpus = 2 takes 4 GPUs; 3 visible"):
        check(ServerConfig(servers=2, gpus=2), gpus=3)


def test_servers_on_one_cpu_share_its_cores_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    starts = launches(ServerConfig(servers=2), served(gpus=0, learner_gpu=None), python="python", logs=Path("logs"))
    assert [start.environment["VLLM_CPU_OMP_THREADS_BIND"] for start in starts] == ["0,1", "2,3,4"]

"""Servers that somebody else runs: `agentflow vllm` starts one, `policy.servers.urls` names it."""

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from agentflow.errors import ConfigError
from tests.integration.vllm.served import RANK, STOP, adapted, sample_all, serving, update, worst_difference
from tests.integration.vllm.trainings import ASYNCHRONOUS, kill_and_resume
from tests.processes import started

CLOSE = 1e-4
LONGEST = 2048
PROGRAM = "import sys; from agentflow.cli import main; sys.exit(main())"


@contextmanager
def listening(folder: Path, *words: str) -> Iterator[str]:
    """Run a server in a process group of its own, as on another host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("vllm", "--env", "websearch", "--port", str(port), "--length", str(LONGEST), *words)
    command = [sys.executable, "-c", PROGRAM, *words]
    with (
        (folder / "log").open("wb") as output,
        started(command, patience_s=1800, stdout=output, stderr=output, start_new_session=True),
    ):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with listening(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def adapter_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with listening(tmp_path_factory.mktemp("server"), "--lora-rank", str(RANK)) as address:
        yield address


def test_a_server_given_by_its_address_follows_the_learner(url: str, tmp_path: Path) -> None:
    with serving(tmp_path, urls=[url]) as policy:
        completions = asyncio.run(sample_all(policy, 8))
        assert {c.policy_version for c in completions} == {0}
        assert worst_difference(policy, completions) < CLOSE
    assert not (tmp_path / "servers").exists(), "nothing was started"


def test_a_turn_ends_at_a_stop_token_or_at_its_limit(url: str, tmp_path: Path) -> None:
    with serving(tmp_path, urls=[url], stop_ids=[STOP]) as policy:
        completions = asyncio.run(sample_all(policy, 32, max_tokens=8))
    for completion in completions:
        stopped = completion.token_ids[-1] == STOP
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert STOP not in completion.token_ids[:-1]
        assert stopped or len(completion.token_ids) == 8


def test_weights_travel_by_tcp_to_a_server_that_shares_no_memory(url: str, tmp_path: Path) -> None:
    with serving(tmp_path, urls=[url], weights_host="127.0.0.1") as policy:
        with policy.updating():
            next(policy.model.parameters()).data.mul_(1.01)
        completions = asyncio.run(sample_all(policy, 8))
        assert {c.policy_version for c in completions} == {1}
        assert worst_difference(policy, completions) < CLOSE


def test_a_server_of_another_model_is_refused_with_what_differs(url: str, tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=999,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
    )
    with (
        pytest.raises(ConfigError, match="vocabulary 1157 instead of 999, layers 3 instead of 2, hidden_size 128"),
        serving(tmp_path, model=Qwen3ForCausalLM(config), urls=[url]),
    ):
        pass


def test_a_server_with_too_short_a_context_is_refused(url: str, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=rf"max_length {LONGEST} below agent.max_episode_tokens = {LONGEST + 1}"),
        serving(tmp_path, urls=[url], length=LONGEST + 1),
    ):
        pass


def test_a_server_without_room_for_adapters_is_refused(url: str, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="lora_rank 0 instead of 8"),
        serving(tmp_path, model=adapted(), urls=[url]),
    ):
        pass


def test_an_adapter_travels_by_tcp_and_the_next_run_brings_its_own(adapter_url: str, tmp_path: Path) -> None:
    for factor in (1.2, 0.8):
        with serving(tmp_path, model=adapted(), urls=[adapter_url], weights_host="127.0.0.1") as policy:
            update(policy, factor)
            completions = asyncio.run(sample_all(policy, 8))
            assert {c.policy_version for c in completions} == {1}
            assert worst_difference(policy, completions) < CLOSE


def test_a_trainer_that_is_killed_resumes_on_a_server_that_stays(url: str, tmp_path: Path) -> None:
    kill_and_resume(tmp_path, f"policy.servers.urls=[{url}]", *ASYNCHRONOUS)


def test_a_trainer_that_is_killed_resumes_with_its_adapter_on_a_server_that_stays(
    adapter_url: str, tmp_path: Path
) -> None:
    kill_and_resume(tmp_path, f"policy.servers.urls=[{adapter_url}]", f"model.lora_rank={RANK}")


def test_an_address_where_nobody_listens_is_named(tmp_path: Path) -> None:
    started = time.monotonic()
    with (
        pytest.raises(ConfigError, match=r"http://127.0.0.1:9 did not answer within 2 s"),
        serving(tmp_path, urls=["http://127.0.0.1:9"], startup_s=2),
    ):
        pass
    assert time.monotonic() - started < 30

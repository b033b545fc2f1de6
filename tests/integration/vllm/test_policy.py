"""Sampling from a real vLLM server: exact tokens, exact weights, and a server that may break at any time."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agentflow.errors import ConfigError, PolicyFailure
from agentflow.policies.vllm.policy import VllmPolicy
from agentflow.policy import Sampling
from agentflow.sandbox.limits.process_tree import tree_usage
from tests.integration.vllm.served import (
    api_server_pids,
    prompt,
    sample_all,
    sample_during,
    server_pids,
    serving,
    signal_all,
    worst_difference,
)

CLOSE = 1e-4


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmPolicy]:
    """One server for all tests that need one: whoever breaks it sees it replaced."""
    with serving(tmp_path_factory.mktemp("run"), hang_s=20, restarts=20) as served:
        yield served


def num_restarts(policy: VllmPolicy) -> float:
    return policy.metrics()["servers/restarts"]


def scale(policy: VllmPolicy, factor: float) -> None:
    """Change every weight, as an update does."""
    with policy.updating(), torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(factor)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_logprobs_are_those_of_the_distribution_that_was_sampled(policy: VllmPolicy, temperature: float) -> None:
    completions = await sample_all(policy, 16, temperature=temperature)
    assert worst_difference(policy, completions, temperature=temperature) < CLOSE
    assert len({c.token_ids for c in completions}) > 1
    assert {c.policy_version for c in completions} == {policy.version}


async def test_a_server_that_waits_for_work_leaves_the_cores_to_others(policy: VllmPolicy) -> None:
    await sample_all(policy, 8)
    before = tree_usage(os.getpid()).own_cpu_s
    time.sleep(0.6)
    after = tree_usage(os.getpid()).own_cpu_s
    # Left alone, vLLM's worker would spin all the time.
    assert sum(after[pid] - before[pid] for pid in server_pids()) < 0.2


async def test_servers_follow_an_update(policy: VllmPolicy) -> None:
    before = policy.version
    scale(policy, 1.01)
    completions = await sample_all(policy, 8)
    assert {c.policy_version for c in completions} == {before + 1} == {policy.version}
    assert worst_difference(policy, completions) < CLOSE


async def test_a_turn_under_way_goes_on_with_the_new_weights_and_tells_the_older_version(policy: VllmPolicy) -> None:
    before = policy.version
    completions, older, newer = await sample_during(policy, lambda: scale(policy, 1.02), 8, after_s=0.3)
    assert {c.policy_version for c in completions} == {before}
    assert policy.version == before + 1
    changed = 0
    for old, new in zip(older, newer, strict=True):
        num_older = next((i for i, difference in enumerate(old.tolist()) if difference >= CLOSE), len(old))
        # What follows was sampled with all keys and values of the new weights, those of the prompt included.
        assert num_older > 0
        assert float(new[num_older:].max() if num_older < len(old) else 0.0) < CLOSE
        changed += num_older < len(old)
    assert changed > 0


async def test_a_prompt_that_leaves_no_room_fails_its_episode_only(policy: VllmPolicy) -> None:
    with pytest.raises(PolicyFailure, match="HTTP 400"):
        await policy.generate(prompt(0, length=512), Sampling(max_tokens=8), session="long")
    assert len(await sample_all(policy, 2)) == 2


async def test_a_killed_server_is_replaced_and_nothing_is_lost(policy: VllmPolicy) -> None:
    scale(policy, 1.01)
    before = num_restarts(policy)
    work = asyncio.ensure_future(sample_all(policy, 24, max_tokens=300))
    await asyncio.sleep(0.5)
    signal_all(server_pids(), signal.SIGKILL)
    completions = await work
    assert num_restarts(policy) == before + 1
    assert [len(c.token_ids) for c in completions] == [300] * 24
    assert {c.policy_version for c in completions} == {policy.version}
    assert worst_difference(policy, completions) < CLOSE


async def test_a_server_that_hangs_is_replaced(policy: VllmPolicy) -> None:
    before = num_restarts(policy)
    work = asyncio.ensure_future(sample_all(policy, 8, max_tokens=300))
    await asyncio.sleep(0.3)
    # The engine hangs, while the process that listens would go on to say that all is well.
    signal_all([pid for pid in server_pids() if pid not in api_server_pids()], signal.SIGSTOP)
    completions = await work
    assert num_restarts(policy) > before
    assert worst_difference(policy, completions) < CLOSE


async def test_a_server_killed_while_weights_are_sent_gets_them_after_its_restart(policy: VllmPolicy) -> None:
    pids, before = server_pids(), num_restarts(policy)
    with policy.updating(), torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.02)
        # Stopped first, so that the kill falls into the middle of the push.
        signal_all(pids, signal.SIGSTOP)
        threading.Timer(1.0, signal_all, (pids, signal.SIGKILL)).start()
    assert num_restarts(policy) == before + 1
    completions = await sample_all(policy, 4)
    assert {c.policy_version for c in completions} == {policy.version}
    assert worst_difference(policy, completions) < CLOSE


async def test_two_servers_behave_as_one_and_either_may_go(tmp_path: Path) -> None:
    others = api_server_pids()
    with serving(tmp_path, count=2, restarts=0) as policy:
        first, second = (pid for pid in api_server_pids() if pid not in others)
        completions = await sample_all(policy, 16)
        assert worst_difference(policy, completions) < CLOSE
        os.killpg(second, signal.SIGKILL)
        completions = await sample_all(policy, 16)
        assert worst_difference(policy, completions) < CLOSE
        scale(policy, 1.01)
        assert {c.policy_version for c in await sample_all(policy, 4)} == {1}
        os.killpg(first, signal.SIGKILL)
        with pytest.raises(PolicyFailure, match="given up"):
            await sample_all(policy, 2)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"server-0 ended with exit code .*--no-such-option"),
        serving(tmp_path, args=["--no-such-option"]),
    ):
        pass

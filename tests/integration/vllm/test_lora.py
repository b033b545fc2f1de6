"""A model with LoRA adapters on a real server: the base is sent once, the adapter alone at each update."""

import asyncio
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agentflow.policies.vllm.policy import VllmPolicy
from tests.integration.vllm.served import (
    adapted,
    api_server_pids,
    differences,
    sample_all,
    sample_during,
    server_pids,
    serving,
    signal_all,
    starter,
    update,
    worst_difference,
)

CLOSE = 1e-4


def adapter_folder() -> Path:
    """Return where the server was sent its adapter."""
    (pid,) = api_server_pids()
    variables = dict(word.partition("=")[::2] for word in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return Path(variables["TMPDIR"], "agentflow-adapter")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmPolicy]:
    """One server for all tests; the last one kills it."""
    with serving(tmp_path_factory.mktemp("run"), model=adapted()) as served:
        yield served


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_tokens_are_sampled_from_the_base_with_the_adapter(policy: VllmPolicy, temperature: float) -> None:
    completions = await sample_all(policy, 16, temperature=temperature)
    assert worst_difference(policy, completions, temperature=temperature) < CLOSE
    without = differences(starter().model.state_dict(), completions, temperature=temperature)
    assert max(float(difference.max()) for difference in without) > 0.1, "the adapter does something"


async def test_the_server_follows_two_updates(policy: VllmPolicy) -> None:
    for factor in (1.3, 0.5):
        before = policy.version
        # Always the same prompts: the server has kept their keys and values under the older adapter.
        update(policy, factor)
        completions = await sample_all(policy, 8)
        assert {c.policy_version for c in completions} == {before + 1} == {policy.version}
        assert worst_difference(policy, completions) < CLOSE


async def test_an_adapter_is_read_once_and_not_before_each_step(policy: VllmPolicy) -> None:
    update(policy, 1.1)
    size = sum(file.stat().st_size for file in adapter_folder().iterdir())
    trained = sum(weight.nbytes for weight in policy.model.parameters() if weight.requires_grad)
    assert trained < size < 1.2 * trained, "the adapter alone was sent"
    shutil.rmtree(adapter_folder())
    assert worst_difference(policy, await sample_all(policy, 4)) < CLOSE
    assert policy.metrics() == {"servers/restarts": 0}


async def test_a_turn_under_way_goes_on_with_the_new_adapter(policy: VllmPolicy) -> None:
    before = policy.version
    completions, old, new = await sample_during(policy, lambda: update(policy, 1.5), 4, after_s=0.5)
    assert {c.policy_version for c in completions} == {before}
    for under_old, under_new in zip(old, new, strict=True):
        assert float(torch.minimum(under_old, under_new).max()) < CLOSE
        assert under_old[0] < CLOSE < under_new.max()
        assert under_new[-1] < CLOSE < under_old.max()


async def test_a_server_that_is_killed_gets_the_base_and_the_current_adapter(policy: VllmPolicy) -> None:
    update(policy, 1.3)
    work = asyncio.ensure_future(sample_all(policy, 8, max_tokens=300))
    await asyncio.sleep(0.5)
    signal_all(server_pids(), signal.SIGKILL)
    completions = await work
    assert policy.metrics() == {"servers/restarts": 1}
    assert {c.policy_version for c in completions} == {policy.version}
    assert worst_difference(policy, completions) < CLOSE

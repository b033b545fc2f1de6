"""Who waits for whom before a batch of tokens is decoded."""

import asyncio
from functools import partial

from agentflow.gate import Gate


async def test_policies_that_share_a_gate_decode_one_step_in_turn() -> None:
    gate, steps = Gate(patience_s=5), []

    async def policy(place: int, num_steps: int) -> None:
        for _ in range(num_steps):
            await gate.settle(place)
            steps.append(place)

    # Whoever comes first: the order is that of their places.
    await asyncio.gather(policy(2, 2), policy(0, 3), policy(1, 1))
    assert steps == [0, 1, 2, 0, 2, 0]


async def test_step_waits_for_a_policy_that_is_asked_by_whoever_got_its_tokens_just_now() -> None:
    gate, steps = Gate(patience_s=5), []

    async def policy(place: int) -> None:
        await gate.settle(place)
        steps.append(place)

    async def episode() -> None:
        """Be at work for a moment that no check sees, and ask the policy whose turn comes first."""
        await asyncio.sleep(0)
        gate.acting("episode")
        gate.away("episode")
        asked.append(asyncio.ensure_future(policy(0)))

    asked = [asyncio.ensure_future(policy(1)), asyncio.ensure_future(episode())]
    await asked[0]
    await asked[-1]
    assert steps == [0, 1]


async def test_step_waits_until_nobody_acts_and_no_longer_than_its_patience() -> None:
    gate = Gate(patience_s=0.05)
    gate.acting("quick")
    asyncio.get_running_loop().call_later(0.01, partial(gate.away, "quick"))
    await asyncio.wait_for(gate.settle(), 1)
    assert gate.num_expired == 0
    gate.acting("slow")
    await asyncio.wait_for(gate.settle(), 1)
    assert gate.num_expired == 1

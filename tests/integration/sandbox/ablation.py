"""What all tests share that take a layer away: attacks that may try again until each was seen to escape."""

import asyncio
from collections.abc import Callable, Sequence

from agentflow.sandbox.attacks.base import Verdict
from agentflow.sandbox.attacks.suite import attack_sandbox
from agentflow.sandbox.base import Sandbox
from tests.attacks import ATTACKS

NAMED = {attack.name: attack for attack in ATTACKS}
ROOM = {"wall_s": 25.0}
"""A limit for an attack that has to get somewhere before it is seen to escape, which takes long on a busy machine."""
_ATTEMPTS = 3
"""How often an attack that should escape may try: on a busy machine the judge may look too late to see it."""


def tried(sandbox: Sandbox, names: Sequence[str]) -> dict[str, Verdict]:
    """Run attacks against a sandbox, and close it."""

    async def play() -> list[Verdict]:
        try:
            return await attack_sandbox(sandbox, [NAMED[name] for name in names])
        finally:
            await sandbox.close()

    return {verdict.attack.name: verdict for verdict in asyncio.run(play())}


def held(make: Callable[[], Sandbox], names: str) -> list[str]:
    """Return the attacks, of those named with semicolons between them, that no attempt saw escape."""
    left = names.split("; ")
    for _ in range(_ATTEMPTS):
        verdicts = tried(make(), left) if left else {}
        left = [name for name, verdict in verdicts.items() if verdict.outcome != "escaped"]
    return left

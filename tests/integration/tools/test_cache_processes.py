"""One replay cache, several processes at once."""

import asyncio
import multiprocessing
from pathlib import Path

from agentflow.tools.cache import ReplayCache

NUM_PROCESSES = 4
NUM_QUESTIONS = 25


def play(path: str, name: str) -> list[str]:
    """Ask every question, each process with answers of its own."""
    cache = ReplayCache(Path(path), "read-write")

    async def ask_all() -> list[str]:
        async def ask(number: int) -> str:
            async def ask_service() -> str:
                await asyncio.sleep(0.001)
                return f"{name} says {number}"

            return str(await cache.get("x", "search", arguments={"number": number}, ask=ask_service))

        return list(await asyncio.gather(*(ask(number) for number in range(NUM_QUESTIONS))))

    return asyncio.run(ask_all())


def test_processes_agree_on_the_first_answer_to_each_question(tmp_path: Path) -> None:
    path = str(tmp_path / "c.sqlite")
    with multiprocessing.get_context("spawn").Pool(NUM_PROCESSES) as pool:
        # A pool whose process was killed would never answer.
        found = pool.starmap_async(play, [(path, f"process {i}") for i in range(NUM_PROCESSES)]).get(timeout=300)
    assert all(answers == found[0] for answers in found)
    assert len(ReplayCache(Path(path), "only")) == NUM_QUESTIONS


def test_a_connection_is_not_used_on_the_other_side_of_a_fork(tmp_path: Path) -> None:
    cache = ReplayCache(tmp_path / "c.sqlite", "read-write")

    async def one() -> str:
        return "one"

    assert asyncio.run(cache.get("x", "m", arguments={}, ask=one)) == "one"
    parent = cache._connection
    pid = cache._process
    cache._process = pid + 1  # what a child would see
    assert len(cache) == 1
    assert cache._connection is not parent and cache._process == pid

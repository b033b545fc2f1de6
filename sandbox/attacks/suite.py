"""Attacks against one sandbox, several at once, and what they leave behind."""

import asyncio
import os
import platform
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentflow.sandbox.attacks.bait import Bait
from agentflow.sandbox.attacks.base import LIMITS, Attack, Evidence, Seen, Verdict, judge
from agentflow.sandbox.attacks.sight import look
from agentflow.sandbox.attacks.watcher import MARK_LETTERS, Watcher, wait_for_death
from agentflow.sandbox.base import Limits, Program, Result, Sandbox
from agentflow.sandbox.limits.seccomp import call_numbers

_PRELUDE = (Path(__file__).parent / "prelude.txt").read_text(encoding="utf-8")
_SHELL_PRELUDE = (Path(__file__).parent / "prelude.sh").read_text(encoding="utf-8")
_AT_ONCE = 4
_GRACE_S = 0.3
_SUCCESSORS = 3  # as many as it takes to meet the slot of the first again


async def attack_sandbox(sandbox: Sandbox, attacks: Iterable[Attack]) -> list[Verdict]:
    """Run attacks against a sandbox; the verdicts, in the order of the attacks."""
    with Bait() as bait, Watcher() as watcher:
        slots = asyncio.Semaphore(max(1, min(_AT_ONCE, os.cpu_count() or 1)))
        field = _Field(sandbox, bait, watcher=watcher, slots=slots)
        return list(await asyncio.gather(*map(field.try_out, attacks)))


@dataclass(frozen=True, slots=True)
class _Field:
    """Where attacks are tried."""

    sandbox: Sandbox
    bait: Bait
    watcher: Watcher
    slots: asyncio.Semaphore

    async def try_out(self, attack: Attack) -> Verdict:
        if attack.machines and platform.machine() not in attack.machines:
            return Verdict(attack, "not applicable", f"it is for {' and '.join(attack.machines)}")
        async with self.slots:
            return judge(attack, await self._run(attack))

    async def _run(self, attack: Attack) -> Evidence:
        mark = secrets.token_hex(MARK_LETTERS // 2)
        planted = secrets.token_hex(12)
        target = self.bait.victim() if "target" in attack.code else None
        shown = self.bait.shown | {"target": target.pid if target else 0, "planted": planted}
        seen = self.watcher.follow(mark)
        limits = LIMITS.model_copy(update=dict(attack.limits))
        started = time.monotonic()
        results = [await self._execute(attack, attack.code, limits=limits, known=shown | {"mark": mark})]
        elapsed = time.monotonic() - started
        survivors = await asyncio.to_thread(wait_for_death, self.watcher, mark, grace_s=_GRACE_S)
        for _ in range(_SUCCESSORS if attack.then else 0):
            known = self.bait.shown | {"mark": mark, "planted": ""}
            results.append(await self._execute(attack, attack.then, limits=limits, known=known))
        wounds = [f"{len(survivors)} of its processes outlived it"] if survivors else []
        if target is not None and target.poll() is not None:
            wounds.append("it ended a process of the host")
        found = {"wounds": wounds, "elapsed_s": elapsed, "mark": mark, "left": planted}
        return self._evidence(tuple(results), seen, limits=limits, **found)

    async def _execute(self, attack: Attack, code: str, *, limits: Limits, known: Mapping[str, object]) -> Result:
        if attack.language == "shell":
            text = f"MARK={known['mark']}\n{_SHELL_PRELUDE}{code}\necho; echo $MARK done\n"
        else:
            head = f"MARK, BAIT, CALLS = {known['mark']!r}, {dict(known)!r}, {dict(call_numbers())!r}\n"
            text = f"{head}{_PRELUDE}{code}\ndone()\n"
        program = Program(text, language=attack.language, files=attack.files, stdin=attack.stdin)
        return await self.sandbox.run(program, limits)

    def _evidence(self, results: tuple[Result, ...], seen: Seen, *, limits: Limits, **found: Any) -> Evidence:
        mark = found["mark"]
        places = (Path(self.bait.shown["folder"]), Path("/tmp"), Path("/var/tmp"), Path("/usr"))  # noqa: S108
        planted = [place / mark for place in places if (place / mark).exists()]
        for file in planted:
            file.unlink()
        return Evidence(
            results=results,
            seen=seen,
            secrets=(self.bait.secret, found["left"]),
            received=bytes(self.bait.received),
            wounds=tuple(found["wounds"]),
            planted=tuple(map(str, planted)),
            host=look(os.getpid()),
            elapsed_s=found["elapsed_s"],
            limits=limits,
            mark=mark,
        )

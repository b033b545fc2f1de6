"""The process backend: what a program does to whoever watches it, to its neighbours, its successors and the host."""

from agentflow.sandbox.base import Program, Result
from agentflow.sandbox.process import ProcessSandbox
from tests.integration.sandbox.contract import LIMITS
from tests.integration.sandbox.test_process import metering, play
from tests.trusted_sandbox import real_process

pytestmark = real_process
__all__ = ["metering"]

_NO_TEXT = """
import ctypes, os, time
libc = ctypes.CDLL(None)
libc.prctl(15, b"\\xff\\xfe) \\n", 0, 0, 0)
if os.fork() == 0:
    time.sleep(60)
time.sleep(0.3)
print("mine", flush=True)
"""


def test_process_with_a_name_that_is_no_text_disturbs_nobody(metering: str) -> None:
    async def work(sandbox: ProcessSandbox) -> tuple[Result, Result, Result, Result]:
        async with await sandbox.session(LIMITS) as neighbour, await sandbox.session(LIMITS) as session:
            await neighbour.exec("x = 6")
            program = await sandbox.run(Program(_NO_TEXT + "# numpy"), LIMITS)
            cell = await session.exec(_NO_TEXT)
            # The branch is looked for by the numbers of all processes.
            late = await session.exec("time.sleep(60)", limits=LIMITS.model_copy(update={"wall_s": 0.5}))
            return program, cell, late, await neighbour.exec("x")

    program, cell, late, neighbour = play(work, concurrency=1)
    assert (program.status, program.stdout.text) == ("ok", "mine\n"), program
    assert (cell.status, cell.stdout.text) == ("ok", "mine\n"), cell
    assert late.status == "wall_timeout", late
    assert neighbour.value == "6"

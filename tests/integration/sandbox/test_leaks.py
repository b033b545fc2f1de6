"""Many mixed executions leave nothing behind; the script that counts is the one of the benchmark."""

import asyncio
from collections.abc import Mapping

from agentflow.sandbox.process.backend import ProcessSandbox
from tests.benchmarks.sandbox import leaves_behind
from tests.trusted_sandbox import real_process

pytestmark = real_process


def test_four_hundred_mixed_executions_leave_nothing_behind() -> None:
    async def work() -> Mapping[str, int]:
        sandbox = ProcessSandbox()
        try:
            return await leaves_behind(sandbox, 400)
        finally:
            await sandbox.close()

    left = asyncio.run(work())
    assert left["wrong"] == 0
    # Another test of this process may have left a file, which is closed meanwhile.
    assert all(left[name] <= 0 for name in ("processes", "mounts", "cgroups", "descriptors")), left

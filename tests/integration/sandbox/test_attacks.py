"""The attack suite against the process sandbox."""

import asyncio

import pytest

from agentflow.cli import main
from agentflow.errors import UserError
from agentflow.sandbox.attacks.suite import ATTACKS
from agentflow.sandbox.base import Sandbox
from agentflow.sandbox.probe import BACKENDS, probe
from tests.integration.sandbox.ablation import NAMED, tried
from tests.trusted_sandbox import real_process


def working(name: str) -> Sandbox:
    """Return a backend, or skip where it does not work."""
    try:
        sandbox = BACKENDS[name]()
    except UserError as error:
        pytest.skip(str(error))
    problem = asyncio.run(probed(sandbox))
    if problem:
        pytest.skip(problem)
    return BACKENDS[name]()


async def probed(sandbox: Sandbox) -> str:
    """Probe a sandbox and close it."""
    try:
        return await probe(sandbox)
    finally:
        await sandbox.close()


@pytest.mark.parametrize("name", ["process"])
def test_every_attack_is_contained(name: str) -> None:
    verdicts = tried(working(name), list(NAMED))
    found = {attack: verdict for attack, verdict in verdicts.items() if verdict.outcome != "contained"}
    assert not found


def test_names_are_unique_and_there_are_enough() -> None:
    assert len(NAMED) == len(ATTACKS) >= 70


@real_process
def test_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "attack", "--backend", "process", "--only", "network/the host*"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["all", "4", "4", "0"]
    assert main(["sandbox", "attack", "--only", "nothing"]) == 2

"""The attack suite against the process sandbox."""

import asyncio

import pytest

from agentflow.cli import main, sandboxes
from agentflow.errors import UserError
from agentflow.sandbox.attacks.base import GROUPS
from agentflow.sandbox.attacks.decisive import DECISIVE
from agentflow.sandbox.base import Sandbox
from agentflow.sandbox.probe import BACKENDS, probe
from tests.attacks import ATTACKS
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
    assert len(NAMED) == len(ATTACKS) >= 148
    assert len(DECISIVE) <= 40
    assert {attack.group for attack in DECISIVE} == {attack.group for attack in ATTACKS} == set(GROUPS)


@real_process
def test_doctor_attacks_what_works_and_prints_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxes, "BACKENDS", {"process": BACKENDS["process"]})
    assert main(["sandbox", "doctor", "--thorough"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].split()[0] == "all"
    assert said[-1].split()[1:4] == [str(len(DECISIVE)), str(len(DECISIVE)), "0"]

"""The one judge of how an execution ended, whoever ran it."""

import signal

import pytest

from agentflow.sandbox.base import Limits, Output, Usage
from agentflow.sandbox.verdict import CANCELLED, Ending, judge, result_of

LIMITS = Limits(cpu_s=1.0)


def said(text: str) -> Output:
    """Return what a program wrote to stderr."""
    return Output(text.encode(), b"", len(text))


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (Ending(code=0), "ok"),
        (Ending(code=3), "nonzero_exit"),
        (Ending(code=-11), "signal"),
        (Ending(code=-signal.SIGXCPU), "cpu_timeout"),
        (Ending(code=-signal.SIGXFSZ), "disk"),
        (Ending(code=0, usage=Usage(cpu_s=1.5)), "cpu_timeout"),
        (Ending(ended_by="wall_timeout"), "wall_timeout"),
        (Ending(ended_by="memory", code=0), "memory"),
        (Ending(code=1, met=("memory",)), "memory"),
        (Ending(code=1, met=("pids", "disk")), "disk"),
        (Ending(code=-9, met=("pids",)), "pids"),
        (Ending(code=0, met=("disk",)), "ok"),
        (Ending(code=1, met=("ready", "anything")), "nonzero_exit"),
        (Ending(code=1, stderr=said("Traceback\nMemoryError\n\n")), "memory"),
        (Ending(code=1, stderr=said("MemoryError\nno more")), "nonzero_exit"),
        (Ending(code=2, stderr=said("sh: 1: Cannot fork")), "pids"),
        (Ending(refused="a file outside"), "refused"),
        (Ending(), "infra_error"),
        (Ending(broken="the zygote died", code=0), "infra_error"),
        (Ending(ended_by=CANCELLED, code=0), "infra_error"),
    ],
)
def test_an_ending_has_one_status(ending: Ending, status: str) -> None:
    assert judge(ending, LIMITS)[0] == status


def test_code_and_signal_are_told_where_they_say_how_it_ended() -> None:
    results = [result_of(Ending(code=code), LIMITS, backend="x") for code in (0, 3, -11)]
    assert [(result.exit_code, result.signal) for result in results] == [(0, None), (3, None), (None, 11)]
    ended = result_of(Ending(ended_by="memory", code=-9), LIMITS, backend="x")
    assert (ended.status, ended.exit_code, ended.signal) == ("memory", None, None)


def test_what_broke_is_told_and_what_a_program_did_is_not() -> None:
    assert judge(Ending(broken="the zygote died"), LIMITS)[1] == "the zygote died"
    assert judge(Ending(ended_by=CANCELLED), LIMITS)[1] == "nobody waits for the program any more"
    assert judge(Ending(stderr=said("lost")), LIMITS)[1] == "nothing was told of the program's end. lost"
    assert judge(Ending(code=1), LIMITS)[1] == judge(Ending(ended_by="disk"), LIMITS)[1] == ""

"""The python tool: what a model reads of a program, and what never becomes an observation."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.errors import ToolError
from agentflow.sandbox.base import Limits, Output, Result, SandboxFailure
from agentflow.tools.python import MAX_CODE_CHARS, Interpreter, described, echoing_last, observed, python_tool
from agentflow.tools.tool import ToolOutput
from tests.pictures import PICTURE
from tests.trusted_sandbox import TrustedSubprocess

LIMITS = Limits(cpu_s=2.0, memory_mb=400)


def output(text: str) -> Output:
    return Output(text.encode(), b"", len(text.encode()))


class Cells:
    """A session that answers with what it is given."""

    def __init__(self, *results):
        self.results = list(results)
        self.closed = False

    async def exec(self, code, *, limits=None):
        return self.results.pop(0)

    async def close(self):
        self.closed = True


class Starts:
    """A sandbox whose sessions are given."""

    name = "starts"

    def __init__(self, *sessions):
        self.sessions = list(sessions)

    async def session(self, limits=None):
        return self.sessions.pop(0)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print(6 * 7)", "42"),
        ("x = 6\nx * 7", "42"),
        ("x = 6", "No output."),
        ("None", "No output."),
        ("print('a')\n'b'", "a\n'b'"),
        ("'é', 'ü'; ('ö',\n 'ä')  # end", "('ö', 'ä')"),
        ("1; 2", "2"),
        ("if True:\n    3", "No output."),
        ("import sys; sys.exit(3)", "Error: the program ended with exit code 3."),
    ],
)
async def test_a_program_shows_its_output_and_its_last_value(code, text):
    assert await python_tool(TrustedSubprocess(), LIMITS).call({"code": code}) == text


async def test_an_error_shows_the_end_of_its_traceback():
    text = await python_tool(TrustedSubprocess(), LIMITS).call({"code": "print('before')\n1 / 0"})
    assert text.startswith("before\n") and text.endswith("ZeroDivisionError: division by zero")
    text = await python_tool(TrustedSubprocess(), LIMITS).call({"code": "print((1"})
    assert "SyntaxError" in text


async def test_a_program_that_is_too_long_is_refused_and_a_broken_sandbox_is_no_observation():
    sandbox = TrustedSubprocess()
    with pytest.raises(ToolError, match="characters"):
        await python_tool(sandbox).call({"code": "1" * (MAX_CODE_CHARS + 1)})
    assert sandbox.programs == []
    assert await python_tool(TrustedSubprocess(broken=1), LIMITS).call({"code": "5"}) == "5"
    with pytest.raises(SandboxFailure, match="the launcher is gone"):
        await python_tool(TrustedSubprocess(broken=2), LIMITS).call({"code": "5"})


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("cpu_timeout", "2 seconds of CPU"),
        ("wall_timeout", "longer than 20 seconds"),
        ("memory", "400 MB"),
        ("output_limit", "64 kB"),
        ("pids", "32 processes"),
        ("disk", "64 MB"),
        ("refused", "not run"),
    ],
)
def test_each_ending_is_told_in_words(status, words):
    text = described(Result(status, stdout=output("so far\n"), detail="/host/path"), LIMITS)
    assert text.startswith("so far\nError: ") and words in text and "/host" not in text


def test_a_signal_is_named_and_a_broken_sandbox_raises():
    assert described(Result("signal", signal=11), LIMITS) == "Error: the program was ended by signal SIGSEGV."
    assert described(Result("signal", signal=999), LIMITS).endswith("999.")
    with pytest.raises(SandboxFailure):
        described(Result("infra_error"), LIMITS)


def test_plots_are_shown_and_those_that_were_lost_are_told_of():
    drawn = Result("ok", images=(PICTURE,))
    assert observed(drawn, LIMITS) == ToolOutput("", (PICTURE,))
    assert observed(replace(drawn, num_lost_images=2), LIMITS).text == (
        "[2 more plots are not shown: at most 4 are, of at most 1024 kB each]"
    )
    failed = Result("nonzero_exit", 1, stderr=output("E"), images=(PICTURE,))
    assert observed(failed, LIMITS) == ToolOutput("E", (PICTURE,))


async def test_an_interpreter_keeps_one_session_and_starts_again_after_it_was_killed():
    first = Cells(
        Result("ok"), Result("ok", value="7"), Result("nonzero_exit", 1, stderr=output("E")), Result("memory")
    )
    second = Cells(Result("ok", value="8"))
    async with Interpreter(Starts(first, second), LIMITS) as interpreter:  # type: ignore[arg-type]
        tool = interpreter.tool()
        assert await tool.call({"code": "x = 7"}) == "No output."
        assert await tool.call({"code": "x"}) == "7"
        assert await tool.call({"code": "y"}) == "E"
        assert not first.closed
        assert "its variables are gone" in await tool.call({"code": "big"})
        assert first.closed
        assert await tool.call({"code": "8"}) == "8"
    assert second.closed


async def test_a_session_that_breaks_fails_the_episode():
    cells = Cells(Result("infra_error", detail="gone"))
    interpreter = Interpreter(Starts(cells))  # type: ignore[arg-type]
    with pytest.raises(SandboxFailure, match="gone"):
        await interpreter.run("1")
    assert cells.closed


@given(st.text(max_size=40))
def test_echoing_the_last_value_takes_any_text(code):
    echoing_last(code)


@given(
    st.sampled_from(["a = 1", "# é", "'''\nü'''", "(1,\n2)", "f'{1}'; x = 2"]), st.sampled_from(["\n", "\r\n", "\n\n"])
)
def test_echoing_keeps_the_program(before, end):
    compile(echoing_last(f"{before}{end}(1 +{end} 2) # c{end}"), "p", "exec")

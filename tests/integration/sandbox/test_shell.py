"""Shell commands over the files of an episode, in a real sandbox."""

from functools import cached_property

import pytest

from agentflow.environments import ToolEnvironment
from agentflow.errors import ToolError
from agentflow.messages import Message, ToolCall
from agentflow.sandbox.base import Limits, Output, Result, SandboxFailure
from agentflow.sandbox.shared import shared_sandbox
from agentflow.tools.files import file_tools
from agentflow.tools.shell import shell_tool
from agentflow.tools.tool import join_tools, tools_of
from agentflow.tools.workspace import File, Workspace, WorkspaceLimits
from agentflow.trajectory import Task
from tests.trusted_sandbox import TrustedSubprocess, real_process

LIMITS = Limits(cpu_s=2, wall_s=60, memory_mb=300, output_kb=4)


NAME = "process"


async def after(command, workspace, limits=LIMITS):
    return await shell_tool(shared_sandbox(NAME), workspace, limits).call({"command": command})


def contents(workspace):
    return {name: file.content for name, file in workspace.files.items()}


@real_process
async def test_a_command_sees_and_changes_the_files():
    workspace = Workspace({"src/a.py": "print(6 * 7)\n", "old": "x"})
    assert await after("python3 src/a.py > out; rm old; mkdir -p d/e; echo hi > d/e/f; pwd", workspace) == (
        "/work/workspace"
    )
    assert contents(workspace) == {"src/a.py": b"print(6 * 7)\n", "out": b"42\n", "d/e/f": b"hi\n"}
    assert await after("cat d/e/f", workspace) == "hi"


@real_process
async def test_a_file_stays_executable():
    workspace = Workspace({"run": "#!/bin/sh\necho ran\n"})
    assert "exit code 126" in await after("./run 2>/dev/null", workspace)
    await after("chmod +x run", workspace)
    assert workspace.files["run"].executable
    assert await after("./run", workspace) == "ran"


@real_process
@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("true", "No output."),
        ("echo a; echo b >&2; echo c", "a\nb\nc"),
        ("exit 3", "Error: the program ended with exit code 3."),
        ("kill -9 $$", "Error: the program was ended by signal SIGKILL."),
        ("sleep 30 & echo now", "now"),
        ("cat", "No output."),
    ],
)
async def test_what_a_model_reads(command, text):
    workspace = Workspace({"kept": "x"})
    assert await after(command, workspace) == text
    assert contents(workspace) == {"kept": b"x"}


@real_process
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo y > kept; while :; do :; done", "seconds of CPU time"),
        ("echo y > kept; head -c 2000000 /dev/zero > big", "more than 5 files or 1024 kB"),
        ("echo y > kept; for i in 1 2 3 4 5 6 7; do echo > f$i; done", "more than 5 files"),
        ("echo y > kept; kill -9 $PPID; sleep 1", "as they were"),
    ],
)
async def test_files_stay_as_they_were_where_a_command_is_ended_or_leaves_too_much(command, words):
    workspace = Workspace({"kept": "x"}, WorkspaceLimits(max_files=5, max_kb=1024))
    text = await after(command, workspace)
    assert words in text and "The files are as they were" in text
    assert contents(workspace) == {"kept": b"x"}


@real_process
async def test_a_command_does_not_write_where_the_files_travel():
    workspace = Workspace({"kept": "x"})
    text = await after("echo garbage > /proc/$PPID/fd/2; echo y > kept", workspace)
    assert "Permission denied" in text and contents(workspace) == {"kept": b"y\n"}


@real_process
async def test_links_pipes_and_unreadable_files_are_left_where_they_were():
    workspace = Workspace({"kept": "x"})
    await after("ln -s /usr/bin/env link; ln -s / root; mkfifo pipe; echo s > secret; chmod 0 secret", workspace)
    assert contents(workspace) == {"kept": b"x"}


@real_process
async def test_output_is_cut_to_the_limit_and_many_files_pass():
    workspace = Workspace({f"d{i}/file": bytes(1000) for i in range(400)})
    text = await after("seq 1 20000; find . -type f | wc -l", workspace)
    assert text.startswith("1\n2\n") and text.endswith("400") and len(text) < 5000 and "bytes left out" in text
    assert len(workspace.files) == 400


@real_process
async def test_a_command_is_no_program_of_the_guest():
    text = await after('echo "it\'s" \'"""\' é; echo $0 $#', Workspace())
    assert text == 'it\'s """ é\n/bin/sh 0'


async def test_what_no_shell_takes_and_a_broken_sandbox():
    workspace = Workspace({"kept": "x"})
    for command in ("", "a\0b", "x" * 20_001):
        with pytest.raises(ToolError):
            await shell_tool(TrustedSubprocess(), workspace).call({"command": command})
    with pytest.raises(SandboxFailure):
        await shell_tool(TrustedSubprocess(broken=2), workspace).call({"command": "true"})


class Says(TrustedSubprocess):
    """A sandbox whose programs all end in the same way."""

    def __init__(self, stderr, stdout):
        super().__init__()
        self.result = Result("ok", 0, stdout=Output(stdout, b"", len(stdout)), stderr=Output(stderr, b"", len(stderr)))

    async def run(self, program, limits=None):
        return self.result


@pytest.mark.parametrize(
    "told", [b"", b"[]\n", b'{"code": true}\n[]\n', b'{"code": "0"}\n[]\n', b"[" * 100_000, b"\xff",
             b'{"code": %s}\n[]\n' % (b"9" * 4000), b'{"code": [0]}\n[]\n']
)  # fmt: skip
async def test_what_carries_the_files_is_not_trusted(told):
    workspace = Workspace({"kept": "x"})
    text = await shell_tool(Says(told, b"hello"), workspace).call({"command": "true"})
    assert text.startswith("hello") and "disturbed" in text and workspace.files == {"kept": File(b"x")}


class Repair(ToolEnvironment):
    """Make a program print 42."""

    @cached_property
    def workspace(self):
        return Workspace()

    @cached_property
    def tools(self):
        shell = shell_tool(shared_sandbox(NAME), self.workspace, LIMITS)
        return join_tools(tools_of(self), file_tools(self.workspace), {"shell": shell})

    def tasks(self, split):
        return [Task("1", "Make main.py print 42.", metadata={"program": "print(6 * 8)\n"})]

    def on_reset(self, task, rng):
        self.workspace.reset({"main.py": task.metadata["program"]})

    def score(self, task, answer):
        return {"success": float(b"7" in self.workspace.files["main.py"].content)}


@real_process
def test_an_episode_over_files_and_a_shell():
    environment = Repair()
    for _ in range(2):
        environment.reset(seed=1)
        calls = (
            ToolCall("shell", {"command": "python3 main.py"}),
            ToolCall("str_replace", {"path": "main.py", "old": "8", "new": "7"}),
            ToolCall("shell", {"command": "python3 main.py | tee out"}),
            ToolCall("view", {"path": "out"}),
        )
        observation, *_ = environment.step(Message("assistant", tool_calls=calls))
        assert [message.content for message in observation] == ["48", "    1  print(6 * 7)", "42", "    1  42"]
        assert environment.step(Message("assistant", "done"))[4]["success"]

"""The files of an episode, and the tools that look at and change them."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.errors import ToolError
from agentflow.tools.files import file_tools
from agentflow.tools.workspace import MAX_PATH_CHARS, PackError, Workspace, WorkspaceLimits, unpack

TEXT = "one\ntwo\nthree\n"


def over(files, **limits):
    workspace = Workspace(files, WorkspaceLimits(**limits))
    return workspace, file_tools(workspace)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("view", {"path": "a.txt"}, "    1  one\n    2  two\n    3  three"),
        ("view", {"path": "./a.txt", "start": 2, "end": 2}, "    2  two"),
        ("view", {"path": "empty"}, "The file is empty."),
        ("list", {}, "a.txt (14 bytes)\nb/c.txt (1 bytes)\nempty (0 bytes)"),
        ("list", {"folder": "b/"}, "b/c.txt (1 bytes)"),
        ("list", {"folder": "nowhere"}, "No files."),
        ("create", {"path": "new/x.py", "content": "1\n2"}, "Wrote new/x.py: 2 lines."),
        ("str_replace", {"path": "a.txt", "old": "two", "new": "2\n2"}, "    1  one\n    2  2\n    3  2\n    4  three"),
        ("insert", {"path": "a.txt", "line": 0, "text": "zero\n"}, "    1  zero\n    2  one\n    3  two\n    4  three"),
        ("insert", {"path": "empty", "line": 0, "text": "x"}, "    1  x"),
    ],
)
async def test_what_a_model_reads(name, arguments, text):
    _, tools = over({"a.txt": TEXT, "b/c.txt": "c", "empty": ""})
    assert await tools[name].call(arguments) == text


async def test_changes_stay():
    workspace, tools = over({"a.txt": TEXT})
    await tools["str_replace"].call({"path": "a.txt", "old": "two\n", "new": ""})
    await tools["insert"].call({"path": "a.txt", "line": 2, "text": "four"})
    await tools["create"].call({"path": "b", "content": "x"})
    assert {name: file.content for name, file in workspace.files.items()} == {"a.txt": b"one\nthree\nfour\n", "b": b"x"}


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("view", {"path": "b.txt"}, "there is no file 'b.txt'; files: a.txt, raw"),
        ("view", {"path": "raw"}, "is no text"),
        ("view", {"path": "a.txt", "start": 9}, "the file has 3 lines"),
        ("view", {"path": "a.txt", "start": 0}, "start: should be greater than or equal to 1"),
        ("create", {"path": "../x", "content": ""}, "is no path of a file inside"),
        ("create", {"path": "/etc/passwd", "content": ""}, "is no path of a file inside"),
        ("create", {"path": ".", "content": ""}, "is no path of a file inside"),
        ("create", {"path": "a\nb", "content": ""}, "printable"),
        ("create", {"path": "x" * (MAX_PATH_CHARS + 1), "content": ""}, "characters"),
        ("create", {"path": "a.txt/b", "content": ""}, "lies below 'a.txt', which is a file"),
        ("create", {"path": "big", "content": "x" * 2000}, "at most 1 kB"),
        ("str_replace", {"path": "a.txt", "old": "e", "new": ""}, "occurs 3 times"),
        ("str_replace", {"path": "a.txt", "old": "four", "new": ""}, "no such text"),
        ("str_replace", {"path": "a.txt", "old": "", "new": ""}, "old: "),
        ("insert", {"path": "a.txt", "line": 4, "text": ""}, "the file has 3 lines"),
    ],
)
async def test_what_is_asked_in_vain_is_said_and_changes_nothing(name, arguments, words):
    workspace, tools = over({"a.txt": TEXT, "raw": b"\xff"}, max_kb=1, max_files=3)
    before = workspace.files
    with pytest.raises(ToolError, match=words):
        await tools[name].call(arguments)
    assert workspace.files == before


def test_an_episode_begins_with_its_own_files():
    workspace = Workspace({"a": "1"})
    workspace.reset({"b": "2"})
    assert list(workspace.files) == ["b"]
    with pytest.raises(ToolError):
        workspace.reset({"../c": ""})


def test_the_number_of_files_is_bounded():
    with pytest.raises(ToolError, match="at most 2 files"):
        over({"a": "", "b": "", "c": ""}, max_files=2)


@given(st.dictionaries(st.sampled_from(["a", "b/c", "b/d e", "é"]), st.binary(max_size=50)))
def test_a_pack_holds_what_was_packed(files):
    workspace = Workspace(files)
    other = Workspace({"old": "gone"})
    other.take(workspace.pack())
    assert other.files == workspace.files


def packed(*entries, contents=b""):
    return json.dumps(list(entries)).encode() + b"\n" + contents


@pytest.mark.parametrize(
    "pack",
    [
        b"",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        packed(["a", 3, False], contents=b"ab"),
        packed(["a", 1, False], contents=b"ab"),
        packed(["a", -1, False], ["b", 3, False], contents=b"ab"),
        packed(["a", True, False], contents=b"a"),
        packed(["a", 1, 0], contents=b"a"),
        packed(["a", 1], contents=b"a"),
        packed(["a", 1, False], ["a", 1, False], contents=b"ab"),
        packed(["../a", 1, False], contents=b"a"),
        packed(["/a", 1, False], contents=b"a"),
        packed(["./a", 1, False], contents=b"a"),
        packed(["a\0", 1, False], contents=b"a"),
        packed(["a", 1, False], ["a/b", 1, False], contents=b"ab"),
        packed(["a", 2000, False], contents=b"a" * 2000),
    ],
)
def test_what_is_no_pack_is_refused_and_changes_nothing(pack):
    workspace = Workspace({"kept": "x"}, WorkspaceLimits(max_kb=1))
    with pytest.raises(PackError):
        workspace.take(pack)
    assert list(workspace.files) == ["kept"]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_pack_or_refused(data):
    with suppress(PackError):
        unpack(data)

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.errors import DataError
from agentflow.messages import Message, Reply, ToolCall
from agentflow.roles import Exchange
from agentflow.runs import read_groups, write_groups
from agentflow.runs.records import decode_group, encode_group
from agentflow.trajectory import Completion, Episode, Group, Status, Task, Trajectory, Turn
from tests.pictures import PICTURE

text = st.text(st.characters(), max_size=8)
number = st.floats(allow_nan=False)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
mapping = st.dictionaries(text, json_value, max_size=3)
ids = st.lists(st.integers(0, 200_000), max_size=4).map(tuple)
message = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=text,
    tool_calls=st.lists(st.builds(ToolCall, name=text, arguments=mapping), max_size=2).map(tuple),
    name=text,
    images=st.lists(st.just(PICTURE), max_size=1).map(tuple),
)
messages = st.lists(message, max_size=2).map(tuple)
turn = st.builds(
    Turn,
    prefix_length=st.integers(0, 9),
    context_ids=ids,
    completion=st.builds(Completion, ids, st.lists(number, max_size=4).map(tuple), st.just("stop"), st.integers(0)),
    messages=messages,
    reply=st.builds(Reply, message, text),
    reward=number,
    terms=st.dictionaries(text, number, max_size=2),
    duration_s=number,
)
trajectory = st.builds(
    Trajectory,
    id=text,
    task_id=text,
    seed=st.integers(0),
    turns=st.lists(turn, max_size=2).map(tuple),
    status=st.builds(Status, st.sampled_from(["completed", "truncated", "failed"]), text, text),
    success=st.none() | st.booleans(),
    role=text,
    parent=text,
    call=st.integers(0, 9),
)
exchange = st.builds(Exchange, text, messages, text)
episode = st.builds(
    Episode,
    trajectories=st.lists(trajectory, min_size=1, max_size=2).map(tuple),
    observation=messages,
    exchanges=st.lists(exchange, max_size=1).map(tuple),
)
task = st.builds(Task, id=text, prompt=text, answer=json_value, metadata=mapping)


@given(st.builds(Group, task, st.lists(episode, max_size=2).map(tuple)))
def test_a_group_comes_back_equal(group: Group) -> None:
    line = encode_group(group)
    assert "\n" not in line
    assert decode_group(line) == group
    assert repr(decode_group(line)) == repr(group)  # tuples stay tuples, 1.0 stays a float


def test_a_message_that_was_stored_before_there_were_images_has_none() -> None:
    stored = {"role": "tool", "content": "4", "tool_calls": [], "name": "python"}
    main = Trajectory("a", "b", 0, (), Status("completed"), None)
    given = Episode((main,), observation=(Message("tool", "4", name="python"),))
    group = json.loads(encode_group(Group(Task("b", "c"), (given,))))
    group["episodes"][0]["observation"] = [stored]
    assert decode_group(json.dumps(group)).episodes == (given,)


def test_a_line_of_a_format_that_is_not_known_is_refused_by_its_number() -> None:
    group = json.loads(encode_group(Group(Task("b", "c"), ())))
    with pytest.raises(ValueError, match="format 3, written by a newer version"):
        decode_group(json.dumps({**group, "format": 3}))


@pytest.mark.parametrize(("answer", "back"), [((1, 2), [1, 2]), ({1}, "{1}"), (Path("x"), f"{Path('x')!r}")])
def test_what_is_no_json_value_never_stops_a_run(answer: Any, back: Any) -> None:
    assert decode_group(encode_group(Group(Task("a", "b", answer), ()))).task.answer == back


def test_groups_come_back_from_a_file_in_order(tmp_path: Path) -> None:
    groups = [Group(Task(str(i), "\ud800 \u2028 é"), ()) for i in range(3)]
    write_groups(tmp_path / "groups.jsonl.zst", groups)
    assert list(read_groups(tmp_path / "groups.jsonl.zst")) == groups
    assert [path.name for path in tmp_path.iterdir()] == ["groups.jsonl.zst"]


def test_a_damaged_missing_or_foreign_file_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl.zst"
    with pytest.raises(DataError, match="Cannot read"):
        list(read_groups(path))
    write_groups(path, [Group(Task("a", "b" * 1000), ())])
    whole = path.read_bytes()
    path.write_bytes(whole[:-6] + b"\0\0\0\0\0\0")
    with pytest.raises(DataError, match="Cannot read"):
        list(read_groups(path))
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match="Cannot read"):
        list(read_groups(path))

"""What a program claims of its results: read strictly, compared without hashing it, and always shown."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.environments.coding.claims import (
    Answer,
    ClaimedDict,
    ClaimedSet,
    decode,
    read_reports,
    same,
    shown,
)

PRIME = 2**61 - 1
"""Whole numbers that differ by this have one hash."""


def claimed(value: Any) -> Any:
    """Return what an honest program claims of a value."""
    if isinstance(value, dict):
        return ClaimedDict(tuple((claimed(key), claimed(item)) for key, item in value.items()))
    if isinstance(value, set | frozenset):
        return ClaimedSet(tuple(map(claimed, value)))
    return type(value)(map(claimed, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ('[0, "value", ["int", "0x6"]]', Answer("value", 6)),
        ('[0, "value", ["int", 6]]', Answer()),
        ('[0, "value", ["object", "6"]]', Answer()),
        ('[0, "value", ["set", [["list", []]]]]', Answer("value", ClaimedSet(([],)))),
        ('[0, "value", {"int": "0x6"}]', Answer()),
        ('[0, "error", 6]', Answer()),
        ('[0, "error", "\\ud800"]', Answer("error", "\\ud800")),
        ('[7, "value", null]', None),
        ('[0, "value", 6]', Answer()),
        ('[0, "passed", null]', Answer()),
        ('[0, "value", ["float", "nan"', Answer()),
        ('[0, "error", "oh"]', Answer("error", "oh")),
        ('[true, "value", null]', None),
        ("[" * 100_000, None),
        ("", None),
        ('[99999999999999999999, "value"', None),
    ],
)
def test_reports_are_read_strictly(line, answer):
    assert read_reports(f"stray\nN{line}\n".encode(), b"N", num_cases=1).get(0) == answer


def test_two_reports_of_one_case_are_none():
    line = b'N[0, "value", null]\n'
    assert read_reports(line, b"N", num_cases=1) == {0: Answer("value", None)}
    assert read_reports(line * 2, b"N", num_cases=1) == read_reports(line * 3, b"N", num_cases=1) == {0: Answer()}


@given(st.recursive(st.none() | st.booleans() | st.text() | st.floats(), lambda x: st.lists(x), max_leaves=20))
def test_any_payload_is_decoded_or_refused(payload):
    with contextlib.suppress(ValueError, TypeError):
        decode(payload)
    read_reports(b"N" + json.dumps([0, "value", payload]).encode(), b"N", num_cases=1)


@pytest.mark.parametrize(
    ("value", "expected", "tolerance", "equal"),
    [
        ("1", "1.0", 0, True),
        ("0.1 + 0.2", "0.3", 0, False),
        ("0.1 + 0.2", "0.3", 1e-6, True),
        ("[0.1 + 0.2, {'a': 0.3}]", "[0.3, {'a': 0.1 + 0.2}]", 1e-6, True),
        ("(1,)", "[1]", 0, False),
        ("[1]", "[1, 2]", 0, False),
        ("'1'", "1", 0, False),
        ("float('nan')", "float('nan')", 0, True),
        ("10 ** 400", "0.5", 0.1, False),
        ("{1: 2}", "{1: 2, 3: 4}", 0, False),
        ("frozenset({1})", "{1}", 0, True),
        ("None", "False", 0, False),
        ("''", "None", 0, False),
        ("{1: 'a', 2: 'b'}", "{2: 'b', 1: 'a'}", 0, True),
        ("{1: 'a'}", "{True: 'a'}", 0, True),
        ("{1: 'a'}", "{1: 'b'}", 0, False),
        ("{(1, ('a',)), None}", "{None, (1.0, ('a',))}", 0, True),
        ("{1, 2}", "{1, 3}", 0, False),
        ("{1, 2}", "[1, 2]", 0, False),
        ("set()", "{}", 0, False),
        ("[1]", "{1}", 0, False),
        ("{0.1 + 0.2}", "{0.3}", 1e-6, False),
    ],
)
def test_values_are_compared(value, expected, tolerance, equal):
    found, wanted = (eval(text) for text in (value, expected))
    assert same(claimed(found), wanted, tolerance=tolerance) is equal


def test_a_forger_who_claims_a_key_twice_has_guessed():
    assert not same(ClaimedSet((1, 1)), {1, 2})
    assert not same(ClaimedSet((1, 1)), {1})
    assert not same(ClaimedDict(((1, "a"), (1, "b"))), {1: "a"})
    assert not same(ClaimedDict((([], 1),)), {1: 1})
    assert not same(ClaimedSet((ClaimedSet(()), ([],))), {1, 2})


COLLIDING = {
    "a set": json.dumps([0, "value", ["set", [["int", hex(n * PRIME)] for n in range(24_000)]]]),
    "a dictionary": json.dumps([0, "value", ["dict", [[["int", hex(n * PRIME)], None] for n in range(20_000)]]]),
    "reports": "\nN".join(json.dumps([n * PRIME, "value", None]) for n in range(24_000)),
}


@pytest.mark.parametrize("kind", COLLIDING)
def test_numbers_that_collide_take_no_longer_than_others(kind):
    began = time.process_time()
    claims = read_reports(f"N{COLLIDING[kind]}\n".encode(), b"N", num_cases=4)
    for answer in claims.values():
        assert not same(answer.value, {1, 2}) and not same(answer.value, {1: 2})
    assert time.process_time() - began < 2.0  # it was 10 s and more


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1 << 70_000", "0x1" + "0" * 1997 + "..."),
        ("-(1 << 16_000)", "-0x1" + "0" * 1996 + "..."),
        ("{'a': [1, (2,), ()]}", "{'a': [1, (2,), ()]}"),
        ("({1}, set(), {})", "({1}, set(), {})"),
        ("float('nan')", "nan"),
        (r"'\ud800\n'", r"'\ud800\n'"),
        ("[0] * 9000", "[" + "0, " * 666 + "0..."),
    ],
)
def test_any_claim_is_shown(value, text):
    assert shown(claimed(eval(value))) == text


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.tuples(x) | st.tuples(x, x)))
def test_short_claims_are_shown_as_python_writes_them(value):
    assert shown(value) == repr(value) or shown(value).endswith("...")

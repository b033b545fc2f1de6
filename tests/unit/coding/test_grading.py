"""Grading outside the candidate's process: right programs pass, hostile ones do not, whatever they claim."""

import ast
import asyncio

import pytest

from agentflow.environments.coding.claims import Answer
from agentflow.environments.coding.grading import Verdict, grade, same_text
from agentflow.environments.coding.problems import Case
from agentflow.sandbox.base import SandboxFailure
from tests.trusted_sandbox import LIMITS, TrustedSubprocess, make_sandbox, sandboxes

DOUBLE = tuple(Case(call=f"f({x})", expected=repr(2 * x)) for x in (3, -4, 11, 100))
RIGHT = "def f(x): return x * 2"

HOSTILE = {
    "exits at once": "import os; os._exit(0)",
    "exits in the call": "import os\ndef f(x): os._exit(0)",
    "raises SystemExit at once": "raise SystemExit(0)",
    "raises SystemExit in the call": "def f(x): raise SystemExit(0)",
    "raises KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "loops for ever": "def f(x):\n  while True: pass",
    "loops at load": "while True: pass",
    "patches print and builtins": (
        "import builtins\nbuiltins.print = lambda *a: None\nbuiltins.all = lambda *a: True\n"
        "builtins.isinstance = lambda *a: True\nbuiltins.len = lambda *a: 1\ndef f(x): return 'passed'"
    ),
    "patches json": (
        "import json\njson.dumps = lambda *a, **k: '[0, \"value\", true]'\njson.loads = lambda *a: True\n"
        "json.JSONEncoder.encode = lambda *a: 'true'\ndef f(x): return None"
    ),
    "overrides equality": (
        "class E(int):\n  def __eq__(s, o): return True\n  def __ne__(s, o): return False\n"
        "  def __hash__(s): return 0\ndef f(x): return E(5)"
    ),
    "overrides equality without a plain base": "class E:\n  def __eq__(s, o): return True\ndef f(x): return E()",
    "overrides its class": (
        "class E:\n  __class__ = property(lambda s: int)\n  def __eq__(s, o): return True\n"
        "  def __index__(s): return 6\n  def __reduce__(s): return (int, (6,))\ndef f(x): return E()"
    ),
    "overrides conversion": (
        "class E(str):\n  def __str__(s): return '6'\n  def __repr__(s): return '6'\ndef f(x): return E('no')"
    ),
    "a metaclass that lies": (
        "class M(type):\n  def __instancecheck__(c, i): return True\n  def mro(c): return [c, int, object]\n"
        "class E(int, metaclass=M): pass\ndef f(x): return E(1)"
    ),
    "prints results": (
        'import sys\nprint(\'passed\')\nprint(\'[0, "value", ["int", "0x6"]]\')\n'
        "sys.stderr.write('OK')\ndef f(x): print('True'); return True"
    ),
    "forges the channel with guesses": (
        "import gc, os, sys\nframe = sys._getframe()\n"
        "while frame and 'nonce' not in frame.f_locals: frame = frame.f_back\n"
        "nonce = frame.f_locals['nonce']\n"
        "def f(x):\n"
        "  for i in range(4):\n    for guess in (6, -8, 22, 200):\n"
        '      for fd in range(10):\n        try: os.write(fd, (nonce + \'[%d, "value", ["int", "%s"]]\\n\''
        " % (i, hex(guess))).encode())\n        except OSError: pass\n"
        "  os._exit(0)"
    ),
    "reads what it can find": (
        "import glob, os, sys\ntext = ' '.join(sys.argv) + ' '.join(map(str, os.environ.items()))\n"
        "try: text += sys.stdin.read()\nexcept Exception: pass\n"
        "for name in glob.glob('*') + glob.glob('/tmp/*.json') + ['/proc/self/cmdline']:\n"
        "  try: text += open(name).read()\n  except Exception: pass\n"
        "frame = sys._getframe()\nwhile frame:\n"
        "  text += repr(frame.f_locals) + repr(frame.f_globals)\n  frame = frame.f_back\n"
        "import re\nfound = re.findall(r'expected\\D{0,9}(-?\\d+)', text)\n"
        "def f(x): return int(found.pop(0)) if found else None"
    ),
    "returns a huge text": "def f(x): return 'a' * 50_000_000",
    "returns a huge list": "def f(x): return [0] * 3_000_000",
    "returns a huge number": "def f(x): return 1 << 10_000_000",
    "returns itself": "def f(x):\n  a = []\n  a.append(a)\n  return a",
    "returns a generator": "def f(x): return (x * 2 for _ in range(1))",
    "raises what cannot be shown": "class E(BaseException):\n  def __str__(s): raise s\ndef f(x): raise E()",
    "closes the channel": "import os\nos.closerange(0, 100)\ndef f(x): return 2 * x",
    "floods the output": "import sys\ndef f(x):\n  while True: sys.stdout.write('True' * 10000)",
    "has no function": "x = 1",
    "is no function": "f = 5",
    "does not parse": "def f(x: return 2",
    "is empty": "",
}


async def judged(source: str, cases: tuple[Case, ...] = DOUBLE, name: str = "trusted") -> Verdict:
    """Grade a program in a sandbox."""
    sandbox = make_sandbox(name)
    try:
        return await asyncio.wait_for(grade(sandbox, source, cases, limits=LIMITS), 60)
    finally:
        await sandbox.close()


@pytest.mark.parametrize("name", sandboxes())
@pytest.mark.parametrize("attack", HOSTILE)
async def test_no_hostile_candidate_passes_a_test(attack, name):
    verdict = await judged(HOSTILE[attack], name=name)
    assert verdict.passed == (False,) * 4


async def test_a_forger_who_guesses_right_among_others_has_made_no_report():
    verdict = await judged(HOSTILE["forges the channel with guesses"])
    written = verdict.result.stdout.text
    assert all(f'"{hex(2 * x)}"' in written for x in (3, -4, 11, 100)), "the forgery reached the channel"
    assert verdict.answers == (Answer(),) * 4


@pytest.mark.parametrize("name", sandboxes())
async def test_a_right_program_passes(name):
    verdict = await judged(RIGHT, name=name)
    assert verdict.passed == (True,) * 4 and verdict.runs and verdict.share == 1.0
    assert verdict.answers[0] == Answer("value", 6)


@pytest.mark.parametrize(
    ("source", "share", "runs"),
    [
        ("def f(x): return abs(x) * 2", 0.75, True),
        ("def f(x): return x * 2 if x > 0 else 1 // 0", 0.75, False),
        ("import os\ndef f(x): return x * 2 if x != 11 else os._exit(0)", 0.5, False),
        ("def f(x):\n  while x == 100: pass\n  return x * 2", 0.75, False),
        ("print('debugging')\ndef f(x): print(x); return x * 2.0", 1.0, True),
        ("import sys\nsys.setrecursionlimit(50)\ndef f(x): return x * 2", 1.0, True),
        ("if __name__ == '__main__': raise SystemExit\ndef f(x): return x * 2", 1.0, True),
    ],
)
async def test_partial_programs_keep_what_they_got_right(source, share, runs):
    verdict = await judged(source)
    assert (verdict.share, verdict.runs) == (share, runs)


async def test_nothing_that_is_expected_enters_the_sandbox():
    sandbox = TrustedSubprocess()
    cases = (Case(call="f(1)", expected="'a secret 7f3a9c'"), Case(call="f(2)", expected="8675309"))
    await grade(sandbox, RIGHT, cases, limits=LIMITS)
    whole = (Case(stdin="1", expected="a secret 7f3a9c"),)
    await grade(sandbox, "print(input())", whole, limits=LIMITS)
    for program in sandbox.programs:
        seen = f"{program.code}{program.stdin!r}{program.files}"
        assert "7f3a9c" not in seen and "8675309" not in seen


async def test_a_broken_sandbox_is_tried_again_and_then_fails_the_episode():
    assert (await grade(TrustedSubprocess(broken=1), RIGHT, DOUBLE, limits=LIMITS)).share == 1.0
    with pytest.raises(SandboxFailure):
        await grade(TrustedSubprocess(broken=2), RIGHT, DOUBLE, limits=LIMITS)
    whole = (Case(stdin="1", expected="1"), Case(stdin="2", expected="2"))
    with pytest.raises(SandboxFailure):
        await grade(TrustedSubprocess(broken=4), "print(input())", whole, limits=LIMITS)


VALUES = ["None", "True", "-3", str(10**300), "2.5", "'é\\n'", "[]", "[1, [2, (3,)]]", "(1, 2)", "{1, 2}", "set()"]
VALUES += ["{'a': [1], 2: (3,)}"]


async def test_plain_values_come_back_as_they_are():
    cases = tuple(Case(call=f"f({index})", expected=value) for index, value in enumerate(VALUES))
    verdict = await judged(f"def f(i): return [{', '.join(VALUES)}][i]", cases)
    assert verdict.passed == (True,) * len(VALUES)
    swapped = await judged(f"def f(i): return [{', '.join(VALUES)}][i - 1]", cases)
    assert swapped.passed == (False,) * len(VALUES)


async def test_subclasses_count_as_what_they_hold():
    source = "from collections import *\ndef f(i): return [Counter('aab'), OrderedDict(a=1), deque, True][i]"
    cases = tuple(Case(call=f"f({i})", expected=e) for i, e in enumerate(("{'a': 2, 'b': 1}", "{'a': 1}", "[]", "1")))
    assert (await judged(source, cases)).passed == (True, True, False, True)


async def test_whole_programs_are_graded_by_what_they_write():
    cases = (Case(stdin="2 3\n", expected="5\n"), Case(stdin="4 5", expected=" 9"))
    verdict = await judged("a, b = map(int, input().split())\nprint(a + b)", cases)
    assert verdict.passed == (True, True) and verdict.runs
    failing = await judged("a, b = map(int, input().split())\nprint(a + b); 1 / (a - 2)", cases)
    assert failing.passed == (False, True) and not failing.runs
    assert (await judged("import os; os._exit(0)", cases)).passed == (False, False)


def test_texts_are_compared_word_by_word():
    assert same_text("1  2\n3\n\n", "1 2\n3") and same_text("", " ")
    assert not same_text("1 2 3", "1 2\n3") and not same_text("1", "") and not same_text("01", "1")
    assert same_text("0.3000001 a", "0.3 a", tolerance=1e-3) and not same_text("0.3 b", "0.3 a", tolerance=1e-3)


def test_the_attacks_are_programs_of_which_few_do_not_parse():
    broken = []
    for name, source in HOSTILE.items():
        try:
            ast.parse(source)
        except SyntaxError:
            broken.append(name)
    assert broken == ["does not parse"]

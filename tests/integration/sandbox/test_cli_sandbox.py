"""`agentflow sandbox`, as a user types it."""

import io
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentflow.cli import main
from tests.trusted_sandbox import real_process

pytestmark = real_process


@pytest.fixture(autouse=True)
def stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(b"hello\n")))


def test_doctor_says_what_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "doctor"]) == 0
    said = capsys.readouterr().out
    assert "process" in said
    assert "seccomp" in said


@pytest.mark.parametrize(
    ("name", "code", "options", "exit_code", "out", "err"),
    [
        ("a.py", "print(input())", [], 0, "hello\n", "ok (process;"),
        ("a.sh", "cat; exit 7", [], 7, "hello\n", "nonzero_exit (process;"),
        ("a.py", "while True: pass", ["--cpu-s", "0.3"], 1, "", "cpu_timeout (process;"),
    ],
)
def test_program_is_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    code: str,
    options: list[str],
    exit_code: int,
    out: str,
    err: str,
) -> None:
    (tmp_path / name).write_text(code)
    assert main(["sandbox", "run", str(tmp_path / name), *options]) == exit_code
    said = capsys.readouterr()
    assert said.out == out
    assert err in said.err


def test_program_does_not_command_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import sys\nprint('\\x1b]0;mine\\x07\\x9b2J\\tend')\nsys.exit('\\x1b[2J')")
    here, there = pty.openpty()
    command = [sys.executable, "-m", "agentflow", "sandbox", "run", str(tmp_path / "a.py")]
    with os.fdopen(here, "rb", buffering=0) as terminal:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=there, stderr=there)
        os.close(there)
        said = b""
        with suppress(OSError):  # how a terminal ends
            while part := terminal.read(1 << 16):
                said += part
        assert process.wait(60) == 1
    assert b"\\x1b]0;mine\\x07\\x9b2J\tend" in said
    assert not {0x1B, 0x07, 0x9B} & set(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.py"], "Cannot read nowhere.py"),
        ([__file__, "--backend", "dockr"], "There is no sandbox 'dockr'. Known: auto"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "run", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1

import subprocess
import sys
from pathlib import Path

import pytest

from agentflow.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "error: No such command 'trian'. Did you mean 'train'?"),
        (["envs", "lst"], "Did you mean 'list'?"),
        (["envs"], "error: Missing command. See: agentflow envs --help"),
        (["eval"], "error: Missing argument 'RUN_OR_MODEL'. See: agentflow eval --help"),
        (["report", "--nope", "x"], "error: No such option: --nope"),
        (["eval", "starter", "--tasks", "0"], "error: Invalid value for '--tasks'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["envs", "check", "FILE:MyShop"], 0),
        (["envs", "info", "FILE:MyShop"], 0),
        (["envs", "validate", "FILE:MyShop"], 0),
        (["train", "--env", "FILE:MyShoe"], 2),
        (["sft", "--env", "FILE:MyShoe"], 2),
        (["eval", "starter", "--env", "FILE:MyShoe"], 2),
    ],
)
def test_commands_on_a_users_file_answer_before_torch_is_loaded(words: list[str], code: int, tmp_path: Path) -> None:
    assert main(["envs", "new", "my_shop", "--in", str(tmp_path)]) == 0
    typed = [word.replace("FILE", f"{tmp_path}/my_shop.py") for word in words]
    program = "import sys; from agentflow.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *typed], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{code} False"


def test_a_user_error_shows_its_traceback_only_with_debug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: There is no run")
    for words in (["--debug", "report"], ["report", "--debug"]):
        assert main([*words, str(tmp_path / "nothing")]) == 2
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"], ["envs", "--help"]])
def test_help_is_a_success(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "Usage: agentflow" in capsys.readouterr().out


def test_help_imports_nothing_slow() -> None:
    program = (
        "import sys; from agentflow.cli import main; main(['--help']);"
        "print([name for name in ('torch', 'pydantic', 'gymnasium', 'rich', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.endswith("[]\n")


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -c 'from agentflow.cli import main; raise SystemExit(main([\"--help\"]))' | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr == ""

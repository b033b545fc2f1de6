"""The whole command line on an environment that `envs new` wrote and a tiny random model."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from agentflow.cli import main
from agentflow.models import training_defaults
from agentflow.runs import StoredRun
from agentflow.trainers.scratch import ScratchConfig, new_model, new_tokenizer
from tests.processes import started

_SHAPE = ScratchConfig(
    max_words=40, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_key_value_heads=1
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment `my_shop.py:MyShop` and a model `tiny`."""
    folder = tmp_path_factory.mktemp("cli")
    assert main(["envs", "new", "my_shop", "--in", str(folder)]) == 0
    tokenizer = new_tokenizer(["What does tea cost ? 3 price item"], _SHAPE.max_words)
    new_model(tokenizer, _SHAPE, seed=0).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    return folder


def small(folder: Path, *words: str) -> list[str]:
    return [
        *("train", "--env", f"{folder}/my_shop.py:MyShop", "--model", f"{folder}/tiny", "--out", f"{folder}/runs"),
        *("run.tasks_per_iteration=2", "--run.group_size", "2", "evaluation.num_tasks=2", "agent.max_turns=2"),
        *("agent.max_turn_tokens=8", "algorithm.keep.has_signal.drop=false", *words),
    ]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The folder of a run of two iterations."""
    assert main(small(folder, "--iterations", "2", "--seed", "5")) == 0
    return max((folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime)


def test_train_leaves_everything_and_prints_its_folder_last(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small(folder, "--iterations", "1")) == 0
    lines = capsys.readouterr().out.splitlines()
    run = StoredRun(Path(lines[-1].removeprefix("run: ")))
    assert lines[-1].startswith("run: ")
    assert any(line.startswith("iteration 1/1 · success ") for line in lines)
    names = {path.name for path in run.path.iterdir()}
    assert {"config.yaml", "env.json", "metrics.jsonl", "rollouts", "checkpoints", "plots", "report.html"} <= names
    assert run.latest_checkpoint() is not None
    assert list(run.path.glob("tensorboard/events*"))
    assert list(run.path.glob("plots/*.png"))


def test_scoring_again_by_the_same_rules_gives_the_same_rewards(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(trained), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["iterations"]
    logged = [row for row in StoredRun(trained).metrics() if row["iteration"] > 0]
    assert len(again) == len(logged) == 2
    for one, other in zip(again, logged, strict=True):
        rewards = {name: value for name, value in other.items() if name.startswith(("reward/", "shaping/"))}
        assert rewards
        assert {name: one[name] for name in rewards} == pytest.approx(rewards)


def test_scoring_by_other_rules_changes_only_what_is_paid(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(trained), "rewards.terms.well_formed.weight=2.0", "--json"]) == 0
    for row in json.loads(capsys.readouterr().out)["iterations"]:
        assert row["reward/shaped"] == pytest.approx(row["reward/raw"] + 2.0 * row["reward/well_formed"])


def test_a_run_is_evaluated_on_its_own_environment(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(trained), "--tasks", "2", "--samples", "2"]
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["num_tasks"], found["num_samples"], found["split"]) == (2, 2, "heldout")
    assert set(found["pass_at_k"]) == {"1", "2"}
    assert main(words) == 0
    assert "95 % interval" in capsys.readouterr().out


def test_a_run_is_the_model_of_the_next_which_bears_its_name(
    folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace(f"{folder}/tiny", str(trained)) for word in small(folder, "--iterations", "1")]
    assert main(words) == 0
    run = StoredRun(Path(capsys.readouterr().out.splitlines()[-1].removeprefix("run: ")))
    assert run.config["model"]["path"] == str(trained / "checkpoints" / "iteration_000002")
    assert trained.name in run.path.name
    assert main(["eval", str(folder)]) == 2
    assert "--env was not given" in capsys.readouterr().err
    assert main(["eval", str(folder), "--env", "websearch"]) == 2
    assert f"The folder '{folder}' holds no model: it has no config.json. Give a folder" in capsys.readouterr().err


def test_a_run_whose_state_has_another_format_is_refused_and_left_as_it_is(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    checkpoint = StoredRun(run).latest_checkpoint()
    assert checkpoint is not None
    state = checkpoint.path / "state.json"
    state.write_text(state.read_text().replace('"format": 2', '"format": 1'))
    later = {**StoredRun(run).metrics()[-1], "iteration": 3}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f"{json.dumps(later)}\n")
    assert main(["train", "--resume", str(run)]) == 2
    assert "state has format 1, and this version reads 2. Start a new run from its weights" in capsys.readouterr().err
    assert StoredRun(run).metrics()[-1]["iteration"] == 3


def test_a_finished_run_resumes_to_itself(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = StoredRun(trained).metrics()
    assert main(["train", "--resume", str(trained)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"run: {trained}"
    assert StoredRun(trained).metrics() == before


@pytest.mark.parametrize(("words", "number"), [([], 2), (["run.threads=3"], 3)], ids=["auto", "a number"])
def test_a_resumed_run_computes_with_the_threads_that_it_started_with(
    words: list[str], number: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert main(small(folder, "--iterations", "1", "--out", str(tmp_path), *words)) == 0
        (run,) = tmp_path.iterdir()
        assert StoredRun(run).config["run"]["threads"] == torch.get_num_threads() == number
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        assert main(["train", "--resume", str(run)]) == 0
        assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(1)


def test_a_run_can_be_the_configuration_of_the_next(
    folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--config", str(trained / "config.yaml"), "--dry-run", "--algo", "rloo", "--seed", "7"]
    before = set((folder / "runs").iterdir())
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "  baseline: leave_one_out" in out
    assert "  seed: 7" in out
    assert out.endswith("dry run: nothing was trained, nothing was written\n")
    assert set((folder / "runs").iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "No environment was chosen."),
        (["train", "--env", "websaerch"], "Did you mean 'websearch'?"),
        (["train", "--env", "nowhere.py:X"], "There is no file"),
        (["train", "--env", "ENV", "learner.lr=1"], "no option 'learner.lr'. Did you mean 'learner.learning_rate'?"),
        (
            ["train", "--env", "ENV", "run.iterations=many"],
            "'run.iterations' = 'many': Input should be a valid integer",
        ),
        (["train", "--env", "ENV", "--seeed", "1"], "There is no option '--seeed'. Did you mean --seed?"),
        (["train", "--env", "ENV", "env.colour=red"], "has no option 'colour'"),
        (["train", "--env", "ENV", "--algo", "dap"], "There is no algorithm 'dap'. Did you mean 'dapo'?"),
        (["train", "--env", "ENV", "--policy", "vlm"], "'policy.backend' = 'vlm'"),
        (["train", "--env", "ENV", "--seed", "1", "run.seed=2"], "run.seed is set twice"),
        (["train", "--env", "ENV", "--config", "nowhere.yaml"], "Cannot read the configuration file nowhere.yaml"),
        (["train", "--env", "ENV", "--dry-run", "--model", "/nowhere"], "'/nowhere'"),
        (["train", "--resume", "RUN", "--seed", "1"], "--resume takes only the run's folder"),
        (["train", "--resume", "nowhere"], "There is no run nowhere."),
        (["eval", "RUN", "--split", "test"], "There is no split 'test'. Known: train, heldout."),
        (["eval", "RUN", "learner.learning_rate=1"], "learner does nothing in an evaluation."),
        (["eval", "RUN", "agnet.max_turns=1"], "no option 'agnet'. Did you mean 'agent'?"),
        (["eval", "nowhere"], "'nowhere' is not the folder of a run"),
        (["score", "RUN", "learner.x=1"], "Scoring takes only `rewards` options"),
        (["train", "--env", "ENV", "rewards.terms.typo.weight=1"], "the environment reports no term 'typo'"),
        (["train", "--env", "ENV", "learner=3"], "'learner' = 3"),
        (["train", "--env", "ENV", "rewards=3"], "rewards = 3 is one value where a section belongs."),
        (["sft"], "Nothing to imitate was chosen."),
        (["sft", "env.x=1"], "Options of a stage need its environment."),
        (["envs", "check", "ENV", "x=1"], "Write env.key=value."),
        (["envs", "new", "My Shop", "--in", "FOLDER"], "cannot name an environment"),
    ],
)
def test_bad_input_is_one_line_with_a_remedy(
    folder: Path, trained: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"ENV": f"{folder}/my_shop.py:MyShop", "RUN": str(trained), "FOLDER": str(folder)}
    before = set((folder / "runs").iterdir())
    assert main([places.get(word, word) for word in words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert set((folder / "runs").iterdir()) == before


def test_config_show_lists_every_option_and_the_environments_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show", "--env", "websearch", "learner.learning_rate=0.125", "env.pages=1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("learner.learning_rate") and " 0.125 " in line for line in lines)
    assert any(line.startswith("env.pages") and " 1000 " in line for line in lines)


def test_config_show_lists_a_section_in_lines_that_a_pipe_can_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "run", "evaluation.num_tasks"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["option", "type", "value", "meaning"]
    names = [line.split()[0] for line in lines]
    assert {name.partition(".")[0] for name in names} == {"run", "evaluation"}
    assert [name for name in names if name.startswith("evaluation.")] == ["evaluation.num_tasks"]
    assert all(line == line.rstrip() for line in lines)
    assert main(["config", "show", "lerner"]) == 2
    assert "There is no section 'lerner'. Did you mean 'learner'?" in capsys.readouterr().err


def test_environments_are_listed_described_and_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = f"{folder}/my_shop.py:MyShop"
    assert main(["envs", "list"]) == 0
    assert "websearch" in capsys.readouterr().out
    assert main(["envs", "info", spec]) == 0
    assert "training tasks" in capsys.readouterr().out
    assert main(["envs", "check", spec]) == 0
    assert "keeps the contract" in capsys.readouterr().out
    assert main(["envs", "validate", spec, "--tasks", "1"]) == 0
    assert "train: 1 gold answers scored" in capsys.readouterr().out


def test_an_environment_of_ones_own_gets_a_starter_policy_which_is_then_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["envs", "new", "my_maze", "--expert", "--in", str(tmp_path)]) == 0
    spec = f"{tmp_path}/my_maze.py:MyMaze"
    assert f"agentflow sft --env {spec}" in capsys.readouterr().out
    assert main(["envs", "check", spec]) == 0
    assert main(["envs", "validate", spec, "--tasks", "3"]) == 0
    assert "train: 3 tasks played by the expert" in capsys.readouterr().out
    small = ["scratch.hidden_size=32", "scratch.num_layers=1", "scratch.max_length=512", "evaluation.num_tasks=2"]
    assert main(["sft", "--env", spec, "--updates", "12", "--out", f"{tmp_path}/runs", *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    run = StoredRun(Path(lines[-1].removeprefix("run: ")))
    assert lines[-2] == f"next: agentflow train --env {spec} --model {run.path}"
    stages = run.config["stages"]
    assert [(stage["updates"], stage["env"].get("expert_noise")) for stage in stages] == [(10, None), (2, 1.0)]
    assert [row["iteration"] for row in run.metrics() if row.get("heldout/success") is not None] == [10, 12]
    advice = training_defaults(str(run.path))
    assert advice["learner"]["learning_rate"] == 5e-4
    assert main(["train", "--env", spec, "--model", str(run.path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"max_turn_tokens: {advice['agent']['max_turn_tokens']}" in said
    assert main(["eval", str(run.path), "--tasks", "2", "--json"]) == 0


def test_a_tiny_model_without_recommendations_is_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small(folder, "--iterations", "1")) == 0
    assert "learner.learning_rate=1e-06 is for large models" in capsys.readouterr().out
    assert main(small(folder, "--iterations", "1", "learner.learning_rate=1e-3")) == 0
    assert "for large models" not in capsys.readouterr().out


def test_config_show_lists_the_options_of_imitation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--sft", "--env", "code", "stage", "evaluation", "env.expert_noise"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert {"stage.updates", "stage.from_run", "evaluation.every", "env.expert_noise"} <= set(names)
    assert not [name for name in names if name.startswith(("stages", "learner"))]


def test_an_environment_that_breaks_its_contract_fails_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["envs", "new", "broken", "--in", str(tmp_path)]) == 0
    module = tmp_path / "broken.py"
    source = module.read_text()
    assert "answer.strip()" in source
    module.write_text(source.replace("answer.strip()", "'never' + answer.strip()"))
    assert main(["envs", "check", f"{module}:Broken"]) == 1
    assert "error: " in capsys.readouterr().out
    assert main(["envs", "validate", f"{module}:Broken"]) == 1


def test_a_run_that_stops_itself_has_its_own_exit_code_and_a_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["envs", "new", "broken", "--in", str(tmp_path)]) == 0
    module = tmp_path / "broken.py"
    broken = "    async def areset(self, **_):\n        raise RuntimeError('down')\n\n    def score("
    module.write_text(module.read_text().replace("    def score(", broken))
    words = [word.replace(f"{folder}/my_shop.py:MyShop", f"{module}:Broken") for word in small(folder)]
    words[words.index("--out") + 1] = str(tmp_path / "runs")
    assert main([*words, "--iterations", "2"]) == 3
    (run,) = (tmp_path / "runs").iterdir()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("aborted: ")
    assert said.endswith(f"Its folder: {run}")
    assert (run / "report.html").exists()


def test_a_dry_run_finds_a_folder_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a file").write_text("")
    assert main([*small(folder), "--dry-run", "--out", f"{folder}/a file/runs"]) == 2
    assert "Cannot write" in capsys.readouterr().err


def test_a_stored_file_that_was_cut_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "cut"
    words = [word if word != f"{folder}/runs" else str(out) for word in small(folder, "--iterations", "1")]
    assert main(words) == 0
    (run,) = out.iterdir()
    capsys.readouterr()
    assert main(["score", str(run), "rewards.terms.nope.weight=1"]) == 2
    assert "reports no term 'nope'" in capsys.readouterr().err
    (stored,) = (run / "rollouts").iterdir()
    stored.write_bytes(stored.read_bytes()[:50])
    assert main(["score", str(run)]) == 2
    assert f"{stored} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code", "what"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_run_that_is_ended_says_how_to_go_on(folder: Path, number: int, code: int, what: str) -> None:
    out = folder / what
    words = [word if word != f"{folder}/runs" else str(out) for word in small(folder, "--iterations", "500")]
    # A shell that starts the suite in the background leaves SIGINT ignored, and children inherit that.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = [sys.executable, "-c", f"{heed}; import sys; from agentflow.cli import main; sys.exit(main())", *words]
    with started(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("iteration 6/"):
                break
        process.send_signal(number)
        said = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == code
    (run,) = out.iterdir()
    # Python itself may add that it ignored the interrupt while it was cleaning up.
    kept = max(int(path.name[-6:]) for path in (run / "checkpoints").iterdir())
    assert f"{what} (kept: up to iteration {kept}); resume with: agentflow train --resume {run}" in said
    assert "report.html" in {path.name for path in run.iterdir()}

"""`docs/algorithms.md` as a reader follows it: its files are written, computed with and trained on."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from agentflow.batch import lay_out
from agentflow.cli import main
from agentflow.columns import CURRENT, ENTROPY, START
from agentflow.runs import StoredRun
from agentflow.trainers.algorithm import load_recipe
from agentflow.trainers.scratch import ScratchConfig, new_model, new_tokenizer
from agentflow.trainers.slots.base import Tokens
from agentflow.trainers.slots.records import Now
from tests.numerics.batches import batch_of, earned_of, judged_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "algorithms.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every file of the page, in which commands run."""
    files = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert {name for name, _ in files} == {"my.yaml", "mine.py", "simple.yaml"}
    for name, text in files:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_the_recipe_of_the_page_extends_dapo() -> None:
    mine, dapo = load_recipe("my.yaml"), load_recipe("dapo")
    assert [term.kind for term in mine.loss] == ["clipped", "entropy"]
    assert (mine.weights, mine.sampler, mine.advantage) == (dapo.weights, dapo.sampler, dapo.advantage)
    highs = [mine.at(Now(progress=share), {}).loss[0].model_dump()["high"] for share in (0.0, 0.25, 0.5, 1.0)]
    assert highs == pytest.approx([0.4, 0.34, 0.28, 0.28])


@pytest.mark.usefixtures("folder")
def test_the_advantage_of_the_page_is_maxrls() -> None:
    mixed = judged_of(
        earned_of([2], [1.0]), earned_of([1, 1], [0.0, 0.0]), earned_of([1], [0.0]), earned_of([1], [0.0])
    )
    failed = judged_of(earned_of([1], [0.0]), earned_of([1], [0.0]))
    found = load_recipe("simple.yaml").advantage(lay_out([mixed, failed]), {}, {})
    assert found.tolist() == [3.0, 3.0, -1.0, -1.0, -1.0, -1.0, 0.0, 0.0]  # mean 1/4: (1 - 1/4) / (1/4) = 3


@pytest.mark.usefixtures("folder")
def test_the_loss_of_the_page_is_flat_at_the_edge_of_its_trust_region() -> None:
    (term,) = load_recipe("simple.yaml").loss
    start_S = torch.zeros(4)
    current_S = torch.tensor([0.0, np.log(1.2), np.log(0.8), np.log(1.4)], requires_grad=True)
    columns = {CURRENT: current_S, ENTROPY: torch.ones(4), START: start_S}
    units = {name: torch.from_numpy(batch_of([4]).unit_S(name)) for name in ("turn", "trajectory", "group")}
    advantages_S = torch.tensor([1.0, 1.0, -1.0, 1.0])
    value = term(Tokens(columns, advantages_S, torch.ones(4), torch.zeros(4), units))
    (gradient_S,) = torch.autograd.grad(value.loss, current_S)
    # d/dlogp = rho (A - |A| (rho - 1) / width), negated: pulled up at 1, flat at both edges, pulled back at 1.4.
    assert gradient_S.tolist() == pytest.approx([-1.0, 0.0, 0.0, 1.4], abs=1e-6)


def test_a_run_learns_by_the_pages_classes(folder: Path) -> None:
    shape = ScratchConfig(
        max_words=40, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_key_value_heads=1
    )
    assert main(["envs", "new", "my_shop"]) == 0
    tokenizer = new_tokenizer(["What does tea cost ? 3 price item"], shape.max_words)
    new_model(tokenizer, shape, seed=0).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    words = "run.tasks_per_iteration=2 run.group_size=2 evaluation.num_tasks=0 agent.max_turns=2 --iterations 1"
    chosen = ["--env", "my_shop.py:MyShop", "--model", "tiny", "--algo", "simple.yaml", "algorithm.loss.0.width=0.3"]
    kept = ["agent.max_turn_tokens=8", "algorithm.keep.has_signal.drop=false"]
    assert main(["algos", "check", "simple.yaml"]) == 0
    assert main(["train", *chosen, *words.split(), *kept]) == 0
    (path,) = (folder / "runs").iterdir()
    stored = StoredRun(path).config["algorithm"]
    assert stored["loss"] == [{"kind": f"{folder}/mine.py:Simple", "correction": None, "width": 0.3}]
    assert stored["advantage"] == {"kind": f"{folder}/mine.py:PerSuccess"}
    assert np.isfinite(StoredRun(path).metrics()[-1]["loss/policy"])

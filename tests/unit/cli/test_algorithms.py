"""`agentflow algos`: what it lists, what it writes keeps the contract, and which breaches it finds."""

from pathlib import Path

import pytest

from agentflow.cli import main
from agentflow.trainers.algorithm import list_recipes, load_recipe
from agentflow.trainers.algorithm_check import check_algorithm
from agentflow.trainers.algorithm_scaffold import SLOTS

_LOSS = """
import random
import torch
from agentflow.columns import CURRENT, REFERENCE
from agentflow.trainers.slots.base import LossTerm, Value

class Mine(LossTerm):
    def __call__(self, tokens):
        logp_S, w_S = tokens[CURRENT], tokens.weights_S
        return Value({}, {{}})
"""
_ADVANTAGE = """
import random
import numpy as np
from agentflow.columns import SAMPLER
from agentflow.trainers.slots.base import Advantage

class Mine(Advantage):
    def __call__(self, batch, columns, state):
        return {}
"""


def findings(folder: Path, *, loss: str = "", advantage: str = "") -> list[str]:
    """What is found about a class whose result is the given expression."""
    file = folder / "mine.py"
    file.write_text(_LOSS.format(loss) if loss else _ADVANTAGE.format(advantage))
    own = {"kind": f"{file}:Mine"}
    algorithm = load_recipe("dapo", {"loss": [own]} if loss else {"advantage": own})
    return [f"{each.level}: {each.message}" for each in check_algorithm(algorithm)]


@pytest.mark.parametrize("name", list_recipes())
def test_our_recipes_keep_the_contract(name: str) -> None:
    assert [each for each in check_algorithm(load_recipe(name)) if each.level == "error"] == []


@pytest.mark.parametrize("slot", SLOTS)
def test_what_new_writes_keeps_the_contract(
    slot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["algos", "new", "my_part", "--slot", slot]) == 0
    assert main(["algos", "check", "my_part.yaml"]) == 0
    assert "my_part.yaml keeps the contract" in capsys.readouterr().out
    assert main(["algos", "new", "my_part", "--slot", slot]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("-(w_S * logp_S).sum()", None),
        ("-(w_S * logp_S).mean()", "error: loss.0 ({}): it is no sum over packs"),
        ("-(w_S * logp_S).sum() * random.random()", "error: loss.0 ({}): the same tokens give another loss"),
        ("(w_S * logp_S).sum().log()", "error: loss.0 ({}): its loss must be one finite number"),
        ("-(w_S * logp_S)", "error: loss.0 ({}): its loss must be one finite number"),
        ("(w_S * tokens[REFERENCE]).sum()", "error: loss.0 ({}): it reads Column"),
        ("-(w_S * logp_S.exp().detach() * logp_S).sum()", "note: loss.0 ({}): by float64 finite differences"),
        ("torch.where(logp_S > 0, w_S * (2 * logp_S).sqrt(), w_S * logp_S).sum()", "error: loss.0 ({}): its gradient"),
    ],
)
def test_breaches_of_losses(result: str, said: str | None, tmp_path: Path) -> None:
    found = findings(tmp_path, loss=result)
    expected = [] if said is None else [said.format(f"{tmp_path}/mine.py:Mine")]
    assert [line[: len(start)] for line, start in zip(found, expected or found, strict=True)] == expected


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("batch.returns_N[batch.trajectory_S]", None),
        ("batch.returns_N", "error: advantage: it must return an array [S]"),
        (
            "np.log(batch.returns_N[batch.trajectory_S] - 1)",
            "error: advantage: it returned numbers that are not finite",
        ),
        (
            "batch.returns_N[batch.trajectory_S] + random.random()",
            "error: advantage: the same batch gives other numbers",
        ),
        ("columns[SAMPLER].numpy()", "error: advantage: it reads Column"),
        ("nothing", "error: advantage: NameError: name 'nothing' is not defined"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_breaches_of_advantages(result: str, said: str | None, tmp_path: Path) -> None:
    found = findings(tmp_path, advantage=result)
    assert [line[: len(said or "")] for line in found] == ([] if said is None else [said])


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["algos", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in list_recipes())
    assert "DAPO (arXiv 2503.14476)" in listed
    assert main(["algos", "show", "dapo"]) == 0
    assert "refills: 9" in capsys.readouterr().out
    assert main(["algos", "show", "losses/clipped"]) == 0
    assert "Half-width of the trust region" in capsys.readouterr().out
    assert main(["algos", "show", "loses/clipped"]) == 2
    assert "'losses'" in capsys.readouterr().err
    assert main(["algos", "show", "dapoo"]) == 2
    assert "Did you mean 'dapo'?" in capsys.readouterr().err

"""The documents say what is: links, commands, make targets and options exist, and the README's environment works."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from agentflow.cli.app import app
from agentflow.config import gather, option_names
from agentflow.environment import load_environment
from agentflow.environment_check import check_environment
from agentflow.trainers.algorithm import Algorithm, load_recipe
from agentflow.trainers.settings import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SECTIONS = {name.partition(".")[0] for name in option_names(TrainConfig)} - {"env"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    def known(words: list[str]) -> bool:
        command = get_command(app)
        for word in words:
            children = getattr(command, "commands", {})
            if not children:
                return True
            if word not in children:
                return False
            command = children[word]
        return True

    mentioned = re.findall(r"(?:^|`)agentflow ((?:[a-z]+ ?)+)", page.read_text(), flags=re.MULTILINE)
    assert [line for line in mentioned if not known(line.split())] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    mentioned = re.findall(r"(?:^|`)make (?:[A-Z]+=\S+ )?([a-z]+)", page.read_text(), flags=re.MULTILINE)
    assert set(mentioned) - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    names = option_names(TrainConfig)
    mentioned = re.findall(rf"(?<![\w.])((?:{'|'.join(sorted(SECTIONS))})\.[a-z_]+(?:\.\w+)*)=", page.read_text())
    elsewhere = ("rewards.terms.", "roles.", "algorithm.")
    assert [name for name in mentioned if name not in names and not name.startswith(elsewhere)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_changes_of_an_algorithm_are_possible(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    words = re.findall(r"(?<![\w.])(algorithm\.[a-z_.]+=(?:\{[^}]*\}|[\w.-]+))", text)
    unchanged = load_recipe("flow-grpo")
    for word in words:
        changes = gather(overrides=[word])["algorithm"]
        assert isinstance(load_recipe("flow-grpo", changes), Algorithm)
        assert load_recipe("grpo", changes) != load_recipe("grpo") or load_recipe("flow-grpo", changes) != unchanged


def test_the_page_of_algorithms_has_a_row_for_each_key() -> None:
    text = (ROOT / "docs/algorithms.md").read_text()
    assert set(Algorithm.model_fields) <= set(re.findall(r"^\| `([a-z]+)` \|", text, flags=re.MULTILINE))


def test_the_environment_of_the_readme_works(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(block.splitlines()) <= 30
    file = tmp_path / "shop.py"
    file.write_text(block)
    findings = check_environment(load_environment(f"{file}:Shop"))
    assert [finding.message for finding in findings] == []

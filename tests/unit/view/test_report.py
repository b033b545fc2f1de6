import json
from pathlib import Path

import pytest

from agentflow.config import Config
from agentflow.messages import Message, Reply, ToolCall
from agentflow.runs import Run
from agentflow.trajectory import Completion, Episode, Group, Status, Task, Trajectory, Turn
from agentflow.view.plots import draw_panels, write_plots
from agentflow.view.report import ledger, render_report, write_report
from agentflow.view.transcripts import pick, token_decoder, view_episode
from tests.pictures import PICTURE

EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>'\"{{ 7*7 }}\ud800\x00"


def turn(text: str, reward: float = 0.0) -> Turn:
    message = Message("assistant", text, (ToolCall(text, {text: text}),), text)
    completion = Completion((5, 6), (-0.1, float("-inf")), "stop", 1)
    said = (Message("tool", text, name=text, images=(PICTURE,)),)
    return Turn(0, (1, 2, 3), completion, said, Reply(message, text), reward, {text: 0.5}, 0.25)


def episode(name: str, task: str, reward: float | None, *, num_turns: int = 1) -> Episode:
    status = Status("failed", "tool", EVIL) if reward is None else Status("completed")
    turns = (*(turn(EVIL) for _ in range(num_turns - 1)), turn(EVIL, reward or 0.0))
    return Episode((Trajectory(name, task, 0, turns, status, None if reward is None else reward > 0),))


GROUPS = [
    Group(Task("t1", EVIL, EVIL), (episode("a", "t1", 1.0), episode("b", "t1", 1.0, num_turns=3))),
    Group(Task("t2", "p", [1]), (episode("c", "t2", 0.0), episode("d", "t2", 0.5), episode("e", "t2", None))),
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, config=Config(), env="<env>", model="m", seed=5, tensorboard=False)


def fill(run: Run) -> None:
    for iteration in range(3):
        run.log({"iteration": iteration, "success/mean": 0.1 * iteration, "reward/raw": 1.0, "reward/exact": None,
                 "reward/<f1>": 0.25, "shaping/exact": 2.0, "time/rollout_s": 1.0})  # fmt: skip
        run.write_groups(iteration, GROUPS)


def test_the_report_escapes_everything_a_model_wrote(run: Run) -> None:
    fill(run)
    page = render_report(run)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "alert(1)" in page
    assert "{{ 7*7 }}" in page
    assert "reward/<f1>" not in page
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_report_shows_curves_ledger_and_turns(run: Run) -> None:
    fill(run)
    page = write_report(run).read_text(encoding="utf-8")
    assert 'alt="success" src="data:image/png;base64,' in page
    assert "<th>exact</th><th>&lt;f1&gt;</th>" in page
    assert "<td>2</td><td>\u2013</td><td>0.25</td>" in page
    assert "Episodes of iteration 2" in page
    assert 'title="id 5 · log-prob -0.1000 · probability 0.905"' in page
    assert "probability 0.000" in page
    assert f'<img alt="image/png, 2x1" title="image/png, 2x1" src="{PICTURE.url}">' in page
    assert page.count("<b>best</b>") == 2
    assert page.count("<b>failed</b>") == 1


def test_the_report_shows_where_sampler_and_learner_differed_most(run: Run) -> None:
    def record(iteration: int, mean: float | None, learner: float | None) -> str:
        token = {"turn": 2, "policy_version": 0, "id": 7, "text": EVIL, "sampler": -0.25, "learner": learner}
        fields = {"iteration": iteration, "trajectory": f"t{iteration}", "mean_abs_logprob": mean}
        return json.dumps({**fields, "max_abs_logprob": mean, "tokens": [token]})

    for iteration, mean, learner in ((1, 0.5, -0.75), (2, 0.9, None), (3, 0.1, -0.35)):
        run.write_mismatch(iteration, record(iteration, mean, learner), keep=(1, 2, 3))
    page = render_report(run)
    assert "iteration 2 · t2 · mean difference 0.9 nats" in page
    assert "iteration 3 · t3 · mean difference 0.1 nats" in page
    assert "t1" not in page
    assert '<span class="d1" title="id 7 · turn 2 · sampler -0.2500 · learner -0.3500">' in page
    assert '<span class="d9" title="id 7 · turn 2 · sampler -0.2500 · learner not finite">' in page
    assert "<script" not in page


def test_a_run_without_an_iteration_has_a_report(run: Run) -> None:
    assert "No iteration has ended yet" in write_report(run).read_text()
    assert write_plots(run) == []


def test_the_best_is_short_and_the_worst_is_poor() -> None:
    chosen = [(title, chosen.main.id) for title, _, chosen in pick(GROUPS, num_each=1)]
    assert chosen == [("best", "a"), ("worst", "c"), ("failed", "e")]
    assert pick([]) == []


def test_a_huge_observation_is_cut() -> None:
    task = Task("t", "x" * 1_000_000)
    view = view_episode("best", task, episode("a", "t", 1.0), decode=str)
    assert len(view.prompt) < 10_000
    assert view.prompt.endswith("(992,000 more characters)")


def test_tokens_are_ids_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    assert token_decoder(None)(7) == "7 "
    assert token_decoder(tmp_path)(7) == "7 "


def test_a_long_ledger_is_thinned_but_ends_with_the_last_iteration() -> None:
    table = ledger([{"iteration": i, "reward/f1": 0.5} for i in range(1000)], "raw", "reward/")
    assert len(table["rows"]) <= 41
    assert table["rows"][0] == (0, [0.5])
    assert table["rows"][-1] == (999, [0.5])


def test_an_evaluation_has_no_row_in_the_ledger() -> None:
    rows = [{"iteration": 0, "heldout/success": 0.5}, {"iteration": 1, "reward/f1": 0.5}]
    assert ledger(rows, "raw", "reward/")["rows"] == [(1, [0.5])]


def test_a_token_without_text_shows_its_id() -> None:
    view = view_episode("best", Task("t", "p"), episode("a", "t", 1.0), decode=lambda token: "")
    assert [token.text for token in view.main.turns[0].tokens] == ["[5]", "[6]"]


def test_each_metric_is_drawn_in_one_panel_and_files_are_png(run: Run) -> None:
    fill(run)
    files = write_plots(run)
    assert [file.name for file in files] == ["success.png", "reward.png", "terms.png", "shaping.png", "time.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_missing_numbers_make_no_panel() -> None:
    assert draw_panels([{"iteration": 0, "loss": None, "note": "text"}]) == {}

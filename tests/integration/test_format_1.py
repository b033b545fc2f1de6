"""A run that was stored before episodes had several trajectories: its files read as if they were written today."""

import shutil
from pathlib import Path

import pytest

from agentflow.cli import main
from agentflow.runs import StoredRun, read_groups, write_groups
from agentflow.trainers.sft import _from_run

STORED = Path(__file__).resolve().parent.parent / "stored" / "format_1"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED, tmp_path / "run"))


def test_every_trajectory_is_an_episode_of_one() -> None:
    groups = [group for i in (1, 2) for group in StoredRun(STORED).groups(i)]
    assert [len(group.episodes) for group in groups] == [2] * 11
    for episode in (episode for group in groups for episode in group.episodes):
        (trajectory,) = episode.trajectories
        assert (trajectory.role, trajectory.parent, trajectory.status.kind) == ("planner", "", "completed")
        assert trajectory.num_sampled_tokens > 0
        assert trajectory.raw_return in (0.0, 1.0)
    assert sum(bool(episode.main.success) for group in groups for episode in group.episodes) == 10


def test_it_is_written_again_in_the_format_of_today(tmp_path: Path) -> None:
    groups = list(StoredRun(STORED).groups(1))
    write_groups(tmp_path / "groups.jsonl.zst", groups)
    assert list(read_groups(tmp_path / "groups.jsonl.zst")) == groups


def test_it_is_scored_reported_and_imitated(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(run), "rewards.preset=outcome"]) == 0
    assert "iteration" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "000002.0/000-" in page and "sampled tokens" in page
    dialogues = _from_run(run)
    assert len(dialogues) == 10
    assert all(observation and reply.role == "assistant" for d in dialogues for observation, reply in d.exchanges)

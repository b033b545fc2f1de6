"""The starter policy of navigation: it reads views, and leaves room for reinforcement learning."""

from agentflow.trainers.evaluate import evaluate
from agentflow.trainers.parts import assemble
from agentflow.trainers.settings import TrainConfig


def test_the_starter_walks_and_errs() -> None:
    config = TrainConfig(
        env={"name": "navigation"},
        agent={"max_turn_tokens": 32, "max_episode_tokens": 1024},
        evaluation={"num_tasks": 60},
    )
    evaluation, _ = evaluate(assemble(config), num_tasks=60, seed=0)
    assert evaluation.success is not None and 0.25 < evaluation.success < 0.7
    assert evaluation.terms["well_formed"]["turn"] > 0.95
    assert set(evaluation.by_key["unseen"]) == {"all", "building", "landmark", "phrasing"}
    assert evaluation.terms["navigation_error"]["episode"] < 4.0

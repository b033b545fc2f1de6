"""Measure between updates what a model has been taught so far."""

from typing import Any

from agentflow.environment import load_tasks
from agentflow.models import LoadedModel
from agentflow.trainers.console import Console
from agentflow.trainers.evaluate import evaluate, heldout_metrics
from agentflow.trainers.parts import assemble, environment_factory
from agentflow.trainers.settings import TrainConfig


class Examination:
    """Plays held-out tasks with a model that is being taught.

    Args:
        setting: The environment, the limits of an episode and `evaluation`.
        loaded: The model.
        console: Where progress is shown.

    Raises:
        DataError: The environment has no held-out tasks.
    """

    def __init__(self, setting: TrainConfig, loaded: LoadedModel, *, console: Console) -> None:
        self.loaded = loaded
        self._setting = setting
        self._console = console
        if setting.evaluation.num_tasks:
            load_tasks(environment_factory(setting.env)(), "heldout")

    def is_due(self, num_updates: int) -> bool:
        """Say whether one is due after so many updates of a stage; one that ends it is another matter."""
        every = self._setting.evaluation.every
        return bool(every) and num_updates % every == 0

    def metrics(self) -> dict[str, Any]:
        """Play, and return the success and its interval; nothing if no tasks are wanted."""
        config = self._setting.evaluation
        if not config.num_tasks:
            return {}
        found, _ = evaluate(
            assemble(self._setting, loaded=self.loaded),
            num_tasks=config.num_tasks,
            seed=self._setting.run.seed,
            progress=lambda done, total: self._console.progress(done, total, "evaluation"),
        )
        return heldout_metrics(found)

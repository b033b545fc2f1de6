"""Updates of a real model through the training loop's own `learn`, without a run around it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from agentflow.batch import Batch, Earned, Judged
from agentflow.columns import START, Columns
from agentflow.maths.units import Floats
from agentflow.trainers.algorithm import Algorithm
from agentflow.trainers.drift import Drift, measure_drift
from agentflow.trainers.engines.base import Gradient, LearnerConfig, Update
from agentflow.trainers.engines.local import LocalEngine
from agentflow.trainers.judging import as_said
from agentflow.trainers.loop import learn
from agentflow.trainers.reporting import update_metrics
from agentflow.trainers.session import Clock, Session
from agentflow.trainers.sft import imitate
from agentflow.trainers.slots.base import Advantage, StateTree
from agentflow.trainers.slots.records import Found, Now
from agentflow.trainers.state import RunState
from agentflow.trajectory import Episode, Group, Task, Trajectory


@dataclass(frozen=True, slots=True)
class Sample:
    """A trajectory and the advantage of each of its turns."""

    trajectory: Trajectory
    advantages_K: NDArray[np.float64]

    @property
    def earned(self) -> Earned:
        """The trajectory, each turn paid its advantage."""
        paid = tuple({"given": float(advantage)} for advantage in self.advantages_K)
        plain = as_said(self.trajectory)
        return Earned(self.trajectory, plain.shaped, paid, self.trajectory.success)


class Given(Advantage):
    """The advantage of a turn is what it was paid."""

    kind: Literal["given"] = "given"

    def __call__(self, batch: Batch, columns: Columns, state: StateTree) -> Floats:
        """Return [S] the rewards of the turns."""
        return batch.spread(np.concatenate([each.rewards_K for each in batch.earned]))


class Learner:
    """An engine, and the updates of the training loop with it."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: LearnerConfig,
        *,
        num_updates: int,
        temperature: float = 1.0,
        with_reference: bool = False,
    ) -> None:
        self.config = config
        self.engine = LocalEngine(
            model, config, num_updates=num_updates, temperature=temperature, with_reference=with_reference
        )

    @property
    def num_updates_done(self) -> int:
        """Updates that were made or left out."""
        return int(self.engine.state_dict()["num_updates_done"])

    def update(
        self,
        samples: Sequence[Sample],
        algorithm: Algorithm,
        *,
        version: int | None = None,
        heed: Callable[[Drift], None] = lambda drift: None,
    ) -> "Stats":
        """Learn from samples as an iteration of a run does."""

        def drift(batch: Batch, gradient: Gradient, *, known: Sequence[Columns], state: RunState) -> Drift:
            later = [columns[START].double() for columns in known[1:]]
            learner_S = torch.cat([torch.from_numpy(gradient.start_S), *later]).numpy()
            found = measure_drift(batch.trajectories, learner_S, version=version)
            heed(found)
            return found

        @contextmanager
        def updating() -> Iterator[Clock]:
            yield Clock()

        session: Any = SimpleNamespace(
            engine=self.engine, config=SimpleNamespace(learner=self.config), updating=updating, drift=drift
        )
        judged = tuple(Judged(Group(Task("t", ""), (Episode((s.trajectory,)),)), (s.earned,)) for s in samples)
        given = algorithm.model_copy(update={"advantage": Given(), "keep": ()})
        return Stats(learn(cast(Session, session), given, Found(judged), state=RunState(), now=Now()))

    def imitate(self, trajectories: Sequence[Trajectory]) -> "Stats":
        """Make one update of imitation."""
        return Stats(imitate(self.engine, trajectories))

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state."""
        return self.engine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.engine.load_state_dict(state)


@dataclass(frozen=True, slots=True)
class Stats:
    """What updates did."""

    update: Update

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics by name."""
        return update_metrics(self.update)

    @property
    def drift(self) -> Drift:
        """How far the sampler was from the learner."""
        assert self.update.drift is not None
        return self.update.drift

    @property
    def grad_norm(self) -> float | None:
        """The mean norm of the updates that were made."""
        norm = self.metrics["grad_norm"]
        return None if norm is None else float(norm)

    @property
    def num_skipped(self) -> int:
        """Updates that were left out."""
        return int(self.metrics["updates/skipped"])

    @property
    def loss(self) -> float:
        """The loss, averaged over updates."""
        return float(self.metrics["loss"])

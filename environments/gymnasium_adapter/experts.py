"""Scripted players of Gymnasium environments: BabyAI's own bot, and the best play of a published transition table."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import NDArray

from agentflow.environment import Expert, Observation
from agentflow.environments.gymnasium_adapter.actions import TOOL
from agentflow.errors import ConfigError
from agentflow.messages import Message, ToolCall

Table: TypeAlias = dict[int, dict[int, list[tuple[float, int, float, bool]]]]
"""For each state and action the outcomes: chance, next state, reward, whether it is over."""
_DISCOUNT = 0.99
_ROUNDS = 1000


class _Bot(Protocol):
    """Chooses the next action in an environment, given the last one."""

    @property
    def slips(self) -> Sequence[int]:
        """The actions that are drawn from where it is to err."""
        ...

    def choose(self, last: int | None) -> int: ...


def expert_for(
    env: gymnasium.Env[Any, Any], seed: int, *, names: Sequence[str], most: int, noise: float, noise_seed: int
) -> Expert:
    """Return the player of an environment.

    Args:
        env: A fresh environment, the player's own.
        seed: The seed of the episode.
        names: The names of the actions; empty for numbers.
        most: Most actions of a turn.
        noise: The share of actions that are drawn at random in place of the player's.
        noise_seed: Fixes them.

    Raises:
        ConfigError: None ships with it.
    """
    make = _bot_of(env)
    if make is None:
        raise ConfigError(
            f"No expert ships with {env.spec.id if env.spec else env}.",
            "Define `expert(task, seed)` in a subclass, or imitate a run's successes: agentflow sft --from-run RUN.",
        )
    env.reset(seed=seed)
    return _Player(env, make(env), names=names, most=most, noise=noise, seed=noise_seed)


def _bot_of(env: gymnasium.Env[Any, Any]) -> Callable[[gymnasium.Env[Any, Any]], _Bot] | None:
    if env.spec is not None and env.spec.id.startswith("BabyAI-"):
        return _BabyAI
    table = getattr(env.unwrapped, "P", None)
    return _Tabular if isinstance(table, dict) and _is_certain(table) else None


def _is_certain(table: Table) -> bool:
    """Say whether each action has one outcome: where chance decides, no player always succeeds."""
    return all(len({after for _, after, _, _ in outcomes}) == 1 for row in table.values() for outcomes in row.values())


class _Player:
    """Plays the same episode beside the policy's: the same seed and actions lead to the same states."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], bot: _Bot, *, names: Sequence[str], most: int, noise: float, seed: int
    ) -> None:
        self._env, self._bot = env, bot
        self._names, self._most = names, most
        self._noise, self._rng = noise, random.Random(seed)  # noqa: S311  reproducible, not secret
        self._last: int | None = None

    def act(self, observation: Observation) -> Message:
        """Return the next actions, whatever was observed."""
        chosen: list[str | int] = []
        over = False
        while len(chosen) < self._most and not over:
            action = self._choose()
            chosen.append(self._names[action] if self._names else action)
            *_, terminated, truncated, _ = self._env.step(action)
            over = terminated or truncated
        arguments = {"action": chosen[0]} if self._most == 1 else {"actions": chosen}
        return Message("assistant", tool_calls=(ToolCall(TOOL, arguments),))

    def _choose(self) -> int:
        action = self._bot.choose(self._last)
        if self._rng.random() < self._noise:
            action = self._rng.choice(self._bot.slips)
        self._last = action
        return action


class _BabyAI:
    """BabyAI's own bot. It slips by moves alone: a box that was opened is more than it can mend."""

    slips = (0, 1, 2)

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        # minigrid is an optional package.
        from minigrid.utils.baby_ai_bot import BabyAIBot  # noqa: PLC0415

        make: Any = BabyAIBot  # untyped where it is installed
        self._bot = make(env)

    def choose(self, last: int | None) -> int:
        return int(self._bot.replan(last))


class _Tabular:
    """The best play of an environment that publishes its transitions: `P[state][action]` and the state `s`."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        state: Any = env.unwrapped
        self._state = state
        self._best = best_actions(state.P)
        self.slips = range(len(state.P[0]))

    def choose(self, last: int | None) -> int:
        return int(self._best[int(self._state.s)])


def best_actions(table: Table) -> NDArray[np.int64]:
    """Return the best action of each state, by value iteration: Q(s, a) = sum of p (r + 0.99 V(s') unless over)."""
    states, actions = len(table), len(table[0])
    most = max(len(outcomes) for row in table.values() for outcomes in row.values())
    chance, reward, onward = (np.zeros((states, actions, most)) for _ in range(3))
    behind = np.zeros((states, actions, most), dtype=np.int64)
    for state, row in table.items():
        for action, outcomes in row.items():
            for i, (share, after, paid, over) in enumerate(outcomes):
                at = (state, action, i)
                chance[at], behind[at], reward[at], onward[at] = share, after, paid, _DISCOUNT * (not over)
    worth = np.zeros(states)
    for _ in range(_ROUNDS):
        quality = (chance * (reward + onward * worth[behind])).sum(-1)
        better = quality.max(1)
        if np.abs(better - worth).max() < 1e-9:
            break
        worth = better
    best: NDArray[np.int64] = quality.argmax(1)
    return best

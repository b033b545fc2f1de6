"""Play an environment's own expert in place of a policy: an upper bound, and a check of everything but the model."""

from functools import partial

from agentflow.agents.react import ReAct, Transcript
from agentflow.environment import Expert
from agentflow.rollout import Episode, Gate, derive_seed
from agentflow.trajectory import Completion, Trajectory


class Scripted(ReAct):
    """A ReAct agent whose turns the environment's expert writes; see `ReAct`."""

    _experts: dict[str, Expert]

    def begin(self, gate: Gate) -> None:
        """Start without experts; nothing is batched."""
        self._experts = {}

    async def play(self, episode: Episode, gate: Gate) -> Trajectory:
        """Play one episode; see `rollout.Agent`."""
        try:
            return await super().play(episode, gate)
        finally:
            self._experts.pop(episode.id, None)

    async def _sample(self, transcript: Transcript, context: tuple[int, ...], *, room: int) -> Completion:
        episode = transcript.episode
        if episode.id not in self._experts:
            seed = derive_seed(episode.seed, episode.id)
            begin = partial(transcript.environment.expert, episode.task, seed)
            self._experts[episode.id] = await self._ask(transcript, "expert", begin)
        act = partial(self._experts[episode.id].act, transcript.observation)
        message = await self._ask(transcript, "expert", act)
        tokens = tuple(self._renderer.reply(message))
        kept = tokens[: min(room, self._config.max_turn_tokens)]
        return Completion(kept, (0.0,) * len(kept), "stop" if kept == tokens else "length", policy_version=0)

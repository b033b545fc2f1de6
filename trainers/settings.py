"""The configuration of a training run: each component's own options, nested."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from agentflow.agents.base import AgentOptions, check_cast
from agentflow.agents.react import ReAct
from agentflow.casting import RoleConfig, check_roles, read_roles
from agentflow.config import Config, is_changed
from agentflow.errors import ConfigError
from agentflow.models import ModelConfig
from agentflow.plugins import absolute
from agentflow.policies.vllm.servers import ServerConfig
from agentflow.rewards import ShapingConfig
from agentflow.rollout import RolloutConfig
from agentflow.trainers.algorithm import Algorithm, check_fit
from agentflow.trainers.drift import MismatchConfig
from agentflow.trainers.engines.base import LearnerConfig
from agentflow.trainers.slots.losses.surrogates import Surrogate
from agentflow.trainers.slots.masks import Mismatched
from agentflow.trainers.slots.rewards import Shuffled

DEFAULT_ALGORITHM = "flow-grpo"


def _number_or_auto(value: Any) -> Any:
    # One sentence, where a union would give one for each of its members.
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError("Input should be `auto` or a number from 1")
    return value


Threads: TypeAlias = Annotated[Literal["auto"] | int, BeforeValidator(_number_or_auto)]
"""A number of threads; `auto` counts what the machine gives, see `agentflow.threads`."""


class EnvironmentConfig(Config):
    """Which environment; every other key is one of the environment's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="A registered name, `module:Class` or `path/to/file.py:Class`.")

    @field_validator("name")
    @classmethod
    def _from_anywhere(cls, name: str) -> str:
        """Keep the whole path of a file, so that a run can be continued from another folder."""
        return absolute(name)

    @property
    def options(self) -> dict[str, Any]:
        """The environment's own options."""
        return dict(self.model_extra or {})


class PolicyConfig(Config):
    """How turns are sampled."""

    backend: Literal["transformers", "vllm"] = Field(
        "transformers", description="`transformers` samples in this process, `vllm` from servers."
    )
    temperature: float = Field(1.0, gt=0, description="Divides the logits, in sampling and in the learner alike.")
    servers: ServerConfig = Field(default=ServerConfig(), description="The servers of `vllm`.")

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, given: Any) -> Any:
        """Say where options went that were once here."""
        if isinstance(given, dict) and given.get("backend") == "scripted":
            raise ConfigError("policy.backend = 'scripted' is no policy.", "Set roles.planner.speaks=expert.")
        if isinstance(given, dict) and isinstance(given.get("servers"), int):
            raise ConfigError("policy.servers is a section.", f"Set policy.servers.count={given['servers']}.")
        return given

    @model_validator(mode="after")
    def _effective(self) -> "PolicyConfig":
        inert = [name for name in ServerConfig.model_fields if is_changed(self.servers, name)]
        if inert and self.backend != "vllm":
            raise ConfigError(
                f"policy.servers.{inert[0]} does nothing without servers.", "Set policy.backend=vllm as well."
            )
        return self


class EvaluationConfig(Config):
    """Evaluation on the held-out split while training."""

    every: int = Field(0, ge=0, description="Iterations between evaluations; 0 evaluates before and after only.")
    num_tasks: int = Field(200, ge=0, description="Held-out tasks of each evaluation; 0 never evaluates.")


class RunConfig(Config):
    """The extent of a run, and what is kept of it."""

    iterations: int = Field(40, ge=1, description="Rounds of collecting and updating.")
    tasks_per_iteration: int = Field(16, ge=1, description="Tasks of one iteration, a group each.")
    group_size: int = Field(8, ge=1, description="Trajectories of one task.")
    seed: int = Field(0, ge=0, description="Fixes tasks, sampling and updates.")
    out: str = Field("runs", description="Folder in which the run makes its own.")
    checkpoint_every: int = Field(5, ge=1, description="Iterations between checkpoints; the last one is always kept.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that stay on disk.")
    max_minutes: float | None = Field(
        None, gt=0, description="Minutes after which no iteration starts; the run then ends as if it were complete."
    )
    max_staleness: int = Field(
        0,
        ge=0,
        description="Iterations that may lie between sampling a group and learning from it; 0 samples and learns in "
        "turn, more lets sampling go on during the update.",
    )
    stale: Literal["drop", "keep"] = Field(
        "drop", description="What happens to a group that has become older: dropped and counted, or learned from."
    )
    threads: Threads = Field(
        "auto",
        description="Threads that compute; `auto` is what cores and model have use for, and is stored as the number "
        "that a resumed run takes again.",
    )
    shuffle_rewards: bool = Field(
        False, description="Permute returns within each group: the control that must not learn."
    )


class TrainConfig(Config):
    """Everything that defines a run."""

    env: EnvironmentConfig = Field(description="The environment and its options.")
    model: ModelConfig = Field(default=ModelConfig(), description="The model.")
    policy: PolicyConfig = Field(default=PolicyConfig(), description="Sampling.")
    roles: SerializeAsAny[dict[str, RoleConfig]] = Field(
        default_factory=dict, description="Who speaks for each role, by its name; the planner is trained."
    )
    agent: AgentOptions = Field(default=ReAct(), description="The agent, and the limits of an episode.")
    rollout: RolloutConfig = Field(default=RolloutConfig(), description="How episodes are collected.")
    rewards: ShapingConfig = Field(default=ShapingConfig(), description="What turns are paid for.")
    algorithm: Algorithm = Field(default=Algorithm(), description="The method: eight keys, see docs/algorithms.md.")
    learner: LearnerConfig = Field(default=LearnerConfig(), description="The optimiser.")
    mismatch: MismatchConfig = Field(
        default=MismatchConfig(), description="When sampler and learner have drifted apart."
    )
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="Evaluation while training.")
    run: RunConfig = Field(default=RunConfig(), description="Extent, seed and folder.")

    @field_validator("roles", mode="before")
    @classmethod
    def _cast(cls, given: Any) -> Any:
        """Read each role by who speaks for it."""
        return read_roles(given)

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        check_fit(self.algorithm, self.rewards, group_size=self.run.group_size)
        self._check_staleness()
        check_roles(self.roles)
        check_cast(self.agent, self.roles)
        if is_changed(self.model, "lora_alpha") and not self.model.lora_rank:
            raise ConfigError("model.lora_alpha does nothing without adapters.", "Set model.lora_rank as well.")
        return self

    def _check_staleness(self) -> None:
        if is_changed(self.run, "stale") and not self.run.max_staleness:
            raise ConfigError("run.stale does nothing at run.max_staleness=0.", "Leave it out.")
        if is_changed(self.mismatch, "max_stale_mean_abs_logprob") and not self.run.max_staleness:
            raise ConfigError(
                "mismatch.max_stale_mean_abs_logprob does nothing at run.max_staleness=0.", "Leave it out."
            )
        if not self.run.max_staleness:
            return
        given = f"run.max_staleness = {self.run.max_staleness}"
        if self.policy.backend != "vllm":
            raise ConfigError(
                f"{given} needs a policy that samples while the learner learns.", "Set policy.backend=vllm."
            )
        if not self.algorithm.sampler.draws_ahead:
            raise ConfigError(
                f"{given} draws tasks ahead, and algorithm.sampler.kind={self.algorithm.sampler.kind} chooses by what "
                "earlier iterations yielded.",
                "Set algorithm.sampler.kind=epoch, or run.max_staleness=0.",
            )
        slots = [slot for _, slot in self.algorithm.slots()]
        if not any(isinstance(s, Mismatched) or (isinstance(s, Surrogate) and s.correction) for s in slots):
            raise ConfigError(
                f"{given} learns from tokens of older weights, and nothing in the algorithm corrects for it.",
                "Set algorithm.loss.clipped.correction.kind=tis or icepop, or add a mask: "
                "algorithm.weights.masks.mismatched={}.",
            )

    @property
    def whole_algorithm(self) -> Algorithm:
        """The algorithm as it runs: with the control's shuffled rewards, if the run is one."""
        if not self.run.shuffle_rewards:
            return self.algorithm
        return self.algorithm.model_copy(update={"rewards": (*self.algorithm.rewards, Shuffled())})

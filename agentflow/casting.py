"""Casting: who speaks for each role of a run.

    roles:
      planner:  {speaks: policy, trained: true}                     # what a run has without a word
      verifier: {speaks: policy, model: {path: Qwen/Qwen3-4B}}      # a frozen policy of its own
      generator: {speaks: policy}                                   # the run's policy, with the weights of now
      judge:    {speaks: openai, model: gpt-5-mini}                 # text of a server; tools and scores may ask it too
      guide:    {speaks: expert}                                    # the environment's own expert

A role that says nothing else speaks `openai`, the planner `policy`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from agentflow.config import Config, suggest, validate_options
from agentflow.errors import ConfigError
from agentflow.models import ModelConfig, load_model
from agentflow.policies.frozen import FrozenModels
from agentflow.policies.in_process import TransformersPolicy
from agentflow.policies.openai import ChatConfig
from agentflow.policy import TrainablePolicy
from agentflow.renderer import Renderer
from agentflow.roles import PLANNER
from agentflow.speakers import ExpertSpeaker, Speaker, SpeechConfig, TextSpeaker, TokenSpeaker
from agentflow.starter_policies import Part, starter_for


class RoleConfig(Config):
    """Who speaks for a role."""

    speaks: Literal["policy", "openai", "expert"] = Field(
        "openai",
        description="`policy` samples tokens, `openai` is text of an OpenAI-compatible server, `expert` the "
        "environment's own.",
    )

    @property
    def is_trained(self) -> bool:
        """Whether what is said is learned from."""
        return bool(getattr(self, "trained", False))


class PolicyRole(RoleConfig):
    """A role that a policy speaks for."""

    speaks: Literal["policy"] = "policy"
    model: ModelConfig | None = Field(
        None, description="A model of its own; null for that of the run, with the weights that it has by now."
    )
    trained: bool = Field(False, description="Whether what is said is learned from.")
    temperature: float | None = Field(
        None, gt=0, description="Divides the logits; null for policy.temperature, which is that of every trained role."
    )
    max_turn_tokens: int | None = Field(None, ge=1, description="Most tokens of one turn; null for the agent's.")
    max_episode_tokens: int | None = Field(None, ge=2, description="Most tokens of a thread; null for the agent's.")


class TextRole(ChatConfig, RoleConfig):
    """A role that a frozen model behind a server speaks for, by text."""

    speaks: Literal["openai"] = "openai"


class ExpertRole(RoleConfig):
    """A role that the environment's expert speaks for."""

    speaks: Literal["expert"] = "expert"
    trained: bool = Field(False, description="Whether what is said is learned from, as if a policy had said it.")


_KINDS: Mapping[str, type[RoleConfig]] = {"policy": PolicyRole, "openai": TextRole, "expert": ExpertRole}


def read_roles(given: Any) -> Any:
    """Turn the `roles` section of a configuration into the options of each role; the planner is always among them.

    Raises:
        ConfigError: A name is none, a role speaks in no known way, or has an option that its kind does not know.
    """
    if not isinstance(given, Mapping):
        return given  # what is no section is refused by its type
    defaults: dict[str, Any] = {PLANNER: {"speaks": "policy", "trained": True}}
    return {name: _read_role(str(name), given.get(name, {}), defaults.get(name, {})) for name in {**defaults, **given}}


def _read_role(name: str, given: Any, defaults: Mapping[str, Any]) -> Any:
    if not name.isidentifier():
        raise ConfigError(f"{name!r} is no name of a role.", "Use letters, digits and underscores.")
    if not isinstance(given, Mapping):
        return given
    if "backend" in given:
        raise ConfigError(f"There is no option 'roles.{name}.backend'.", f"Write roles.{name}.speaks=openai.")
    speaks = {**defaults, **given}.get("speaks", "openai")
    if speaks not in _KINDS:
        raise ConfigError(f"roles.{name}.speaks = {speaks!r} is not known.", suggest(str(speaks), list(_KINDS)))
    kind = _KINDS[speaks]
    known = {key: value for key, value in defaults.items() if key in kind.model_fields}
    return validate_options(kind, {**known, **given, "speaks": speaks}, owner=f"roles.{name}")


def check_roles(roles: Mapping[str, RoleConfig]) -> None:
    """Refuse what cannot be trained.

    Raises:
        ConfigError: Others than the planner would be learned from, or it has a model or temperature of its own.
    """
    for name, role in roles.items():
        if role.is_trained != (name == PLANNER):
            raise ConfigError(
                f"roles.{name}.trained = {str(role.is_trained).lower()}: a run learns from the turns of {PLANNER!r}.",
                f"Set roles.{name}.trained={str(not role.is_trained).lower()}."
                if hasattr(role, "trained")
                else f"Set roles.{name}.speaks=policy, or expert.",
            )
    planner = roles[PLANNER]
    own = [name for name in ("model", "temperature") if getattr(planner, name, None) is not None]
    if own:
        raise ConfigError(
            f"roles.{PLANNER}.{own[0]} does nothing for the role that is trained.",
            "Set model.path." if own[0] == "model" else "Set policy.temperature.",
        )


def text_roles(roles: Mapping[str, RoleConfig]) -> dict[str, ChatConfig]:
    """Return the roles that a server speaks for by text."""
    return {name: role for name, role in roles.items() if isinstance(role, TextRole)}


@dataclass(slots=True)
class Casting:
    """What the speakers of a run are made of.

    Attributes:
        policy: The run's policy.
        renderer: Its messages to tokens and back.
        texts: The models that speak by text.
        limits: How much a role may say that has no limits of its own.
        temperature: What the run's policy divides its logits by.
        part: What the planner plays, by which `starter` is understood.
    """

    policy: TrainablePolicy
    renderer: Renderer
    texts: FrozenModels
    limits: SpeechConfig
    temperature: float
    part: Part
    _loaded: dict[tuple[str, ModelConfig], tuple[TrainablePolicy, Renderer]] = field(default_factory=dict)

    def speakers(self, roles: Mapping[str, RoleConfig]) -> dict[str, Speaker]:
        """Return who speaks for each role.

        Raises:
            UserError: A model cannot be loaded, or has no positions for what its role may say.
        """
        return {name: self._speaker(name, role) for name, role in roles.items()}

    def _speaker(self, name: str, role: RoleConfig) -> Speaker:
        if isinstance(role, TextRole):
            return TextSpeaker(self.texts.roles[name])
        if not isinstance(role, PolicyRole):
            return ExpertSpeaker(self.renderer, config=self.limits)
        policy, renderer = self._policy_of(name, role)
        limits = self._limits_of(role)
        if limits.max_episode_tokens > policy.max_length:
            raise ConfigError(
                f"roles.{name} may say {limits.max_episode_tokens} tokens in one thread, more than the "
                f"{policy.max_length} that its model has positions for.",
                f"Set roles.{name}.max_episode_tokens={policy.max_length} or less.",
            )
        return TokenSpeaker(policy, renderer, config=limits, temperature=role.temperature or self.temperature)

    def _limits_of(self, role: PolicyRole) -> SpeechConfig:
        own = {name: value for name in SpeechConfig.model_fields if (value := getattr(role, name)) is not None}
        return SpeechConfig(**{name: getattr(self.limits, name) for name in SpeechConfig.model_fields} | own)

    def _policy_of(self, name: str, role: PolicyRole) -> tuple[TrainablePolicy, Renderer]:
        """Return the policy that speaks for a role; roles that name the same model share one."""
        if role.model is None:
            return self.policy, self.renderer
        part = self.part.model_copy(update={"role": name})
        key = (starter_for(role.model.path, part), role.model)
        if key not in self._loaded:
            loaded = load_model(role.model, env=part.env, agent=part.agent, role=name)
            renderer = Renderer(loaded.tokenizer, self.renderer.tools)
            self._loaded[key] = TransformersPolicy(loaded.model, sorted(renderer.stop_ids)), renderer
        return self._loaded[key]

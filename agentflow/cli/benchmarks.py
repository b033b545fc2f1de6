"""`agentflow bench rollout`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import typer

from agentflow.cli.tables import print_table
from agentflow.cli.words import flag_overrides, hush_libraries, overrides
from agentflow.config import gather, merge, validate_options
from agentflow.errors import ConfigError
from agentflow.models import load_model
from agentflow.renderer import Renderer
from agentflow.roles import PLANNER
from agentflow.rollout_bench import Load, Speed, compare
from agentflow.trainers.parts import sampling_policy, use_threads
from agentflow.trainers.settings import TrainConfig

_BETWEEN_TOKENS = 64  # more than any chat template writes around a short message
_OPTIONS = "--policy --model --episodes --concurrency --turns --tokens --tool-s --slow-share --repeats".split()


def rollout(words: Sequence[str], load: Load, *, policy: str | None, model: str | None, repeats: int) -> None:
    """Measure a rollout with slow tools beside the raw engine and beside a lockstep loop, and print a table.

    Raises:
        UserError: Something the user can mend.
    """
    typed = overrides(words, known=_OPTIONS)
    chosen = merge(gather(overrides=typed), flag_overrides({"policy.backend": policy, "model.path": model}, typed))
    config = validate_options(TrainConfig, merge({"env": {"name": "websearch"}}, chosen), "The configuration")
    if config.roles[PLANNER].speaks == "expert":
        raise ConfigError("roles.planner.speaks=expert samples nothing that could be measured.", "Leave it out.")
    longest = load.turns * (load.turn_tokens + _BETWEEN_TOKENS)
    if longest > config.agent.max_episode_tokens:
        raise ConfigError(
            f"{load.turns} turns of {load.turn_tokens} tokens make an episode of about {longest}, more than "
            f"agent.max_episode_tokens = {config.agent.max_episode_tokens}.",
            f"Set agent.max_episode_tokens={longest}, as far as the model has positions.",
        )
    hush_libraries()
    loaded = load_model(config.model, env=config.env.name)
    use_threads(config.run.threads, loaded.model)
    renderer = Renderer(loaded.tokenizer)
    sampler = sampling_policy(config, loaded, stop_ids=())
    with tempfile.TemporaryDirectory(prefix="agentflow-bench-") as folder, sampler.serving(Path(folder)):
        speeds = compare(sampler, renderer, load=load, repeats=repeats)
    _print(speeds, load)


def _print(speeds: Sequence[Speed], load: Load) -> None:
    """Print medians, and the ratios of each repeat's neighbours."""
    by_name: dict[str, list[Speed]] = {}
    for speed in speeds:
        by_name.setdefault(speed.name, []).append(speed)
    rows = [
        (name, f"{median(s.tokens_per_s for s in found):,.0f}", f"{median(s.duration_s for s in found):.2f}")
        for name, found in by_name.items()
    ]
    print_table(("way", "sampled tokens/s", "seconds"), rows)
    pairs = list(zip(by_name["rollout"], by_name["engine"], by_name["lockstep"], strict=True))
    share = median(played.tokens_per_s / engine.tokens_per_s for played, engine, _ in pairs)
    gain = median(lockstep.duration_s / played.duration_s for played, _, lockstep in pairs)
    typer.echo(
        f"{load.episodes} episodes of {load.turns} turns of {load.turn_tokens} tokens, tools {load.tool_s:g} s: "
        f"{share:.1%} of the engine, {gain:.2f} times as fast as lockstep"
    )

"""`agentflow eval`."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast, get_args

from rich.console import Console as RichConsole

from agentflow.cli.tables import print_json, print_table
from agentflow.cli.words import flag_overrides, hush_libraries, overrides, section
from agentflow.config import gather, merge, validate_options
from agentflow.environment import Split
from agentflow.errors import ConfigError, DataError
from agentflow.models import training_defaults
from agentflow.runs import StoredRun
from agentflow.trainers.evaluate import Evaluation
from agentflow.trainers.evaluate import evaluate as play
from agentflow.trainers.parts import assemble
from agentflow.trainers.settings import TrainConfig
from agentflow.view.console import open_console

_OPTIONS = "--env --tasks --samples --split --seed --json".split()
_SECTIONS = ("env", "model", "policy", "roles", "agent", "rollout")


@dataclass(frozen=True, slots=True)
class Request:
    """What is measured.

    Attributes:
        num_tasks: Tasks to pose.
        num_samples: Episodes of each.
        split: `train` or `heldout`.
        seed: Fixes the sampling.
    """

    num_tasks: int
    num_samples: int
    split: str
    seed: int


def evaluate(target: str, request: Request, *, env: str | None, words: Sequence[str], as_json: bool) -> None:
    """Play tasks with a trained run or a model and print how it went.

    Args:
        target: A run's folder, a model folder, a hub id or `starter`.
        request: What is measured.
        env: The environment; None takes the run's own.
        words: Options that differ from the run's configuration.
        as_json: Print one JSON object.

    Raises:
        UserError: Something the user can mend.
    """
    if request.split not in get_args(Split):
        raise ConfigError(f"There is no split {request.split!r}.", f"Known: {', '.join(get_args(Split))}.")
    config = evaluation_config(target, env=env, words=words)
    hush_libraries()
    parts = assemble(config)
    # Standard output is for the result.
    with (
        open_console(output=RichConsole(stderr=True)) as console,
        TemporaryDirectory(prefix="agentflow-eval-") as folder,
        parts.policy.serving(Path(folder)),
    ):
        found, _ = play(
            parts,
            split=cast(Split, request.split),
            num_tasks=request.num_tasks,
            num_samples=request.num_samples,
            seed=request.seed,
            progress=lambda done, total: console.progress(done, total, "evaluation"),
        )
    if as_json:
        costs = parts.frozen.metrics()
        print_json({"target": target, "env": config.env.name, "seed": request.seed, **asdict(found), **costs})
    else:
        _print_evaluation(found)
        for line in parts.frozen.report():
            print(line)


def evaluation_config(target: str, *, env: str | None, words: Sequence[str]) -> TrainConfig:
    """Build the configuration under which a run or a model is evaluated.

    Raises:
        ConfigError: An option is unknown or wrong, or no environment was chosen.
        DataError: The run has no checkpoint yet.
    """
    typed = overrides(words, known=_OPTIONS)
    return configured(target, merge(gather(overrides=typed), flag_overrides({"env.name": env}, typed)), env=env)


def configured(target: str, chosen: Mapping[str, Any], *, env: str | None) -> TrainConfig:
    """Build the configuration of an evaluation from sections.

    Args:
        target: A run's folder, a model folder, a hub id or `starter`.
        chosen: Options that differ from the run's configuration, section by section.
        env: The environment, where it is another one than the run's.

    Raises:
        ConfigError: An option is unknown or wrong, or no environment was chosen.
        DataError: The run has no checkpoint yet.
    """
    stored = _stored_values(target)
    if env is not None:
        stored["env"] = {}  # the options of the run's own environment say nothing about another
    if section(chosen, "policy").get("backend", "vllm") != "vllm":
        # What is said of the run's servers says nothing about another policy.
        kept = {name: value for name, value in section(stored, "policy").items() if name != "servers"}
        stored = {**stored, "policy": kept}
    values = merge(stored, chosen)
    inert = [name for name in chosen if name in TrainConfig.model_fields and name not in _SECTIONS]
    if inert:
        raise ConfigError(f"{inert[0]} does nothing in an evaluation.", f"What counts: {', '.join(_SECTIONS)}.")
    if not section(values, "env").get("name"):
        raise ConfigError(
            f"{target!r} is not the folder of a run, which would name an environment, and --env was not given.",
            "Check the path, or say --env websearch or --env path/to/file.py:Class.",
        )
    return validate_options(TrainConfig, values, "The configuration")


def _stored_values(target: str) -> dict[str, Any]:
    if not Path(target, "config.yaml").is_file():
        return {"model": {"path": target}}
    run = StoredRun(Path(target))
    stored = run.config
    checkpoint = run.latest_checkpoint()
    if checkpoint is None:
        resume = f"agentflow train --resume {shlex.quote(target)}"
        raise DataError(f"{target} has no checkpoint yet.", f"Continue it: {resume}")
    if "stages" in stored:  # a run of imitation, whose limits were measured on what it imitated
        agent = {**stored["agent"], **training_defaults(str(checkpoint.path)).get("agent", {})}
        stored = {"env": stored["stages"][-1]["env"], "model": stored["model"], "agent": agent}
    # The checkpoint is loaded as it is: adapters come with it, new ones would start from nothing.
    model = {name: value for name, value in stored["model"].items() if not name.startswith("lora_")}
    # How the run learned says nothing about how it is measured, and might not fit another policy.
    kept = {name: values for name, values in stored.items() if name in _SECTIONS}
    return {**kept, "model": {**model, "path": str(checkpoint.path)}}


def _print_evaluation(found: Evaluation) -> None:
    low, high = found.interval or (None, None)
    rows: list[tuple[str, Any]] = [
        ("success", found.success),
        ("95 % interval", f"{low:.3f} to {high:.3f}" if low is not None else None),
        *((f"pass@{k}", value) for k, value in found.pass_at_k.items()),
        ("tasks", f"{found.num_tasks} ({found.split}), {found.num_samples} episodes each"),
        ("turns", found.turns),
        *found.status.items(),
        ("seconds", found.duration_s),
    ]
    print_table(("", ""), rows)
    for key, table in found.by_key.items():
        cells = [(name, row["success"], round(row["num_tasks"])) for name, row in table.items()]
        print_table((key, "success", "tasks"), cells)
    if found.terms:
        terms = [(name, term["turn"], term["episode"], term["num_episodes"]) for name, term in found.terms.items()]
        print_table(("reward term", "mean of a turn", "sum of an episode", "episodes with it"), terms)

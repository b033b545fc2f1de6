"""The commands and their options; each one imports what it needs when it runs."""

# ruff: noqa: PLC0415  `agentflow --help` must not import torch
from pathlib import Path
from typing import Annotated

import typer

from agentflow.cli.algorithm_commands import algos

_PASS_ON = {"ignore_unknown_options": True}

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value ...]", show_default=False, help="Options of the configuration."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that `train` printed as `run: PATH`.")]
ConfigFiles = Annotated[
    list[Path] | None, typer.Option("--config", metavar="FILE", help="A YAML file of options; may be repeated.")
]
EnvName = Annotated[
    str | None, typer.Option("--env", metavar="ENV", help="A name, `module:Class` or `path/to/file.py:Class`.")
]
ModelName = Annotated[str | None, typer.Option("--model", metavar="M", help="A folder, a run, a hub id or `starter`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]

app = typer.Typer(rich_markup_mode=None, add_completion=False, help="Train language-model agents that use tools.")
envs = typer.Typer(rich_markup_mode=None, help="Environments: list, inspect, check, start a new one.")
tools = typer.Typer(rich_markup_mode=None, help="Tools as servers.")
config = typer.Typer(rich_markup_mode=None, help="The options of a training run.")
sandbox = typer.Typer(rich_markup_mode=None, help="Sandboxes: what works here, and a trial.")
bench = typer.Typer(rich_markup_mode=None, help="Measurements on this machine.")
serve = typer.Typer(rich_markup_mode=None, help="Serve a tool over HTTP.")
app.add_typer(envs, name="envs")
app.add_typer(algos, name="algos")
app.add_typer(tools, name="tools")
app.add_typer(config, name="config")
app.add_typer(sandbox, name="sandbox")
app.add_typer(bench, name="bench")
tools.add_typer(serve, name="serve")


def _check_environment(env: str | None) -> None:
    """Say what is wrong with a user's file, or its name, before torch is loaded: that takes seconds."""
    if env is not None:
        from agentflow.environment import load_environment

        load_environment(env)


@app.callback()
def _shared(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; goes anywhere.")] = False,
) -> None:
    # `main` takes --debug out of the words before they get here.
    assert not debug, "--debug is taken out by main"


@app.command(context_settings=_PASS_ON)
def train(
    words: Words = None,
    env: EnvName = None,
    algo: Annotated[str | None, typer.Option(metavar="NAME", help="A recipe, such as flow-grpo or dapo.")] = None,
    agent: Annotated[str | None, typer.Option(metavar="KIND", help="react, or one's own: FILE.py:Class.")] = None,
    model: ModelName = None,
    policy: Annotated[str | None, typer.Option(metavar="KIND", help="transformers or vllm.")] = None,
    files: ConfigFiles = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where runs are kept.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Fixes tasks, sampling and updates.")] = None,
    iterations: Annotated[int | None, typer.Option(metavar="N", help="Rounds of collecting and updating.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue this run, exactly.")] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="With --resume: go on with files of yours that have changed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, train nothing.")] = False,
) -> None:
    """Train an agent by reinforcement learning; the last line says where the run is."""
    _check_environment(env)
    from agentflow.cli import settings, training

    flags = {
        "env.name": env,
        "agent.kind": agent,
        "model.path": model,
        "policy.backend": policy,
        "run.out": None if out is None else str(out),
        "run.seed": seed,
        "run.iterations": iterations,
    }
    given = settings.Given(words=words or [], files=files or [], flags=flags, algorithm=algo)
    training.train(given, resume=resume, dry_run=dry_run, accept_changes=accept_changes)


@app.command(context_settings=_PASS_ON)
def sft(
    words: Words = None,
    env: EnvName = None,
    updates: Annotated[int | None, typer.Option(metavar="N", help="Updates; 420 or 500 if not given.")] = None,
    from_run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Imitate this run's successes instead of the expert.")
    ] = None,
    model: ModelName = None,
    files: ConfigFiles = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where runs are kept.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Fixes experts and order.")] = None,
) -> None:
    """Teach a model by imitation: the environment's expert, or the successes of a run."""
    _check_environment(env)
    from agentflow.cli import imitation

    flags = {"model.path": model, "run.out": None if out is None else str(out), "run.seed": seed}
    source = None if from_run is None else str(from_run)
    stage = {"env.name": env, "stage.updates": updates, "stage.from_run": source}
    imitation.sft(words or [], files or [], flags=flags, stage=stage)


@app.command("eval", context_settings=_PASS_ON)
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or a model as for --model.")],
    words: Words = None,
    env: EnvName = None,
    tasks: Annotated[int, typer.Option(min=1, metavar="N", help="Tasks to pose.")] = 200,
    samples: Annotated[int, typer.Option(min=1, metavar="K", help="Episodes of each task, for pass@k.")] = 1,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="heldout or train.")] = "heldout",
    seed: Annotated[int, typer.Option(metavar="N", help="Fixes the sampling.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure how often a trained run, or a model, solves tasks it never saw."""
    _check_environment(env)
    from agentflow.cli import evaluation

    request = evaluation.Request(num_tasks=tasks, num_samples=samples, split=split, seed=seed)
    evaluation.evaluate(target, request, env=env, words=words or [], as_json=as_json)


@app.command(context_settings=_PASS_ON)
def vllm(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[--vllm-option=value ...]", help="Words of vLLM's command line.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="M", help="A folder, a run, a hub id or `starter`.")] = "starter",
    env: Annotated[str, typer.Option(metavar="ENV", help="The environment, by which `starter` is understood.")] = "",
    host: Annotated[str, typer.Option(metavar="HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", help="The port to listen on.")] = 8100,
    length: Annotated[int, typer.Option(metavar="N", help="Most tokens of an episode.")] = 2048,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="bfloat16, float32, or auto.")] = "auto",
    lora_rank: Annotated[int, typer.Option(metavar="R", min=0, help="model.lora_rank of the learner.")] = 0,
) -> None:
    """Serve a model with vLLM for a learner elsewhere, which names it in policy.servers.urls and sends its weights."""
    from agentflow.cli import vllm_server

    code = vllm_server.serve(
        model, words or [], env=env, host=host, port=port, length=length, dtype=dtype, lora_rank=lora_rank
    )
    raise typer.Exit(code)


@app.command(context_settings=_PASS_ON)
def score(run: RunFolder, words: Words = None, as_json: AsJson = False) -> None:
    """Score the stored trajectories of a run again, with other `rewards.key=value` options."""
    from agentflow.cli import scoring

    scoring.score(run, words or [], as_json=as_json)


@app.command()
def report(run: RunFolder) -> None:
    """Write the run's learning curves and its report.html."""
    from agentflow.cli import reporting

    reporting.report(run)


@app.command()
def doctor() -> None:
    """Say what this machine can run, what is missing, and the fix."""
    from rich.console import Console

    from agentflow.doctor import can_train, diagnose, render

    checks = diagnose()
    render(checks, Console())
    raise typer.Exit(0 if can_train(checks) else 1)


@app.command()
def version() -> None:
    """Print the version."""
    from agentflow.version import __version__

    typer.echo(__version__)


@config.command("show", context_settings=_PASS_ON)
def show(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION ...] [section.key=value ...]",
            show_default=False,
            help="Sections, such as learner, and options.",
        ),
    ] = None,
    env: EnvName = None,
    algo: Annotated[str | None, typer.Option(metavar="NAME", help="A recipe.")] = None,
    files: ConfigFiles = None,
    of_sft: Annotated[
        bool, typer.Option("--sft", help="The options of `agentflow sft`, not those of `train`.")
    ] = False,
) -> None:
    """List every option with its type, value and meaning, or those of a SECTION; with --env also its own."""
    if of_sft:
        from agentflow.cli import imitation

        imitation.show_options(words or [], files or [], env=env)
        return
    from agentflow.cli import settings, training

    given = settings.Given(words=words or [], files=files or [], flags={"env.name": env}, algorithm=algo)
    training.show_options(given)


@envs.command("list")
def list_environments() -> None:
    """List the installed environments."""
    from agentflow.cli import environments

    environments.list_installed()


@envs.command()
def info(env: Annotated[str, typer.Argument(metavar="ENV")]) -> None:
    """Show an environment's options, tools, reward terms and a task."""
    from agentflow.cli import environments

    environments.show(env)


@envs.command(context_settings=_PASS_ON)
def check(env: Annotated[str, typer.Argument(metavar="ENV")], words: Words = None) -> None:
    """Check that an environment keeps its contract."""
    from agentflow.cli import environments

    environments.check(env, words or [])


@envs.command(context_settings=_PASS_ON)
def validate(
    env: Annotated[str, typer.Argument(metavar="ENV")],
    words: Words = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tasks of each split; all if not given.")
    ] = None,
) -> None:
    """Check that the gold answer of every task scores full marks."""
    from agentflow.cli import environments

    environments.validate(env, words or [], num_tasks=tasks)


@envs.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name such as my_env.")],
    folder: Annotated[Path, typer.Option("--in", metavar="DIR", help="Where the file is written.")] = Path(),
    expert: Annotated[
        bool, typer.Option("--expert", help="One with an expert, from which agentflow sft makes a starter policy.")
    ] = False,
) -> None:
    """Write a small environment of your own, with its test."""
    from agentflow.cli import environments

    environments.new(name, folder, expert=expert)


@serve.command("search")
def serve_search(
    corpus: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSONL of {id, title, text}; else the embedded encyclopaedia.")
    ] = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="PORT", help="The port to listen on.")] = 8000,
) -> None:
    """Serve a search engine: POST /retrieve, as Search-R1 speaks it."""
    from agentflow.cli import serving

    serving.serve_search(corpus, host, port=port)


@serve.command("navigation", context_settings=_PASS_ON)
def serve_navigation(
    words: Words = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="PORT", help="The port to listen on.")] = 5001,
    simulators: Annotated[int, typer.Option(min=1, metavar="N", help="Most environments at once.")] = 64,
) -> None:
    """Serve navigation's houses as ActiveVLN's simulator server: POST /environments, /batch/step and the others."""
    from agentflow.cli import serving

    serving.serve_navigation(words or [], host, port=port, simulators=simulators)


@bench.command("rollout", context_settings=_PASS_ON)
def bench_rollout(
    words: Words = None,
    policy: Annotated[str | None, typer.Option(metavar="KIND", help="transformers or vllm.")] = None,
    model: ModelName = None,
    episodes: Annotated[int, typer.Option(min=1, metavar="N", help="Episodes in all.")] = 256,
    concurrency: Annotated[int, typer.Option(min=1, metavar="N", help="Episodes that run at once.")] = 256,
    turns: Annotated[int, typer.Option(min=1, metavar="K", help="Turns of each.")] = 4,
    tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of each turn.")] = 32,
    tool_s: Annotated[float, typer.Option("--tool-s", min=0, metavar="S", help="Seconds of a tool call.")] = 0.5,
    slow_share: Annotated[float, typer.Option("--slow-share", min=0, max=1, help="Calls ten times as slow.")] = 0.0,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Measurements of each way.")] = 3,
) -> None:
    """Measure how much of an engine's speed a rollout keeps while its tools are slow."""
    from agentflow.cli import benchmarks
    from agentflow.rollout_bench import Load

    load = Load(episodes, concurrency, turns, turn_tokens=tokens, tool_s=tool_s, slow_share=slow_share)
    benchmarks.rollout(words or [], load, policy=policy, model=model, repeats=repeats)


@sandbox.command("doctor")
def sandbox_doctor(
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Let programs try to get out of those that work.")
    ] = False,
) -> None:
    """Try each sandbox by running a program that looks around, and say which ones hold."""
    from agentflow.cli import sandboxes

    raise typer.Exit(0 if sandboxes.doctor(thorough=thorough) else 1)


@sandbox.command("run")
def sandbox_run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Python program, or a shell script *.sh.")],
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="The sandbox; by default the first that works.")
    ] = "auto",
    cpu_s: Annotated[float, typer.Option(metavar="S", help="CPU seconds.", min=0.01)] = 5.0,
    wall_s: Annotated[float, typer.Option(metavar="S", help="Wall seconds.", min=0.01)] = 20.0,
    memory_mb: Annotated[int, typer.Option(metavar="MB", help="Megabytes of memory.", min=16)] = 512,
    packages: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="PACKAGE", help="An installed package that programs may import; repeatable."),
    ] = None,
) -> None:
    """Run a program in a sandbox; its input is standard input."""
    from agentflow.cli import sandboxes

    limits = {"cpu_s": cpu_s, "wall_s": wall_s, "memory_mb": memory_mb}
    raise typer.Exit(sandboxes.run(file, backend=backend, limits=limits, packages=packages or []))


@sandbox.command("serve")
def sandbox_serve(
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="The sandbox; by default the first that works.")
    ] = "auto",
    host: Annotated[
        str, typer.Option(metavar="HOST", help="The address; others than this machine's take AGENTFLOW_SANDBOX_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="PORT", help="The port to listen on.")] = 8080,
    packages: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="PACKAGE", help="An installed package that programs may import; repeatable."),
    ] = None,
) -> None:
    """Run programs for others: POST /run_code, as SandboxFusion speaks it."""
    from agentflow.sandbox.over_http.server import serve

    serve(backend, host, port=port, packages=packages or [])


@sandbox.command("image")
def sandbox_image(
    name: Annotated[str, typer.Option(metavar="NAME", help="What it is called.")] = "agentflow-sandbox:latest",
    packages: Annotated[
        list[str] | None, typer.Option("--with", metavar="PACKAGE", help="An installed package to put in; repeatable.")
    ] = None,
) -> None:
    """Make the image of the docker sandbox out of this Python, and give it to the engine; nothing is downloaded."""
    from agentflow.cli import sandboxes

    sandboxes.image(name, packages or [])


@sandbox.command("gc")
def sandbox_gc() -> None:
    """Remove containers of processes on this machine that have died."""
    from agentflow.cli import sandboxes

    sandboxes.gc()

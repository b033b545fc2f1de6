"""How vLLM servers of our own are started: which Python, which arguments, which GPUs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from agentflow.errors import ConfigError
from agentflow.policies.vllm.server_process import PLUGIN
from agentflow.policies.vllm.servers import BASE, PYTHON_VARIABLE, Launch, ServerConfig
from agentflow.threads import NUMBER, Cores, available_cores, waiting_variables

INSTALL = (
    "vLLM may live in an environment of its own: `make vllm`, then "
    f"`export {PYTHON_VARIABLE}=$PWD/.venv-vllm/bin/python`, or set policy.servers.python."
)
_OURS = frozenset(
    "--model --uds --port --host --dtype --load-format --max-model-len --max-num-seqs --logprobs-mode "
    "--worker-extension-cls --weight-transfer-config --served-model-name --skip-tokenizer-init --api-key "
    "--enable-lora --max-lora-rank --max-loras --max-cpu-loras --lora-dtype --lora-modules "
    "--lora-target-modules --fully-sharded-loras".split()
)
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_UNCHECKED = ("--data-parallel", "--pipeline-parallel")
_MIN_BATCHED_TOKENS = 8192
_CORES = "VLLM_CPU_OMP_THREADS_BIND"
_FAST_COPIES = {
    "GLIBC_TUNABLES": "glibc.cpu.x86_non_temporal_threshold=0x100000",  # copies of 1 MB and more stream; see `copies`
    "THP_MEM_ALLOC_ENABLE": "1",  # torch asks for large pages, whose addresses are found sooner
}


@dataclass(frozen=True, slots=True)
class Served:
    """What a server is to serve.

    Attributes:
        folder: A folder with the model's config.json; its weights come by transfer.
        dtype: Dtype of the weights, as torch names it.
        max_length: Most tokens of an episode.
        gpus: GPUs that are visible to this process; with none, servers run on the CPU.
        learner_gpu: Which of them holds the learner's weights, if one does.
        lora_rank: Rank of the adapters that servers keep room for; 0 for none.
        lora_modules: Names of the layers that have adapters; empty for all that could, embeddings among them.
    """

    folder: Path
    dtype: str
    max_length: int
    gpus: int
    lora_rank: int
    learner_gpu: int | None = None
    lora_modules: Sequence[str] = ()


def served_lora_rank(rank: int) -> int:
    """Return the rank that a server is started with to hold adapters of a rank: vLLM knows a few only.

    Raises:
        ConfigError: vLLM has none that is large enough.
    """
    enough = [served for served in (0, *_LORA_RANKS) if served >= rank]
    if not enough:
        raise ConfigError(
            f"model.lora_rank = {rank} is above {_LORA_RANKS[-1]}, vLLM's largest.", "Use policy.backend=transformers."
        )
    return enough[0]


def check(config: ServerConfig, *, gpus: int) -> str:
    """Return the interpreter that runs the servers, and refuse what none could be started with.

    Args:
        config: The servers.
        gpus: GPUs that are visible to this process.

    Raises:
        ConfigError: There are not enough GPUs, an argument is ours to give, or vLLM is missing.
    """
    _check_words(config.args)
    needed = config.count * config.gpus
    if needed > gpus:
        raise ConfigError(
            f"policy.servers.count = {config.count} with policy.servers.gpus = {config.gpus} takes {needed} GPUs; "
            f"{gpus} visible.",
            "Lower policy.servers.count or policy.servers.gpus.",
        )
    return server_python(config)


def launches(
    config: ServerConfig, served: Served, *, python: str, logs: Path, cores: Cores | None = None
) -> list[Launch]:
    """Return how each server is started.

    Args:
        config: The servers.
        served: What they serve.
        python: What `check` returned.
        logs: Folder of their logs.
        cores: What they may use of this machine's cores; None looks.
    """
    args = [*arguments(config, served), *config.args]
    environment = variables(config, served, cores=cores)
    return [
        Launch(python, logs / f"server-{i}.log", args, {**_placement(i, config, served), **environment})
        for i in range(config.count)
    ]


def _check_words(words: Sequence[str]) -> None:
    given = [word.partition("=")[0].replace("_", "-") for word in words]
    taken = [name for name in given if name in _OURS]
    if taken:
        raise ConfigError(f"policy.servers.args holds {taken[0]}, which AgentFlow sets itself.", "Leave it out.")
    unchecked = [name for name in given if name.startswith(_UNCHECKED) or name in ("-dp", "-pp")]
    if unchecked:
        raise ConfigError(
            f"policy.servers.args holds {unchecked[0]}: AgentFlow could not check the weights of all its ranks.",
            "Use more servers (policy.servers.count), or --tensor-parallel-size.",
        )


def server_python(config: ServerConfig) -> str:
    """Return the interpreter that runs servers.

    Raises:
        ConfigError: No interpreter with vLLM is known.
    """
    chosen = config.python if config.python != "auto" else os.environ.get(PYTHON_VARIABLE, "")
    if not chosen and find_spec("vllm") is not None:
        return sys.executable
    if not chosen:
        raise ConfigError("policy.backend=vllm needs vLLM, which this Python does not have.", INSTALL)
    path = shutil.which(Path(chosen).expanduser())
    if path is None:
        raise ConfigError(f"The Python for vLLM, {chosen!r}, is no program.", INSTALL)
    question = "import importlib.util as u; print(u.find_spec('vllm') is not None)"
    try:
        answer = subprocess.run([path, "-c", question], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"The Python for vLLM, {chosen!r}, cannot be run: {error}.", INSTALL) from error
    if answer.stdout.strip() != "True":
        raise ConfigError(f"The Python for vLLM, {chosen!r}, has no vLLM.", INSTALL)
    # A virtual environment's interpreter is a link: followed, it would forget its environment.
    return os.path.abspath(path)


def variables(config: ServerConfig, served: Served, *, cores: Cores | None = None) -> dict[str, str]:
    """Return the environment variables of a server.

    Args:
        config: The servers.
        served: What they serve.
        cores: What they may use of this machine's cores; None looks.
    """
    switches = ["AGENTFLOW_SERVER", "VLLM_SERVER_DEV_MODE", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE"]
    if served.lora_rank:
        switches.append("VLLM_ALLOW_RUNTIME_LORA_UPDATING")
    if served.gpus:
        return dict.fromkeys(switches, "1")
    # Else vLLM 0.32, in spite of --enforce-eager, compiles parts of its sampler at the first turn: half a minute.
    switches.append("TORCHDYNAMO_DISABLE")
    threads = {**waiting_variables(), **_within_quota(cores or available_cores(), config.count)}
    return {**_FAST_COPIES, **threads, **dict.fromkeys(switches, "1"), "VLLM_CPU_KVCACHE_SPACE": str(config.cache_gb)}


def arguments(config: ServerConfig, served: Served) -> list[str]:
    """Return vLLM's command line for a server whose weights a learner sends."""
    words = [
        f"--model={served.folder}",
        f"--served-model-name={BASE}",
        "--skip-tokenizer-init",
        "--load-format=dummy",
        f"--dtype={served.dtype}",
        f"--max-model-len={served.max_length}",
        f"--max-num-seqs={config.max_sequences}",
        "--logprobs-mode=processed_logprobs",
        "--enable-scale-out",
        f"--worker-extension-cls={PLUGIN}.WorkerExtension",
        '--weight-transfer-config={"backend":"agentflow"}',
    ]
    if served.lora_rank:
        words += ["--enable-lora", f"--max-lora-rank={served_lora_rank(served.lora_rank)}", "--max-loras=1"]
    if served.lora_modules:
        words += ["--lora-target-modules", *served.lora_modules]
    if served.gpus:
        return words
    # A prompt that is split between steps makes vLLM 0.32 rewind its generator, which a CPU's cannot.
    batched = max(served.max_length, _MIN_BATCHED_TOKENS)
    return [*words, "--enforce-eager", "--no-enable-chunked-prefill", f"--max-num-batched-tokens={batched}"]


def _within_quota(cores: Cores, servers: int) -> dict[str, str]:
    """Let no more threads compute than control groups grant time for: vLLM would take every core that it sees."""
    if _CORES in os.environ or cores.quota >= cores.physical:
        return {}
    number = {} if NUMBER in os.environ else {NUMBER: str(max(1, cores.usable // servers))}
    return {_CORES: "nobind", **number}


def _placement(index: int, config: ServerConfig, served: Served) -> dict[str, str]:
    """Return the environment variable that gives a server GPUs of its own, or cores where several would share them."""
    if config.gpus:
        named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        own = list(range(index * config.gpus, (index + 1) * config.gpus))
        if served.learner_gpu is not None and served.learner_gpu not in own:
            own.append(served.learner_gpu)  # to read the weights there; vLLM computes with the first ones
        return {"CUDA_VISIBLE_DEVICES": ",".join(named[i] if named else str(i) for i in own)}
    if served.gpus or config.count == 1 or _CORES in os.environ:
        return {}
    cores = sorted(os.sched_getaffinity(0))
    first, last = (len(cores) * i // config.count for i in (index, index + 1))
    own_cores = cores[first:last] or [cores[index % len(cores)]]  # left alone, each server would take the same ones
    return {_CORES: ",".join(map(str, own_cores))}

"""`agentflow vllm`: a server whose weights a learner on another host sends."""

import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import typer
from transformers import AutoConfig

from agentflow.cli.words import hush_libraries
from agentflow.errors import ModelError
from agentflow.models import checkpoint_of, folder_of
from agentflow.policies.vllm.launch import Served, arguments, server_python, variables
from agentflow.policies.vllm.server_process import ServerProcess
from agentflow.policies.vllm.servers import API_SERVER, ServerConfig
from agentflow.starter_policies import Part

_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  recognised, not listened on


def serve(
    model: str, words: Sequence[str], *, env: str, host: str, port: int, length: int, dtype: str, lora_rank: int
) -> int:
    """Serve a model's shape until told to stop; its weights are those that a learner sends.

    Args:
        model: A folder, a hub id or `starter`.
        words: Further words of vLLM's command line.
        env: The environment, by which `starter` is understood.
        host: The address to listen on.
        port: The port.
        length: Most tokens of an episode.
        dtype: Dtype of the weights; `auto` is bfloat16 on a GPU, float32 elsewhere.
        lora_rank: Rank of the adapter that the learner trains; 0 if it trains all weights.

    Returns:
        vLLM's exit code.

    Raises:
        UserError: The model or vLLM cannot be found.
    """
    hush_libraries()
    config = ServerConfig()
    gpus = torch.cuda.device_count()
    path = str(folder_of(checkpoint_of(model), Part(env=env)))
    with tempfile.TemporaryDirectory(prefix="agentflow-vllm-") as kept:
        folder = Path(kept)
        try:
            AutoConfig.from_pretrained(path).save_pretrained(folder / "model")
        except (OSError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise ModelError(f"Cannot read the model {model!r}: {first_line}", "Give a model's folder.") from error
        served = Served(
            folder=folder / "model",
            dtype=dtype if dtype != "auto" else "bfloat16" if gpus else "float32",
            max_length=length,
            gpus=gpus,
            lora_rank=lora_rank,
        )
        command = [server_python(config), "-m", API_SERVER, f"--host={host}", f"--port={port}"]
        reached = socket.gethostname() if host in _EVERYWHERE else f"[{host}]" if ":" in host else host
        typer.echo(f"Once it answers: policy.servers.urls=[http://{reached}:{port}]")
        command += [*arguments(config, served), *words]
        server = ServerProcess(command, folder, environment=variables(config, served))
        try:
            return server.wait()
        finally:
            server.end()

"""`agent.yaml`: everything that must be the same when the trained policy is deployed as it was in training."""

import hashlib
from typing import Any

import yaml

from agentflow.trainers.parts import Assembly
from agentflow.trainers.settings import TrainConfig


def agent_card(config: TrainConfig, assembly: Assembly) -> str:
    """Describe the agent of a run: model, chat template, tools, prompt, limits and sampling, as YAML.

    Args:
        config: The run.
        assembly: What it samples with.
    """
    environment = assembly.make_environment()
    tokenizer = assembly.loaded.tokenizer
    card: dict[str, Any] = {
        "agent": config.agent.kind,
        "environment": config.env.model_dump(mode="json"),
        "model": {"path": config.model.path, "weights": "the newest folder of checkpoints/"},
        "chat_template_sha256": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        "stop_tokens": [tokenizer.decode([token]) for token in sorted(assembly.renderer.stop_ids)],
        "instructions": getattr(environment, "instructions", ""),
        "tools": [dict(schema) for schema in environment.tool_schemas],
        "limits": {
            **config.agent.model_dump(mode="json"),
            "max_turns": config.agent.max_turns or environment.max_turns,
        },
        "sampling": {"temperature": config.policy.temperature},
    }
    return yaml.safe_dump(card, sort_keys=False, allow_unicode=True)

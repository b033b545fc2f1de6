"""The frozen models of a run, one for each named role, and what they have cost together."""

import os
from collections.abc import Mapping
from pathlib import Path

from agentflow.policies.openai import ChatConfig, OpenAIChat
from agentflow.policies.usage import Journal, describe_usage, usage_metrics
from agentflow.roles import Roles


class FrozenModels:
    """The clients of a run's roles.

    Args:
        configs: The model of each role.
        environ: The environment variables, where the keys are.

    Raises:
        CredentialError: A key is not set.
        ConfigError: An address is none.
    """

    def __init__(self, configs: Mapping[str, ChatConfig], *, environ: Mapping[str, str] = os.environ) -> None:
        self._clients = {name: OpenAIChat(config, role=name, environ=environ) for name, config in configs.items()}
        self.roles = Roles(self._clients)

    def continue_from(self, path: Path) -> None:
        """Count on from a journal of usage, and keep it: budgets and costs are those of the whole run.

        Raises:
            DataError: The journal is damaged.
        """
        journal = Journal(path)
        for client in self._clients.values():
            client.continue_from(journal)

    def metrics(self) -> dict[str, float]:
        """Return usage and cost since the run began; see `usage.usage_metrics`."""
        return usage_metrics({name: (client.usage, client.config.prices) for name, client in self._clients.items()})

    def report(self) -> list[str]:
        """Say in one line for each role what it has used and what it costs."""
        return [describe_usage(name, client.usage, client.config.prices) for name, client in self._clients.items()]

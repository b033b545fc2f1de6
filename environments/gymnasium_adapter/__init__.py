"""Any Gymnasium environment by its id: `--env gymnasium:FrozenLake-v1`."""

from agentflow.environments.gymnasium_adapter.adapter import (
    GymnasiumEnvironment,
    GymnasiumOptions,
    environment_class,
)

__all__ = ["GymnasiumEnvironment", "GymnasiumOptions", "environment_class"]

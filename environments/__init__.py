"""Environments: what policies act in.

Importing this package registers those that Gymnasium can make by name: `gymnasium.make("agentflow/WebSearch-v0")`.
"""

import gymnasium

from agentflow.environments.tool_environment import ToolEnvironment, ToolResult

__all__ = ["ToolEnvironment", "ToolResult"]

# By their paths as text: an environment is imported when it is made.
gymnasium.register("agentflow/WebSearch-v0", entry_point="agentflow.environments.websearch:WebSearch")
gymnasium.register("agentflow/Code-v0", entry_point="agentflow.environments.coding:Code")

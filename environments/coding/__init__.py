"""Programs to write, repair and run, graded on hidden tests outside their own process."""

from agentflow.environments.coding.environment import Code, CodeOptions

__all__ = ["Code", "CodeOptions"]

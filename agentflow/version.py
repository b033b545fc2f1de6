"""The version of AgentFlow."""

__version__ = "0.1.0"

"""Follow instructions through buildings: generated houses, Matterport graphs, or a simulator behind HTTP."""

from agentflow.environments.navigation.navigation import Navigation, NavigationOptions

__all__ = ["Navigation", "NavigationOptions"]

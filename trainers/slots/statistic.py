"""Statistics: what a run remembers for its slots."""

from collections.abc import Mapping

from agentflow.trainers.slots.base import Statistic

TABLE: Mapping[str, type[Statistic]] = {}

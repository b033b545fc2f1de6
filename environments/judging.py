"""A judge as an environment's option: `judge.role=NAME`, a role of the run, or `judge.model.model=NAME` turns it on."""

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Self

from pydantic import Field, model_validator

from agentflow.policies.openai import ChatConfig, OpenAIChat
from agentflow.roles import NO_ROLES, Roles
from agentflow.tools.cache import ReplayCache
from agentflow.tools.judge import Judge, JudgeConfig

JUDGE_TERM = "judge"
JUDGE_SENTENCE = "The judge's grade of the answer, from 0 to 1."


class JudgeOptions(JudgeConfig):
    """Who judges, and how."""

    role: str | None = Field(None, description="Name of the run's role that judges; null where `model` says who.")
    model: ChatConfig | None = Field(None, description="A model that judges here alone; null where `role` says who.")

    @model_validator(mode="after")
    def _by_one(self) -> Self:
        if (self.role is None) == (self.model is None):
            raise ValueError("name a role of the run (judge.role) or a model of its own (judge.model), one of both")
        return self


def make_judge(options: JudgeOptions, *, roles: Roles = NO_ROLES, environ: Mapping[str, str] = os.environ) -> Judge:
    """Make the judge that the options describe.

    Raises:
        ConfigError: The run has no such role.
        CredentialError: Its key is not set; a model of its own whose grades are only replayed needs none.
        DataError: The cache to replay cannot be read.
    """
    cache = None if options.cache == "off" else ReplayCache(options.cache_path, options.cache)
    if options.role is not None:
        model = roles[options.role]
        return Judge(model, options, identity=f"judge {model.identity}", cache=cache)
    assert options.model is not None, "options name a role or a model"
    chat = None if options.cache == "only" else OpenAIChat(options.model, environ=environ)
    return Judge(chat, options, identity=f"judge {options.model.identity}", cache=cache)


shared_judge = lru_cache(maxsize=8)(make_judge)
"""The judge that all episodes with the same options share, so that its bounds hold for the whole run."""

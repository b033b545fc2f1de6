"""Every error AgentFlow raises on purpose, named after the boundary that was crossed.

AgentFlowError
├── UserError                 the user can mend it: one line, exit code 2, traceback only with --debug
│   ├── ConfigError           an option, a YAML file, a command-line word
│   ├── DataError             a question set, a corpus, a stored run
│   ├── ModelError            a model folder, a tokenizer, a chat template
│   ├── CredentialError       a key that a chosen backend needs is not set
│   └── StorageError          a disk that is full, a folder that cannot be written
├── ToolError                 a tool's author speaks to the model: becomes observation text, the turn counts
├── EpisodeFailure            infrastructure broke under one trajectory: reward None, masked, retried once
│   ├── EnvironmentFailure    an exception or a hang in reset, step or close
│   ├── ToolFailure           an exception in a tool that is not a ToolError
│   ├── ScoreFailure          an exception in the score, or a score that is not a number
│   ├── PolicyFailure         the policy or its server did not answer
│   ├── BackendFailure        a search engine, judge or other remote service stayed away after retries
│   └── BudgetFailure         a frozen model has used up its tokens: never retried, the run stops
└── RunAborted                the share of failed trajectories, an alarm or a budget passed the threshold the user set
"""

from typing import ClassVar


class AgentFlowError(Exception):
    """Base of every error that AgentFlow raises on purpose."""


class UserError(AgentFlowError):
    """Say what was given, which constraint it breaks and what to do about it.

    Args:
        problem: The offending value and the constraint that it breaks, as one sentence.
        remedy: What to type, set or install, as one sentence; empty where the problem says it all.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem} {remedy}".strip())
        self.problem = problem
        self.remedy = remedy


class ConfigError(UserError):
    """An option, a configuration file or a command-line word is wrong."""


class DataError(UserError):
    """A question set, a corpus or a stored run is missing, empty or malformed."""


class ModelError(UserError):
    """A model folder, a tokenizer or a chat template cannot be used."""


class CredentialError(UserError):
    """A key that the chosen backend needs is not set in the environment."""


class StorageError(UserError):
    """A disk is full or a folder cannot be written."""


class ToolError(AgentFlowError):
    """Raised by a tool's author: its text is what the model reads, and the turn counts."""


class EpisodeFailure(AgentFlowError):
    """Infrastructure broke under one trajectory; `cause` is its name in the metrics (`failed/<cause>`)."""

    cause: ClassVar[str] = "unknown"


class EnvironmentFailure(EpisodeFailure):
    """`reset`, `step` or `close` of an environment raised or hung."""

    cause = "environment"


class ToolFailure(EpisodeFailure):
    """A tool raised something other than `ToolError`."""

    cause = "tool"


class ScoreFailure(EpisodeFailure):
    """The score raised, or returned something that is not a finite number."""

    cause = "score"


class PolicyFailure(EpisodeFailure):
    """The policy, or the server behind it, did not answer."""

    cause = "policy"


class BackendFailure(EpisodeFailure):
    """A remote service that a tool or a judge needs stayed away after retries."""

    cause = "backend"


class BudgetFailure(EpisodeFailure):
    """A frozen model has used up the tokens that the run may spend on it."""

    cause = "budget"


class RunAborted(AgentFlowError):
    """The run stopped itself: too many failed trajectories, a spent budget, or an alarm the user armed."""

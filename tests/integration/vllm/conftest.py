"""A real vLLM server: `make test-vllm` installs it; the tests start it and end it."""

import os

import pytest

from agentflow.errors import ConfigError
from agentflow.policies.vllm.launch import server_python
from agentflow.policies.vllm.servers import PYTHON_VARIABLE, ServerConfig


@pytest.fixture(scope="session", autouse=True)
def _vllm() -> None:
    try:
        server_python(ServerConfig())
    except ConfigError as error:
        if PYTHON_VARIABLE in os.environ:
            raise
        pytest.skip(f"NO VLLM SERVER IS TESTED: {error}")

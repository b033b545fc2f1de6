"""The Docker engine that all modules of these tests share."""

from collections.abc import Iterator

import pytest

from agentflow.cli import main
from agentflow.sandbox.docker.engine import connect
from tests.integration.sandbox.engine import shared_engine


@pytest.fixture(scope="session")
def started_engine() -> Iterator[str]:
    """The address of an engine."""
    with shared_engine() as address:
        yield address


@pytest.fixture(scope="module")
def engine(started_engine: str) -> Iterator[str]:
    """The address of an engine that holds the image, and that `DOCKER_HOST` names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", started_engine)
        if not connect().images.list():
            assert main(["sandbox", "image"]) == 0
        yield started_engine

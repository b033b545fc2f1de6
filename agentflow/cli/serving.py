"""`agentflow tools serve search | navigation`."""

from collections.abc import Sequence
from pathlib import Path

from agentflow.cli.environments import environment_options
from agentflow.config import validate_options
from agentflow.environments.navigation import NavigationOptions
from agentflow.environments.navigation import server as navigation_server
from agentflow.environments.websearch.index import shared_index
from agentflow.environments.websearch.websearch import WebSearchOptions
from agentflow.tools.retrieval import load_corpus
from agentflow.tools.search_server import serve


def serve_search(corpus: Path | None, host: str, *, port: int) -> None:
    """Serve a corpus, or websearch's encyclopaedia, as a Search-R1-compatible server until told to stop.

    Raises:
        ConfigError: The address cannot be listened on.
        DataError: The corpus cannot be read.
    """
    options = WebSearchOptions()
    serve(load_corpus(corpus) if corpus else shared_index(options.seed, options.pages), host, port=port)


def serve_navigation(words: Sequence[str], host: str, *, port: int, simulators: int) -> None:
    """Serve the embedded houses as ActiveVLN's simulator server until told to stop.

    Args:
        words: Options of the environment, `env.key=value`.
        host: The address to listen on.
        port: The port to listen on.
        simulators: Most environments at once.

    Raises:
        ConfigError: An option is wrong, or the address cannot be listened on.
    """
    options = validate_options(NavigationOptions, environment_options(words), owner="Navigation")
    navigation_server.serve(options, host, port=port, simulators=simulators)

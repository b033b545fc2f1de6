import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.processes import started


def test_a_corpus_is_served_as_search_r1_speaks(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        '{"id": "1", "title": "Tea", "text": "A warm drink."}\n{"id": "2", "title": "Salt", "text": "Dry."}\n'
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "import sys; from agentflow.cli import main; sys.exit(main())"
    words = ["tools", "serve", "search", "--corpus", str(corpus), "--port", str(port)]
    with started([sys.executable, "-uc", program, *words], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        body = json.dumps({"queries": ["a warm drink"], "topk": 1}).encode()
        with urllib.request.urlopen(urllib.request.Request(address, body), timeout=60) as answer:
            (found,) = json.load(answer)["result"]
    assert [document["id"] for document in found] == ["1"]

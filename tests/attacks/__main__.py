"""`python -m tests.attacks`: run the suite, or a part of it, against a sandbox and print what became of it."""

import asyncio
import sys
from fnmatch import fnmatch

from agentflow.cli.sandboxes import attack
from tests.attacks import ATTACKS

if __name__ == "__main__":
    backend, pattern, *_ = [*sys.argv[1:], *("auto", "*")[len(sys.argv) - 1 :]]
    chosen = [attack for attack in ATTACKS if fnmatch(attack.name, pattern)]
    sys.exit(0 if asyncio.run(attack(backend, chosen)) else 1)

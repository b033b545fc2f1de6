"""The attack suite: every program that tries to get out of a sandbox, the decisive ones of the package among them.

python -m tests.attacks [BACKEND] [PATTERN]
"""

from agentflow.sandbox.attacks.decisive import DECISIVE
from tests.attacks import files, identity, kernel, network, persistence, processes, protocol, resources

ATTACKS = (
    *DECISIVE,
    *resources.ATTACKS,
    *files.ATTACKS,
    *processes.ATTACKS,
    *network.ATTACKS,
    *kernel.ATTACKS,
    *identity.ATTACKS,
    *persistence.ATTACKS,
    *protocol.ATTACKS,
)

"""What further judges look for; see `agentflow.sandbox.attacks.judges`."""

import os
import stat
from pathlib import Path

from agentflow.sandbox.attacks.base import Evidence, Judge


def plants(evidence: Evidence) -> str:
    """Look for its files on the host."""
    return f"it left {', '.join(evidence.planted)} on the host" if evidence.planted else ""


def opens_home(evidence: Evidence) -> str:
    """Look for the home of the user who runs the host."""
    home = os.stat(Path.home())
    same = any(file.number == (home.st_dev, home.st_ino) for file in evidence.sighting().files)
    return "it holds the home of the host's user" if same else ""


def opens_device(evidence: Evidence) -> str:
    """Look for an open block device."""
    held = [file.link for file in evidence.sighting().files if stat.S_ISBLK(file.mode)]
    return f"it holds the device {', '.join(held[:4])}" if held else ""


def shares(kind: str) -> Judge:
    """Look whether the program lives in a namespace of the host."""

    def look(evidence: Evidence) -> str:
        same = evidence.sighting().namespaces.get(kind) == evidence.host.namespaces[kind]
        return f"it lives in the host's {kind} namespace" if same else ""

    return look


def length(evidence: Evidence) -> str:
    """Look at the length of its files."""
    longest = max((file.size_mb for file in evidence.sighting().files), default=0.0)
    return f"a file of {longest:.0f} MB" if longest > 1.25 * evidence.limits.disk_mb else ""


def inodes(evidence: Evidence) -> str:
    """Look at the number of files in its work space."""
    found = evidence.sighting().inodes
    return f"{found} files in its work space" if found > 12_000 else ""

"""What judges look for; each says how an attack escaped, and nothing if it is contained."""

import os
import re

from agentflow.sandbox.attacks.base import Evidence, Judge, NotApplicable, OpenFile

_SLACK_S = 3.0
_FLOOD_BYTES = 32 << 20


def leaks(evidence: Evidence) -> str:
    """Look for a secret in what the program, or its successor, printed."""
    printed = "".join(result.stdout.text + result.stderr.text for result in evidence.results)
    return "it printed a secret of the host" if any(secret in printed for secret in evidence.secrets[:1]) else ""


def hands_on(evidence: Evidence) -> str:
    """Look for what the first program left in what the others printed."""
    printed = "".join(result.stdout.text + result.stderr.text for result in evidence.results[1:])
    return "a later program found what it had left" if evidence.secrets[1] in printed else ""


def reaches(evidence: Evidence) -> str:
    """Look for the program's mark in what the host's sockets received."""
    return "its message reached the host" if evidence.mark.encode() in evidence.received else leaks(evidence)


def opens(pattern: str, *, writable: bool = False) -> Judge:
    """Look for an open file whose name matches."""

    def look(evidence: Evidence) -> str:
        files = evidence.sighting().files
        held = [file.link for file in files if re.search(pattern, file.link) and file.writable >= writable]
        return f"it holds {', '.join(sorted(set(held))[:4])}" if held else ""

    return look


def opens_hosts(pattern: str) -> Judge:
    """Look for an open file whose name matches and which is the host's own of that name: an image may have another."""

    def look(evidence: Evidence) -> str:
        held = [file.link for file in evidence.sighting().files if re.search(pattern, file.link) and _is_hosts(file)]
        return f"it holds {', '.join(sorted(set(held))[:4])}" if held else ""

    return look


def _is_hosts(file: OpenFile) -> bool:
    try:
        own = os.stat(file.link)
    except OSError:
        return False
    return file.number == (own.st_dev, own.st_ino)


def has_socket(*families: int) -> Judge:
    """Look for a socket of some address families."""

    def look(evidence: Evidence) -> str:
        files = evidence.sighting().files
        if any(file.family is None for file in files):
            raise NotApplicable("its sockets cannot be looked at")
        held = sorted({file.family for file in files if file.family in families} - {None})
        return f"it holds a socket of the family {held[0]}" if held else ""

    return look


def leaves(kind: str) -> Judge:
    """Look whether the process `b` has left a namespace in which `a` stayed."""

    def look(evidence: Evidence) -> str:
        before, after = (evidence.sighting(name).namespaces.get(kind) for name in ("a", "b"))
        return f"it made a new {kind} namespace" if before != after else ""

    return look


def cpu(evidence: Evidence) -> str:
    """Look at the CPU seconds that the host saw."""
    used, allowed = evidence.seen.cpu_s, evidence.limits.cpu_s
    return f"{used:.1f} CPU s where {allowed:.1f} are allowed" if used > 1.5 * allowed + 0.3 else ""


def memory(evidence: Evidence) -> str:
    """Look at the resident memory that the host saw."""
    used, allowed = evidence.seen.memory_mb, evidence.limits.memory_mb
    return f"{used:.0f} MB where {allowed} are allowed" if used > 2 * allowed + 40 else ""


def hidden_memory(evidence: Evidence) -> str:
    """Look whether it could fill memory that is no process's own: it shows only a program that filled all of it."""
    return "it filled pages that no process maps, without end" if "filled" in evidence.seen.sightings else ""


def processes(evidence: Evidence) -> str:
    """Look at the number of processes that the host saw."""
    found, allowed = evidence.seen.num_processes, evidence.limits.max_processes
    return f"{found} processes where {allowed} are allowed" if found > allowed + 4 else ""


def storage(evidence: Evidence) -> str:
    """Look at what its open files take."""
    stored, allowed = sum(file.stored_mb for file in evidence.sighting().files), evidence.limits.disk_mb
    return f"{stored:.0f} MB of files where {allowed} are allowed" if stored > 1.25 * allowed + 1 else ""


def descriptors(evidence: Evidence) -> str:
    """Look at the number of its open files."""
    found = len(evidence.sighting().files)
    return f"{found} open files" if found > 300 else ""


def in_time(evidence: Evidence) -> str:
    """Look at how long it took to return."""
    allowed = evidence.limits.wall_s + _SLACK_S
    return f"it returned after {evidence.elapsed_s:.1f} s" if evidence.elapsed_s > allowed else ""


def soon(evidence: Evidence) -> str:
    """Look whether it returned long before its wall time was over, as one that has ended must."""
    return f"it returned after {evidence.elapsed_s:.1f} s" if evidence.elapsed_s > 2.5 else ""


def bounded_output(evidence: Evidence) -> str:
    """Look at what was read of it and what was kept."""
    limit = evidence.limits.output_kb << 10
    for stream in (evidence.result.stdout, evidence.result.stderr):
        if stream.num_bytes > _FLOOD_BYTES:
            return f"{stream.num_bytes} bytes were read of it"
        if len(stream.head) + len(stream.tail) > 2 * limit:
            return f"{len(stream.head) + len(stream.tail)} bytes were kept of it"
    return ""

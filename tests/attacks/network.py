"""Sockets: the host's, the hypervisor's, and those that no network namespace covers."""

from agentflow.sandbox.attacks import judges
from agentflow.sandbox.attacks.base import Attack, Evidence
from agentflow.sandbox.attacks.decisive import CALL, sockets
from tests.attacks import looks


def _listens(evidence: Evidence) -> str:
    heard = [sighting.heard for sighting in evidence.seen.sightings.values()]
    return "the host reached a port that it had opened" if evidence.mark.encode() in heard else ""


ATTACKS = (
    Attack(
        name="network/the host's loopback of version 6",
        code=f"{CALL}for name in ('::1', '::'): visit(socket.AF_INET6, (name, BAIT['port6']))\n"
        "visit(socket.AF_INET6, ('::ffff:127.0.0.1', BAIT['port']))",
        judge=judges.reaches,
    ),
    Attack(
        name="network/the host's own address",
        code=f"{CALL}visit(socket.AF_INET, (BAIT['own'] or '127.0.0.1', BAIT['own_port'] or BAIT['port']))",
        judge=judges.reaches,
    ),
    Attack(
        name="network/datagrams to the host",
        code=f"{CALL}send(socket.AF_INET, ('127.0.0.1', BAIT['udp']))",
        judge=judges.reaches,
    ),
    Attack(
        name="network/datagrams to an abstract socket",
        code=f"{CALL}send(socket.AF_UNIX, BAIT['datagrams'])",
        judge=judges.reaches,
    ),
    Attack(
        name="network/a socket in the host's files",
        code=f"{CALL}visit(socket.AF_UNIX, BAIT['path'])",
        judge=judges.reaches,
    ),
    Attack(
        name="network/a port that the host sees",
        code="import threading\nwith trying():\n  server = socket.create_server(('127.0.0.1', 0))\n"
        "  def serve():\n    caller, _ = server.accept()\n    caller.sendall(MARK.encode())\n    caller.close()\n"
        "  threading.Thread(target=serve, daemon=True).start()\n  show(str(server.getsockname()[1]))",
        judge=_listens,
    ),
    Attack(name="network/the host's interfaces", code="show()", judge=looks.shares("net")),
    Attack(name="network/the kernel's ciphers", code=sockets("38, socket.SOCK_SEQPACKET"), judge=judges.has_socket(38)),
    Attack(
        name="network/packets",
        code=sockets("17, socket.SOCK_RAW, 768", "17, socket.SOCK_DGRAM"),
        judge=judges.has_socket(17),
    ),
)

"""Sockets: the host's, the hypervisor's, and those that no network namespace covers."""

from agentflow.sandbox.attacks import judges
from agentflow.sandbox.attacks.base import Attack, Evidence, Judge

_CALL = """
def visit(family, address, kind=socket.SOCK_STREAM):
    with trying(), socket.socket(family, kind) as stream:
        stream.settimeout(1)
        stream.connect(address)
        say(stream.recv(256))
def send(family, address):
    with trying(), socket.socket(family, socket.SOCK_DGRAM) as stream: stream.sendto(MARK.encode(), address)
    time.sleep(0.3)
"""


def _make(*kinds: str) -> str:
    lines = [f"with trying(): held.append(socket.socket({kind}))" for kind in kinds]
    return "\n".join(["held = []", *lines, "show()"])


def _holds(*families: int) -> Judge:
    return judges.has_socket(*families)


def _listens(evidence: Evidence) -> str:
    heard = [sighting.heard for sighting in evidence.seen.sightings.values()]
    return "the host reached a port that it had opened" if evidence.mark.encode() in heard else ""


def _raw(evidence: Evidence) -> str:
    # A raw socket shows in the list of its own network namespace; an ordinary one does not open at all.
    return "it holds a raw socket" if len([f for f in evidence.sighting().files if f.family == 2]) > 0 else ""


ATTACKS = (
    Attack(
        name="network/the host's loopback",
        code=f"{_CALL}for name in ('127.0.0.1', '127.1.2.3', '0.0.0.0'): visit(socket.AF_INET, (name, BAIT['port']))",
        judge=judges.reaches,
    ),
    Attack(
        name="network/the host's loopback of version 6",
        code=f"{_CALL}for name in ('::1', '::'): visit(socket.AF_INET6, (name, BAIT['port6']))\n"
        "visit(socket.AF_INET6, ('::ffff:127.0.0.1', BAIT['port']))",
        judge=judges.reaches,
    ),
    Attack(
        name="network/the host's own address",
        code=f"{_CALL}visit(socket.AF_INET, (BAIT['own'] or '127.0.0.1', BAIT['own_port'] or BAIT['port']))",
        judge=judges.reaches,
    ),
    Attack(
        name="network/datagrams to the host",
        code=f"{_CALL}send(socket.AF_INET, ('127.0.0.1', BAIT['udp']))",
        judge=judges.reaches,
    ),
    Attack(
        name="network/an abstract socket of the host",
        code=f"{_CALL}visit(socket.AF_UNIX, BAIT['abstract'])",
        judge=judges.reaches,
    ),
    Attack(
        name="network/datagrams to an abstract socket",
        code=f"{_CALL}send(socket.AF_UNIX, BAIT['datagrams'])",
        judge=judges.reaches,
    ),
    Attack(
        name="network/a socket in the host's files",
        code=f"{_CALL}visit(socket.AF_UNIX, BAIT['path'])",
        judge=judges.reaches,
    ),
    Attack(
        name="network/a port that the host sees",
        code="import threading\nwith trying():\n  server = socket.create_server(('127.0.0.1', 0))\n"
        "  def serve():\n    caller, _ = server.accept()\n    caller.sendall(MARK.encode())\n    caller.close()\n"
        "  threading.Thread(target=serve, daemon=True).start()\n  show(str(server.getsockname()[1]))",
        judge=_listens,
    ),
    Attack(name="network/the host's interfaces", code="show()", judge=judges.shares("net")),
    Attack(
        name="network/the hypervisor", code=_make("40, socket.SOCK_STREAM", "40, socket.SOCK_DGRAM"), judge=_holds(40)
    ),
    Attack(name="network/the kernel's ciphers", code=_make("38, socket.SOCK_SEQPACKET"), judge=_holds(38)),
    Attack(name="network/raw sockets", code=_make("2, socket.SOCK_RAW, 1", "10, socket.SOCK_RAW, 58"), judge=_raw),
    Attack(name="network/packets", code=_make("17, socket.SOCK_RAW, 768", "17, socket.SOCK_DGRAM"), judge=_holds(17)),
)

"""The decisive attacks: one or a few for each layer, by which a machine of one's own shows what it holds.

The whole suite, some hundred and fifty, is the project's own tests.
"""

from agentflow.sandbox.attacks import judges
from agentflow.sandbox.attacks.base import Attack, Evidence

SPIN = """
def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""
FILL = """
import mmap
def fill(megabytes, data=None):
    data = data if data is not None else mmap.mmap(-1, megabytes << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, megabytes << 20, 4096):
        data[start] = 1
        if start % (8 << 20) == 0:
            time.sleep(0.01)
    return data
"""
STORE = """
def store(folder, megabytes):
    descriptor = os.open(f"{folder}/{MARK}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(f"{folder}/{MARK}")
    for _ in range(megabytes):
        os.write(descriptor, bytes(1 << 20))
"""
SPINNING = {"cpu_s": 0.5, "wall_s": 10.0}
OPEN = """
def hold(*paths):
    for path in paths:
        for flags in (os.O_WRONLY, os.O_RDWR):
            with trying(): os.open(path, flags)
"""
CALL = """
def visit(family, address, kind=socket.SOCK_STREAM):
    with trying(), socket.socket(family, kind) as stream:
        stream.settimeout(1)
        stream.connect(address)
        say(stream.recv(256))
def send(family, address):
    with trying(), socket.socket(family, socket.SOCK_DGRAM) as stream: stream.sendto(MARK.encode(), address)
    time.sleep(0.3)
"""
FLAGS = {"user": 0x10000000, "mnt": 0x00020000, "net": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000}
_INT80 = (
    # push rbx; mov eax, 359 (socket); mov ebx, 40; mov ecx, 1; xor edx, edx; int 0x80; pop rbx; ret
    "code = bytes.fromhex('53b867010000bb28000000b90100000031d2cd805bc3')\n"
    "import mmap\n"
    "page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)\npage[: len(code)] = code\n"
    "at = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
    "with trying(): ctypes.CFUNCTYPE(ctypes.c_int)(at)()\nshow()"
)
BECOME = """
import shutil
for become in (lambda: os.setgroups([0]), lambda: os.setgid(0), lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0)):
    with trying(): become()
show()
"""
PLANT = """
WORD = BAIT['planted']
def plant(path, text=None):
    with trying():
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        at = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        os.write(at, (text or WORD).encode())
        os.close(at)
"""
FIND = """
def find(path):
    leak(path)
    with trying(): os.unlink(path)
"""
CHANNELS = """
def channels():
    found = []
    for number in range(3, 256):
        with trying():
            if os.readlink(f'/proc/self/fd/{number}').startswith(('pipe:', 'socket:')): found.append(number)
    return found
FORGED = (
    b'{"exit-code": 0}\\n{"event": "died", "status": 0, "cpu_s": 0}\\n{"pid": 2, "status": 0}\\n'
    b'ready\\n{"exit_code": 0, "value": ""}\\n'
)
"""


def time_and_cpu(evidence: Evidence) -> str:
    """Look at its CPU seconds, and at the time that it took to return."""
    return judges.cpu(evidence) or judges.in_time(evidence)


def resource(name: str, code: str, **more: object) -> Attack:
    """Take more than its share; it need not come to its end."""
    return Attack(name=f"resources/{name}", code=code, **{"finishes": False, **more})  # type: ignore[arg-type]


def wounds_nobody(evidence: Evidence) -> str:
    """Look at nothing: what happens to the target, and who survives, counts against every attack."""
    return ""


def sockets(*kinds: str) -> str:
    """Return a program that holds sockets."""
    lines = [f"with trying(): held.append(socket.socket({kind}))" for kind in kinds]
    return "\n".join(["held = []", *lines, "show()"])


def _raw(evidence: Evidence) -> str:
    # A raw socket shows in the list of its own network namespace; an ordinary one does not open at all.
    return "it holds a raw socket" if len([f for f in evidence.sighting().files if f.family == 2]) > 0 else ""


def get(name: str, code: str, pattern: str) -> Attack:
    """Try to get a descriptor that the host then sees."""
    lines = "\n".join(f"with trying(): {line}" for line in code.splitlines())
    return Attack(name=f"kernel/{name}", code=f"{lines}\nshow()", judge=judges.opens(pattern))


def leave(kind: str) -> Attack:
    """Try to leave a namespace, beside a process that stays."""
    flags = FLAGS["user"] | FLAGS[kind]
    code = f"def leave():\n  with trying(): call('unshare', {flags})\n  show('b')\nchild(leave)\nshow('a')\nos.wait()"
    return Attack(name=f"kernel/a new {kind} namespace", code=code, judge=judges.leaves(kind))


def _mounted(evidence: Evidence) -> str:
    return "it mounted a file system" if evidence.mark in evidence.sighting("b").mounts else ""


def _is_root(evidence: Evidence) -> str:
    users, groups = (evidence.sighting().status[name].split() for name in ("Uid", "Gid"))
    return "to the host it is root" if "0" in users + groups else ""


def has_capabilities(evidence: Evidence) -> str:
    """Look for capabilities."""
    status = evidence.sighting().status
    held = {name: status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb") if int(status[name], 16)}
    return f"it has capabilities: {held}" if held else ""


def left(name: str, path: str) -> Attack:
    """Leave a file, given as the text of an expression."""
    return Attack(
        name=f"persistence/{name}",
        code=f"{PLANT}plant({path})",
        then=f"{FIND}find({path})",
        judge=judges.hands_on,
    )


def poison(name: str, code: str, then: str) -> Attack:
    """Leave something that a later program finds."""
    return Attack(name=f"persistence/{name}", code=f"{PLANT}{code}", then=then, judge=judges.hands_on)


def fails(name: str, code: str, *, status: str = "nonzero_exit", exit_code: int | None = 3, **more: object) -> Attack:
    """Fail, and pass for something else; it need not come to its end."""

    def look(evidence: Evidence) -> str:
        result = evidence.result
        right = result.status == status and (exit_code is None or result.exit_code == exit_code)
        return "" if right else f"it passes for {result.status} {result.exit_code}"

    return Attack(name=f"protocol/{name}", code=code, judge=look, finishes=False, **more)  # type: ignore[arg-type]


DECISIVE = (
    resource("spin", f"{SPIN}spin(4)", limits=SPINNING, judge=time_and_cpu),
    resource(
        "spin in several processes",
        f"{SPIN}for _ in range(4): child(lambda: spin(2.5))\nfor _ in range(4): os.wait()",
        judge=time_and_cpu,
        limits={"max_processes": 8} | SPINNING,
    ),
    resource("sleep", "time.sleep(6)", limits={"wall_s": 1.0}, judge=judges.in_time),
    resource("memory", f"{FILL}data = fill(420)\ntime.sleep(0.5)", judge=judges.memory),
    resource(
        "memory in pages that no process maps",
        f"{FILL}data = mmap.mmap(-1, 400 << 20)\n"
        "for part in range(10):\n"
        "  os.waitpid(child(lambda: [data.__setitem__(at, 1) for at in range(part * 40 << 20, (part + 1) * 40 << 20,"
        " 4096)]), 0)\n"
        "  time.sleep(0.05)\n"
        "if all(data[part * 40 << 20] for part in range(10)): show('filled')",
        judge=judges.hidden_memory,
    ),
    resource("processes", "for _ in range(60): child(lambda: time.sleep(1.5))\nshow()", judge=judges.processes),
    resource("one large file", f"{STORE}with trying(): store('.', 40)\nshow()", judge=judges.storage),
    resource(
        "descriptors",
        "import resource\nwith trying(): resource.setrlimit(7, (resource.getrlimit(7)[1],) * 2)\n"
        "with trying():\n  for _ in range(1500): os.open('/dev/null', os.O_RDONLY)\nshow()",
        judge=judges.descriptors,
    ),
    resource("output", "for _ in range(400): say(b'x' * (1 << 17))", judge=judges.bounded_output),
    Attack(name="files/a secret of the host", code="leak(BAIT['folder'] + '/secret')", judge=judges.leaks),
    Attack(
        name="files/the host's root through process 1",
        code="for way in ('root', 'cwd'): leak(f\"/proc/1/{way}{BAIT['folder']}/secret\")",
        judge=judges.leaks,
    ),
    Attack(
        name="files/inherited descriptors",
        code="for number in range(3, 256):\n  with trying(): say(os.pread(number, 4096, 0))",
        judge=judges.leaks,
    ),
    Attack(
        name="files/the system's programs, for writing",
        code=f"{OPEN}hold('/bin/true', '/usr/bin/env', sys.executable, os.__file__)\n"
        "with trying(): os.open('/usr', os.O_TMPFILE | os.O_WRONLY, 0o600)\nshow()",
        judge=judges.opens(r"^/(usr|bin|lib|python|root|work/dev)", writable=True),
    ),
    Attack(
        name="files/settings of the kernel, for writing",
        code=f"{OPEN}hold('/proc/sys/kernel/core_pattern', '/proc/sys/vm/drop_caches', '/proc/sys/kernel/hostname',\n"
        "     '/proc/sys/kernel/modprobe', '/proc/sys/net/ipv4/ip_forward')\nshow()",
        judge=judges.opens(r"^/proc/sys/", writable=True),
    ),
    Attack(
        name="files/the passwords and the machine's name",
        code="for path in ('/etc/shadow', '/etc/machine-id', '/var/lib/dbus/machine-id', '/root/.ssh', '/etc/passwd'):"
        "\n"
        "  with trying(): os.open(path, os.O_RDONLY)\nshow()",
        judge=judges.opens_hosts(r"^/(etc|root|var)/"),
    ),
    Attack(
        name="processes/a daemon",
        code="def daemon():\n"
        "  os.setsid()\n  child(lambda: time.sleep(6))\nos.waitpid(child(daemon), 0)\ntime.sleep(0.1)",
        judge=judges.soon,
    ),
    Attack(
        name="processes/a signal to the host",
        code="if BAIT['target'] != os.getpid():\n"
        "  with trying(): os.kill(BAIT['target'], signal.SIGTERM)\ntime.sleep(0.1)",
        judge=wounds_nobody,
    ),
    Attack(
        name="processes/environments of the host",
        code="for pid in filter(str.isdigit, os.listdir('/proc')): leak(f'/proc/{pid}/environ')",
        judge=judges.leaks,
        limits={"output_kb": 512},
    ),
    Attack(
        name="processes/memory of the host's process",
        code="pid = BAIT['victim']\nwith trying():\n  lines = read(f'/proc/{pid}/maps').decode().splitlines()\n"
        "  low, high = next(line.split()[0].split('-') for line in lines if '[stack]' in line)\n"
        "  at = os.open(f'/proc/{pid}/mem', os.O_RDONLY)\n"
        "  for start in range(int(low, 16), int(high, 16), 65536):\n"
        "    with trying(): say(os.pread(at, min(65536, int(high, 16) - start), start))",
        judge=judges.leaks,
        limits={"output_kb": 512},
    ),
    Attack(
        name="network/the host's loopback",
        code=f"{CALL}for name in ('127.0.0.1', '127.1.2.3', '0.0.0.0'): visit(socket.AF_INET, (name, BAIT['port']))",
        judge=judges.reaches,
    ),
    Attack(
        name="network/an abstract socket of the host",
        code=f"{CALL}visit(socket.AF_UNIX, BAIT['abstract'])",
        judge=judges.reaches,
    ),
    Attack(
        name="network/the hypervisor",
        code=sockets("40, socket.SOCK_STREAM", "40, socket.SOCK_DGRAM"),
        judge=judges.has_socket(40),
    ),
    Attack(name="network/raw sockets", code=sockets("2, socket.SOCK_RAW, 1", "10, socket.SOCK_RAW, 58"), judge=_raw),
    Attack(
        name="kernel/a mount in a new user namespace",
        code="def leave():\n  with trying():\n    call('unshare', 0x10020000)\n    os.mkdir(MARK)\n"
        "    call('mount', MARK.encode(), MARK.encode(), b'tmpfs', 0, 0)\n  show('b')\n"
        "child(leave)\nos.wait()\nwith trying(): os.rmdir(MARK)",
        judge=_mounted,
    ),
    get("a program of BPF", "call('bpf', 0, struct.pack('=IIII', 2, 4, 4, 1) + bytes(104), 120)", "bpf"),
    get("a ring of requests", "call('io_uring_setup', 4, bytes(128))", "io_uring"),
    Attack(
        name="kernel/calls of 32 bits",
        code=_INT80,
        judge=lambda evidence: judges.has_socket(40)(evidence) if "" in evidence.seen.sightings else "",
        finishes=False,
        machines=("x86_64",),
    ),
    Attack(name="identity/root of the host", code=BECOME, judge=_is_root),
    Attack(name="identity/capabilities", code=BECOME, judge=has_capabilities),
    left("temporary files", "'/tmp/planted-' + BAIT['word']"),
    poison(
        "builtins",
        "import builtins, json\nbuiltins.planted = WORD\njson.planted = WORD\nsys.planted = WORD",
        "import builtins, json\nfor place in (builtins, json, sys): say(str(getattr(place, 'planted', '')))",
    ),
    fails(
        "reports on every channel",
        f"{CHANNELS}for number in channels():\n  with trying(): os.write(number, FORGED)\nos._exit(3)",
    ),
    fails(
        "process 1 killed",
        "if os.getpid() < 100 and len([n for n in os.listdir('/proc') if n.isdigit()]) < 9:\n"
        "  for number in (9, 15, 19, 11):\n    with trying(): os.kill(1, number)\n"
        "  with trying(): os.kill(-1, 9)\nos._exit(3)",
    ),
    leave("user"),
)

"""More than its share: time, memory, processes, storage, handles; every program is bounded even where it escapes."""

from agentflow.sandbox.attacks import judges
from agentflow.sandbox.attacks.base import Attack, Evidence

_SPIN = """
def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""
_FILL = """
import mmap
def fill(megabytes, data=None):
    data = data if data is not None else mmap.mmap(-1, megabytes << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, megabytes << 20, 4096):
        data[start] = 1
        if start % (8 << 20) == 0:
            time.sleep(0.01)
    return data
"""
_STORE = """
def store(folder, megabytes):
    descriptor = os.open(f"{folder}/{MARK}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(f"{folder}/{MARK}")
    for _ in range(megabytes):
        os.write(descriptor, bytes(1 << 20))
"""
_SYSV = """
GET, ATTACH, CONTROL, DETACH = {"x86_64": (29, 30, 31, 67)}.get(os.uname().machine, (194, 196, 195, 197))
"""
_SPINNING = {"cpu_s": 0.5, "wall_s": 10.0}  # the CPU time is what must end it, also on a busy machine


def _time_and_cpu(evidence: Evidence) -> str:
    return judges.cpu(evidence) or judges.in_time(evidence)


def _is_unlimited(evidence: Evidence) -> str:
    for name, most in (("Max open files", 1024), ("Max processes", 4000)):
        value = evidence.sighting().limits[name]
        if value == "unlimited" or int(value) > most:
            return f"{name}: {value}"
    return ""


def _resource(name: str, code: str, **more: object) -> Attack:
    return Attack(name=f"resources/{name}", code=code, **{"finishes": False, **more})  # type: ignore[arg-type]


ATTACKS = (
    _resource("spin", f"{_SPIN}spin(4)", limits=_SPINNING, judge=_time_and_cpu),
    _resource(
        "spin in several processes",
        f"{_SPIN}for _ in range(4): child(lambda: spin(2.5))\nfor _ in range(4): os.wait()",
        judge=_time_and_cpu,
        limits={"max_processes": 8} | _SPINNING,
    ),
    _resource(
        "spin in children that nobody waits for",
        f"{_SPIN}signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "for _ in range(40):\n  child(lambda: spin(0.07))\n  time.sleep(0.08)",
        judge=_time_and_cpu,
        limits=_SPINNING,
    ),
    _resource(
        "spin out of reach of signals",
        f"{_SPIN}signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65))\nspin(4)",
        judge=_time_and_cpu,
        limits=_SPINNING,
    ),
    _resource("spin within one instruction", "x = 7 ** (10 ** 8)", limits=_SPINNING, judge=_time_and_cpu),
    _resource("sleep", "time.sleep(6)", limits={"wall_s": 1.0}, judge=judges.in_time),
    _resource("stop", "os.kill(os.getpid(), signal.SIGSTOP)", limits={"wall_s": 1.0}, judge=judges.in_time),
    _resource("memory", f"{_FILL}data = fill(420)\ntime.sleep(0.5)", judge=judges.memory),
    _resource(
        "memory of several processes",
        f"{_FILL}for _ in range(8): child(lambda: (fill(70), time.sleep(1)))\nfor _ in range(8): os.wait()",
        judge=judges.memory,
    ),
    _resource(
        "memory of a decompression bomb",
        "import zlib\nbomb = zlib.compress(bytes(8 << 20))\nparts = []\n"
        "for _ in range(52):\n  parts.append(zlib.decompress(bomb))\n  time.sleep(0.01)\n"
        "time.sleep(0.5)",
        limits={"cpu_s": 6.0, "wall_s": 8.0},
        judge=judges.memory,
    ),
    _resource(
        "memory in pages that no process maps",
        f"{_FILL}data = mmap.mmap(-1, 400 << 20)\n"
        "for part in range(10):\n"
        "  os.waitpid(child(lambda: [data.__setitem__(at, 1) for at in range(part * 40 << 20, (part + 1) * 40 << 20,"
        " 4096)]), 0)\n"
        "  time.sleep(0.05)\n"
        "if all(data[part * 40 << 20] for part in range(10)): show('filled')",
        judge=judges.hidden_memory,
    ),
    _resource(
        "memory in detached segments",
        f"{_SYSV}libc.syscall.restype = ctypes.c_long\nwith trying():\n  held = []\n"
        "  for _ in range(10):\n"
        "    held.append(call(GET, 0, 40 << 20, 0o1600))\n"
        "    at = call(ATTACH, held[-1], 0, 0)\n"
        "    call(CONTROL, held[-1], 0, 0)\n"  # it vanishes with its last user
        "    def touch(at=at):\n      ctypes.memset(at, 1, 40 << 20)\n"
        "    os.waitpid(child(touch), 0)\n    time.sleep(0.05)\n"
        "  show('filled')",
        judge=judges.hidden_memory,
    ),
    _resource("processes", "for _ in range(60): child(lambda: time.sleep(1.5))\nshow()", judge=judges.processes),
    _resource(
        "threads",
        "import threading\nthreading.stack_size(65536)\n"
        "for _ in range(60): threading.Thread(target=time.sleep, args=(1.5,), daemon=True).start()\nshow()",
        judge=judges.processes,
    ),
    _resource(
        "processes of a shell",
        "i=0; while [ $i -lt 50 ]; do i=$((i+1)); (sleep 1; :) & done; wait",
        language="shell",
        judge=judges.processes,
    ),
    _resource(
        "processes that orphan each other",
        "for _ in range(40): child(lambda: child(lambda: time.sleep(3)))\ntime.sleep(1.2)",
        judge=judges.processes,
    ),
    _resource("one large file", f"{_STORE}with trying(): store('.', 40)\nshow()", judge=judges.storage),
    _resource(
        "many large files",
        f"{_STORE}for _ in range(10):\n  with trying(): store('.', 4)\nshow()",
        judge=judges.storage,
    ),
    _resource(
        "storage by reservation",
        "descriptor = os.open(MARK, os.O_RDWR | os.O_CREAT)\nos.unlink(MARK)\n"
        "with trying(): os.posix_fallocate(descriptor, 0, 40 << 20)\nshow()",
        judge=judges.storage,
    ),
    _resource(
        "a sparse file",
        "descriptor = os.open(MARK, os.O_RDWR | os.O_CREAT)\nos.unlink(MARK)\n"
        "with trying(): os.ftruncate(descriptor, 1 << 40)\nshow()",
        judge=judges.length,
    ),
    _resource(
        "storage in shared memory", f"{_STORE}with trying(): store('/dev/shm', 40)\nshow()", judge=judges.storage
    ),
    _resource(
        "inodes",
        "os.mkdir(MARK)\nos.chdir(MARK)\n"
        "with trying():\n  for number in range(16000): os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY))\n"
        "os.chdir('..')\nshow()\nfor name in os.listdir(MARK): os.unlink(f'{MARK}/{name}')\nos.rmdir(MARK)",
        judge=judges.inodes,
    ),
    _resource(
        "descriptors",
        "import resource\nwith trying(): resource.setrlimit(7, (resource.getrlimit(7)[1],) * 2)\n"
        "with trying():\n  for _ in range(1500): os.open('/dev/null', os.O_RDONLY)\nshow()",
        judge=judges.descriptors,
    ),
    _resource(
        "raised limits",
        "import resource\nfor kind in range(16):\n"
        "  for hard in (-1, 1 << 40, 4096):\n"
        "    with trying(): resource.setrlimit(kind, (hard, hard))\nshow()",
        judge=_is_unlimited,
    ),
    _resource("output", "for _ in range(400): say(b'x' * (1 << 17))", judge=judges.bounded_output),
    _resource("output of errors", "for _ in range(400): os.write(2, b'x' * (1 << 17))", judge=judges.bounded_output),
)

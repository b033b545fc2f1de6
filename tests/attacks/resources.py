"""More than its share: time, memory, processes, storage, handles; every program is bounded even where it escapes."""

from agentflow.sandbox.attacks import judges
from agentflow.sandbox.attacks.base import Evidence
from agentflow.sandbox.attacks.decisive import FILL, SPIN, SPINNING, STORE, resource, time_and_cpu
from tests.attacks import looks

_SYSV = """
GET, ATTACH, CONTROL, DETACH = {"x86_64": (29, 30, 31, 67)}.get(os.uname().machine, (194, 196, 195, 197))
"""


def _is_unlimited(evidence: Evidence) -> str:
    for name, most in (("Max open files", 1024), ("Max processes", 4000)):
        value = evidence.sighting().limits[name]
        if value == "unlimited" or int(value) > most:
            return f"{name}: {value}"
    return ""


ATTACKS = (
    resource(
        "spin in children that nobody waits for",
        f"{SPIN}signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "for _ in range(40):\n  child(lambda: spin(0.07))\n  time.sleep(0.08)",
        judge=time_and_cpu,
        limits=SPINNING,
    ),
    resource(
        "spin out of reach of signals",
        f"{SPIN}signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65))\nspin(4)",
        judge=time_and_cpu,
        limits=SPINNING,
    ),
    resource("spin within one instruction", "x = 7 ** (10 ** 8)", limits=SPINNING, judge=time_and_cpu),
    resource("stop", "os.kill(os.getpid(), signal.SIGSTOP)", limits={"wall_s": 1.0}, judge=judges.in_time),
    resource(
        "memory of several processes",
        f"{FILL}for _ in range(8): child(lambda: (fill(70), time.sleep(1)))\nfor _ in range(8): os.wait()",
        judge=judges.memory,
    ),
    resource(
        "memory of a decompression bomb",
        "import zlib\nbomb = zlib.compress(bytes(8 << 20))\nparts = []\n"
        "for _ in range(52):\n  parts.append(zlib.decompress(bomb))\n  time.sleep(0.01)\n"
        "time.sleep(0.5)",
        limits={"cpu_s": 6.0, "wall_s": 8.0},
        judge=judges.memory,
    ),
    resource(
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
    resource(
        "threads",
        "import threading\nthreading.stack_size(65536)\n"
        "for _ in range(60): threading.Thread(target=time.sleep, args=(1.5,), daemon=True).start()\nshow()",
        judge=judges.processes,
    ),
    resource(
        "processes of a shell",
        "i=0; while [ $i -lt 50 ]; do i=$((i+1)); (sleep 1; :) & done; wait",
        language="shell",
        judge=judges.processes,
    ),
    resource(
        "processes that orphan each other",
        "for _ in range(40): child(lambda: child(lambda: time.sleep(3)))\ntime.sleep(1.2)",
        judge=judges.processes,
    ),
    resource(
        "many large files",
        f"{STORE}for _ in range(10):\n  with trying(): store('.', 4)\nshow()",
        judge=judges.storage,
    ),
    resource(
        "storage by reservation",
        "descriptor = os.open(MARK, os.O_RDWR | os.O_CREAT)\nos.unlink(MARK)\n"
        "with trying(): os.posix_fallocate(descriptor, 0, 40 << 20)\nshow()",
        judge=judges.storage,
    ),
    resource(
        "a sparse file",
        "descriptor = os.open(MARK, os.O_RDWR | os.O_CREAT)\nos.unlink(MARK)\n"
        "with trying(): os.ftruncate(descriptor, 1 << 40)\nshow()",
        judge=looks.length,
    ),
    resource("storage in shared memory", f"{STORE}with trying(): store('/dev/shm', 40)\nshow()", judge=judges.storage),
    resource(
        "inodes",
        "os.mkdir(MARK)\nos.chdir(MARK)\n"
        "with trying():\n  for number in range(16000): os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY))\n"
        "os.chdir('..')\nshow()\nfor name in os.listdir(MARK): os.unlink(f'{MARK}/{name}')\nos.rmdir(MARK)",
        judge=looks.inodes,
    ),
    resource(
        "raised limits",
        "import resource\nfor kind in range(16):\n"
        "  for hard in (-1, 1 << 40, 4096):\n"
        "    with trying(): resource.setrlimit(kind, (hard, hard))\nshow()",
        judge=_is_unlimited,
    ),
    resource("output of errors", "for _ in range(400): os.write(2, b'x' * (1 << 17))", judge=judges.bounded_output),
)

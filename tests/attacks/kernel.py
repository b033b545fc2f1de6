"""The kernel's rarely used surface: calls that hand out powerful descriptors, namespaces, tracing, other ABIs."""

from agentflow.sandbox.attacks import judges
from agentflow.sandbox.attacks.base import Attack, Evidence, Judge
from agentflow.sandbox.attacks.decisive import FLAGS, get, leave


def _by_clone() -> Attack:
    code = (
        "def leave():\n  with trying():\n    if call('clone', 0x10000000 | 17, 0, 0, 0, 0) == 0:\n"
        "      signal.alarm(8)\n      show('b')\n      os._exit(0)\n    os.wait()\n    os._exit(0)\n  show('b')\n"
        "child(leave)\nshow('a')\nos.wait()"
    )
    return Attack(name="kernel/a new user namespace by clone", code=code, judge=judges.leaves("user"))


def _root_moved(evidence: Evidence) -> str:
    before, after = (evidence.sighting(name).root for name in ("a", "b"))
    return f"its root is {after}" if after != before else ""


def _disguised(evidence: Evidence) -> str:
    kind = evidence.sighting().personality
    return f"its execution domain is {kind:#x}" if kind else ""


def _logged(evidence: Evidence) -> str:
    text = evidence.result.stdout.text.partition("log:")[2].strip()
    return "it printed the kernel's log" if len(text) > len(evidence.mark) + 20 else ""


def _reached(name: str) -> Judge:
    return lambda evidence: f"the kernel answered {name}" if "reached" in evidence.seen.sightings else ""


ATTACKS = (
    *(leave(kind) for kind in FLAGS if kind != "user"),
    _by_clone(),
    Attack(
        name="kernel/a new root",
        code="def leave():\n  with trying():\n    os.mkdir(MARK)\n    os.chroot(MARK)\n  show('b')\n"
        "child(leave)\nshow('a')\nos.wait()\nwith trying(): os.rmdir(MARK)",
        judge=_root_moved,
    ),
    Attack(
        name="kernel/the namespaces of another process",
        code="def leave():\n"
        "  for kind in ('user', 'net', 'ipc', 'uts', 'mnt'):\n"
        "    with trying(): call('setns', os.open(f\"/proc/{BAIT['victim']}/ns/{kind}\", os.O_RDONLY), 0)\n"
        "    with trying(): call('setns', os.pidfd_open(BAIT['victim']), 0x40000000)\n"
        "  show('b')\nchild(leave)\nos.wait()\n"
        "with trying(): os.open(f\"/proc/{BAIT['victim']}/ns/net\", os.O_RDONLY)\n"
        "show()",
        judge=judges.opens(r"^net:\["),
    ),
    get(
        "performance counters",
        "call('perf_event_open', struct.pack('=IIQQQQQ', 1, 128, 1, 0, 0, 0, 0x60) + bytes(80), 0, -1, -1, 0)",
        "perf_event",
    ),
    get("faults handled by itself", "call('userfaultfd', 1)\ncall('userfaultfd', 0)", "userfaultfd"),
    get("files without a place", "call('memfd_create', MARK.encode(), 0)", r"memfd:[0-9a-f]{6} "),
    get("secret memory", "call('memfd_secret', 0)", "secretmem"),
    get("a file system in the making", "call('fsopen', b'tmpfs', 0)\ncall('fsopen', b'proc', 0)", "fscontext"),
    get("a detached tree", "call('open_tree', -100, b'/usr', 0x1 | 0x8000)", r"^/$|^/usr$|mnt"),
    Attack(
        name="kernel/another execution domain",
        code="with trying(): call('personality', 0x0040000)\nshow()",  # no address randomisation
        judge=_disguised,
    ),
    Attack(
        name="kernel/its log",
        code="text = ctypes.create_string_buffer(1 << 14)\nwith trying():\n"
        "  size = call('syslog', 3, text, 1 << 14)\n  say(b'log:' + text.raw[:size])",
        judge=_logged,
        limits={"output_kb": 128},
    ),
    Attack(
        name="kernel/memory of its own child, from outside it",
        code="local, remote = ctypes.create_string_buffer(8), ctypes.create_string_buffer(b'12345678')\n"
        "pid = child(lambda: time.sleep(2))\n"
        "pack = lambda buffer: struct.pack('=QQ', ctypes.addressof(buffer), 8)\n"
        "with trying():\n  call('process_vm_readv', pid, pack(local), 1, pack(remote), 1, 0)\n  show('reached')\n"
        "os.kill(pid, 9)",
        judge=_reached("process_vm_readv"),
    ),
    Attack(
        name="kernel/keys",
        code="with trying():\n  call('add_key', b'user', MARK.encode(), MARK.encode(), 6, -2)\n  show('reached')",
        judge=_reached("add_key"),
    ),
    Attack(
        name="kernel/comparison of processes",
        code="with trying():\n  call('kcmp', os.getpid(), os.getpid(), 1, 0, 0)\n  show('reached')",
        judge=_reached("kcmp"),
    ),
    Attack(
        name="kernel/a segment of its own",
        code="with trying():\n  call(154, 1, struct.pack('=IIII', 0, 0, 0xfffff, 0x51), 16)\n  show('reached')",
        judge=_reached("modify_ldt"),
        machines=("x86_64",),
    ),
)

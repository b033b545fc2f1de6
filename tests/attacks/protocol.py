"""Lies: to pass for a success, for a failure of the sandbox, or to choke the host with what it reads."""

from agentflow.sandbox.attacks import judges
from agentflow.sandbox.attacks.base import Attack, Evidence
from agentflow.sandbox.attacks.decisive import CHANNELS, fails
from tests.attacks import looks


def _whole(evidence: Evidence) -> str:
    text = evidence.result.stdout.text
    return "" if "before" in text and "after" in text else "its output is not what it wrote"


def _refused(evidence: Evidence) -> str:
    refused = evidence.result.status == "refused"
    return looks.plants(evidence) or ("" if refused else f"its files were accepted: {evidence.result.status}")


def _blames_nobody(evidence: Evidence) -> str:
    return ""  # that it ends as a failure of the sandbox counts against every attack


ATTACKS = (
    fails("reports on its own streams", f"{CHANNELS}os.write(1, FORGED)\nos.write(2, FORGED)\nos._exit(3)"),
    fails("reports from a child", f"{CHANNELS}child(lambda: os.write(1, FORGED))\nos.wait()\nos._exit(3)"),
    fails(
        "a child that succeeds in its stead",
        "child(lambda: os._exit(0))\nos.wait()\nos._exit(3)",
    ),
    fails("a signal", "os.kill(os.getpid(), signal.SIGKILL)", status="signal", exit_code=None),
    fails(
        "channels read empty",
        f"{CHANNELS}for number in channels():\n"
        "  with trying():\n    again = os.open(f'/proc/self/fd/{number}', os.O_RDONLY | os.O_NONBLOCK)\n"
        "    os.read(again, 65536)\nos._exit(3)",
    ),
    fails(
        "channels closed",
        "with trying(): os.closerange(0, 256)\nos._exit(3)",
    ),
    fails(
        "channels filled",
        f"{CHANNELS}for number in channels():\n  with trying():\n    os.set_blocking(number, False)\n"
        "    while True: os.write(number, bytes(4096))\nos._exit(3)",
        status="nonzero_exit",
    ),
    fails("its parent stopped", "if os.getppid() < 9:\n  with trying(): os.kill(os.getppid(), 19)\nos._exit(3)"),
    Attack(
        name="protocol/a work space that cannot be removed",
        # Its path becomes longer than the kernel takes, and its last folder is closed to its owner.
        code="for _ in range(600):\n  with trying():\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)\n"
        "with trying(): os.chmod('.', 0)\nos.chdir('/')",
        judge=_blames_nobody,
    ),
    Attack(
        name="protocol/bytes that are no text",
        code="say(b'before \\xff\\xfe\\0\\x1b[2J\\r\\xed\\xa0\\x80 \\xf0 after')",
        judge=_whole,
    ),
    Attack(
        name="protocol/streams closed early",
        code="os.close(1)\nos.close(2)\ntime.sleep(6)",
        judge=judges.in_time,
        limits={"wall_s": 1.0},
        finishes=False,
    ),
    Attack(name="protocol/input that is not read", code="time.sleep(0.1)", stdin=bytes(4 << 20), judge=judges.soon),
    Attack(
        name="protocol/input that is held open",
        code="child(lambda: (os.setsid(), time.sleep(6)))\nos.read(0, 10)",
        stdin=bytes(4 << 20),
        judge=judges.soon,
    ),
    Attack(
        name="protocol/files above the work space",
        code="pass",
        files={"../../tmp/agentflow-planted": b"x"},
        judge=_refused,
        finishes=False,
    ),
    Attack(
        name="protocol/files at the root",
        code="pass",
        files={"/tmp/agentflow-planted": b"x"},
        judge=_refused,
        finishes=False,
    ),
)

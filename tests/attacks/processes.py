"""Processes that are not its own, and processes of its own that outlive it."""

from agentflow.sandbox.attacks import judges
from agentflow.sandbox.attacks.base import Attack, Evidence
from agentflow.sandbox.attacks.decisive import wounds_nobody

_ALL = "[name for name in os.listdir('/proc') if name.isdigit()]"


def _same_group(evidence: Evidence) -> str:
    seen, host = evidence.sighting(), evidence.host
    if seen.session == host.session or seen.group == host.group:
        return "it is in the host's process group or session: what it sends its own group, the host gets"
    return ""


def _traces(evidence: Evidence) -> str:
    tracer = evidence.sighting("traced").status["TracerPid"]
    return f"process {tracer} traces another" if tracer != "0" else ""


ATTACKS = (
    Attack(
        name="processes/a daemon that holds the streams",
        code="child(lambda: (os.setsid(), signal.pthread_sigmask(0, range(1, 65)), time.sleep(6)))\ntime.sleep(0.1)",
        judge=judges.soon,
    ),
    Attack(
        name="processes/a stopped tree",
        code="def stop():\n"
        "  child(lambda: os.kill(os.getpid(), signal.SIGSTOP))\n  os.kill(os.getpid(), signal.SIGSTOP)\n"
        "child(stop)\ntime.sleep(0.2)",
        judge=judges.soon,
    ),
    Attack(
        name="processes/zombies",
        code="for _ in range(8): child(lambda: None)\ntime.sleep(0.2)",
        judge=judges.soon,
    ),
    Attack(
        name="processes/a daemon of a shell",
        code="(setsid sh -c 'printf %s $0 > /proc/self/comm; sleep 6; :' $MARK > /dev/null 2>&1 &) ; sleep 0.2",
        language="shell",
        judge=judges.soon,
    ),
    Attack(
        name="processes/children that never stop being born",
        code="def relay(n):\n  time.sleep(0.01)\n  if n: child(lambda: relay(n - 1))\n"
        "child(lambda: relay(300))\ntime.sleep(0.2)",
        judge=judges.soon,
    ),
    Attack(
        name="processes/a handle on the host's process",
        code="with trying():\n  at = os.pidfd_open(BAIT['target'])\n  signal.pidfd_send_signal(at, signal.SIGTERM)\n"
        "time.sleep(0.1)",
        judge=wounds_nobody,
    ),
    Attack(
        name="processes/the host's process group",
        code="show()",
        judge=_same_group,
    ),
    Attack(
        name="processes/command lines of the host",
        code=f"for pid in {_ALL}: leak(f'/proc/{{pid}}/cmdline')",
        judge=judges.leaks,
        limits={"output_kb": 512},
    ),
    Attack(
        name="processes/the environment of its parent",
        code="leak('/proc/1/environ')\nleak(f'/proc/{os.getppid()}/environ')",
        judge=judges.leaks,
        limits={"output_kb": 256},
    ),
    Attack(
        name="processes/its own environment",
        code="say(repr(dict(os.environ)))\nleak('/proc/self/environ')",
        judge=judges.leaks,
        limits={"output_kb": 256},
    ),
    Attack(
        name="processes/descriptors of the host's process",
        code="with trying():\n  at = os.pidfd_open(BAIT['victim'])\n"
        "  [call('pidfd_getfd', at, number, 0) for number in (0, 1, 2)]\n  show('held')",
        judge=lambda evidence: "it took descriptors of a process of the host" if evidence.seen.sightings else "",
    ),
    Attack(
        name="processes/tracing",
        code="with trying():\n  tracing = call('ptrace', 0x4206, child(lambda: show('traced')), 0, 0)\ntime.sleep(0.4)",
        judge=_traces,
    ),
)

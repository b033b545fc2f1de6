"""Who it is: users, groups, capabilities, ranks, and the name of the machine."""

from agentflow.sandbox.attacks.base import Attack, Evidence
from agentflow.sandbox.attacks.decisive import BECOME, has_capabilities
from tests.attacks import looks


def _is_host(evidence: Evidence) -> str:
    if evidence.host.status["Uid"].split()[0] != "0":
        return ""  # an ordinary user has no other users to give away
    same = evidence.sighting().status["Uid"] == evidence.host.status["Uid"]
    return "it is the host's own user" if same else ""


def _has_groups(evidence: Evidence) -> str:
    groups = set(evidence.sighting().status["Groups"].split()) - {"65534"}
    return f"it is in the groups {' '.join(sorted(groups))}" if groups & {"0", "27", "44", "999"} else ""


def _may_gain(evidence: Evidence) -> str:
    return "" if evidence.sighting().status["NoNewPrivs"] == "1" else "set-user programs raise it"


def _unfiltered(evidence: Evidence) -> str:
    return "" if evidence.sighting().status["Seccomp"] == "2" else "no filter stands before its system calls"


def _is_spared(evidence: Evidence) -> str:
    score, hosts = evidence.sighting().oom_score, evidence.host.oom_score
    return f"its score for being killed is {score}" if score < min(0, hosts) else ""


def _is_ranked(evidence: Evidence) -> str:
    seen, host = evidence.sighting(), evidence.host
    if seen.policy in (1, 2, 6):
        return "it runs before everybody else, in real time"
    return f"its niceness is {seen.niceness}" if seen.niceness < min(0, host.niceness) else ""


ATTACKS = (
    Attack(name="identity/the host's user", code="show()", judge=_is_host),
    Attack(name="identity/groups of the host", code=BECOME, judge=_has_groups),
    Attack(name="identity/set-user programs", code="show()", judge=_may_gain),
    Attack(
        name="identity/without a filter",
        code="with trying(): libc.prctl(22, 0, 0, 0, 0)\nshow()",
        judge=_unfiltered,
    ),
    Attack(
        name="identity/a map of users",
        code="def leave():\n  with trying():\n    call('unshare', 0x10000000)\n"
        "    at = os.open('/proc/self/uid_map', os.O_WRONLY)\n    os.write(at, f'0 {os.getuid()} 1'.encode())\n"
        "  show()\nchild(leave)\nos.wait()",
        judge=has_capabilities,
    ),
    Attack(
        name="identity/never killed for want of memory",
        code="with trying():\n  at = os.open('/proc/self/oom_score_adj', os.O_WRONLY)\n  os.write(at, b'-999')\nshow()",
        judge=_is_spared,
    ),
    Attack(
        name="identity/before everybody else",
        code="with trying(): os.nice(-5)\nwith trying(): os.sched_setscheduler(0, 1, os.sched_param(1))\nshow()",
        judge=_is_ranked,
    ),
    Attack(name="identity/the host's name", code="show()", judge=looks.shares("uts")),
    Attack(name="identity/the host's users", code="show()", judge=looks.shares("user"), needs="user"),
    Attack(name="identity/the host's process numbers", code="show()", judge=looks.shares("pid")),
    Attack(name="identity/the host's mounts", code="show()", judge=looks.shares("mnt")),
    Attack(name="identity/the host's messages", code="show()", judge=looks.shares("ipc")),
)

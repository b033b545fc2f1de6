"""What works here: each backend is tried by executing a program in it and looking at what that program could reach."""

import json
import secrets
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agentflow.errors import ConfigError, UserError
from agentflow.sandbox.base import Limits, Program, Sandbox, SandboxUnavailable
from agentflow.sandbox.docker.backend import DockerSandbox
from agentflow.sandbox.over_http.client import HttpSandbox
from agentflow.sandbox.process.backend import ProcessSandbox

AUTO = "auto"


def _process(packages: Sequence[str] = ()) -> Sandbox:
    return ProcessSandbox(packages=packages)


def _docker(packages: Sequence[str] = ()) -> Sandbox:
    if packages:
        words = " ".join(f"--with {name}" for name in packages)
        raise ConfigError("Programs import what their image holds.", f"Make one: agentflow sandbox image {words}.")
    return DockerSandbox()


BACKENDS: Mapping[str, Callable[..., Sandbox]] = {
    ProcessSandbox.name: _process,
    DockerSandbox.name: _docker,
}
"""The backends by name, in the order in which `auto` tries them."""
_LIMITS = Limits(cpu_s=5.0, wall_s=20.0, memory_mb=128, disk_mb=4, max_processes=8)
_HINT = (
    "Allow user namespaces (sysctl user.max_user_namespaces=10000, on Ubuntu also sysctl "
    "kernel.apparmor_restrict_unprivileged_userns=0, in a container --security-opt seccomp=unconfined --security-opt "
    "systempaths=unconfined), or start Docker and make the image (agentflow sandbox image), or name a server of "
    "sandboxes on another machine (http://..., there: agentflow sandbox serve)."
)
_PROGRAM = """
import json, os, socket, sys
port, secret = json.loads(sys.stdin.read())
found = {"uid": os.getuid(), "env": sorted(os.environ), "reached": [], "answer": 6 * 7}
try:
    socket.create_connection(("127.0.0.1", port), timeout=2).close()
    found["reached"].append("the host's loopback")
except OSError:
    pass
for path, what in ((secret, "a file of the host"), ("/etc/shadow", "the host's passwords")):
    try:
        os.close(os.open(path, os.O_RDONLY))
        found["reached"].append(what)
    except OSError:
        pass
try:
    os.close(os.open("/usr/agentflow-probe", os.O_WRONLY | os.O_CREAT))
    found["reached"].append("the system's files, for writing")
except OSError:
    pass
print(json.dumps(found))
"""


async def open_sandbox(name: str = AUTO, packages: Sequence[str] = ()) -> Sandbox:
    """Open a backend that has just been seen to work.

    Args:
        name: A name of `BACKENDS`, or `auto` for the first that works; nothing weaker is ever taken instead. An
            address `http://...` or `https://...` is a server of sandboxes, which answers for what it contains.
        packages: Installed distributions that programs may import, beside numpy, sympy and matplotlib.

    Raises:
        ConfigError: An address is none, or a server is to show packages.
        SandboxUnavailable: It does not work here, or there is no such backend; with each reason and its remedy.
    """
    if name.startswith(("http://", "https://")):
        if packages:
            raise ConfigError(
                "What programs may import is the server's affair.", "Name it there: sandbox serve --with."
            )
        return await _open_server(name)
    if name != AUTO and name not in BACKENDS:
        raise SandboxUnavailable(f"There is no sandbox {name!r}.", f"Known: {AUTO}, {', '.join(BACKENDS)}, http://...")
    reasons = []
    for candidate in BACKENDS if name == AUTO else (name,):
        try:
            sandbox = BACKENDS[candidate](packages)
        except UserError as error:
            reasons.append(f"{candidate}: {error}")
            continue
        problem = await probe(sandbox)
        if not problem:
            return sandbox
        await sandbox.close()
        reasons.append(f"{candidate}: {problem}")
    raise SandboxUnavailable(f"No sandbox works here. {' '.join(reasons)}", _HINT)


async def _open_server(url: str) -> Sandbox:
    sandbox = HttpSandbox(url)
    result = await sandbox.run(Program("print(6 * 7)"), _LIMITS)
    if result.stdout.text != "42\n":
        await sandbox.close()
        reason = f"{result.status}: {(result.detail or result.stderr.text).strip()[-300:]}"
        raise SandboxUnavailable(
            f"The sandbox server runs no programs ({reason}).", "Start one: agentflow sandbox serve."
        )
    return sandbox


async def probe(sandbox: Sandbox) -> str:
    """Run a program that looks around, and say what is wrong; empty if the sandbox holds."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryDirectory() as folder:
            secret = Path(folder) / secrets.token_hex(4)
            secret.write_text("secret")
            secret.chmod(0o644)
            Path(folder).chmod(0o755)
            stdin = json.dumps([listener.getsockname()[1], str(secret)]).encode()
            result = await sandbox.run(Program(_PROGRAM, stdin=stdin), _LIMITS)
    except OSError as error:
        return f"a trial cannot be made: {error}. It takes a free port and a temporary file; is the disk full?"
    if result.status != "ok":
        return f"a trial program ended with {result.status}: {(result.detail or result.stderr.text).strip()[-300:]}."
    found = json.loads(result.stdout.text)
    if found["uid"] == 0 or found["answer"] != 42:
        return f"a trial program ran as user {found['uid']}."
    return f"a trial program reached {', '.join(found['reached'])}." if found["reached"] else ""

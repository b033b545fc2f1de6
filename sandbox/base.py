r"""What a sandbox is: a place where a program that nobody trusts runs, within limits, and leaves nothing behind.

    result = await sandbox.run(Program(code="print(6 * 7)"))
    result.status, result.stdout                     # "ok", b"42\n"

    async with await sandbox.session() as session:   # variables survive from cell to cell
        await session.exec("x = 6")
        branch = await session.fork()                # a copy that goes its own way

What the program did is a `Result`, whatever it did. What broke under it, the launcher or the host, is the status
`infra_error`: never an observation, never a reward.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias, runtime_checkable

from pydantic import Field

from agentflow.config import Config
from agentflow.errors import BackendFailure, UserError
from agentflow.messages import Image

Status: TypeAlias = Literal[
    "ok",
    "nonzero_exit",
    "signal",
    "cpu_timeout",
    "wall_timeout",
    "memory",
    "output_limit",
    "pids",
    "disk",
    "refused",
    "infra_error",
]
"""How an execution ended; `refused` is a program that was not started (too large, an unknown language)."""


MAX_SOURCE_BYTES = 1 << 20
"""A longer program is refused."""
ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/work",
    "TMPDIR": "/work",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": "/work/.matplotlib",
}
"""All that a program sees of an environment, whoever runs it."""


class Limits(Config):
    """What one execution may use; CPU time judges, wall time is the backstop for a program that sleeps."""

    cpu_s: float = Field(5.0, gt=0, description="CPU seconds of all processes of an execution together.")
    wall_s: float = Field(20.0, gt=0, description="Wall seconds after which an execution that idles is ended.")
    memory_mb: int = Field(512, ge=16, description="Megabytes of memory, work space included.")
    disk_mb: int = Field(64, ge=1, description="Megabytes of the private work space.")
    output_kb: int = Field(64, ge=1, description="Kilobytes kept of each of stdout and stderr, half head, half tail.")
    max_processes: int = Field(32, ge=1, description="Processes and threads at once.")


@dataclass(frozen=True, slots=True)
class Program:
    """What is run.

    Attributes:
        code: Python source, or a shell script, by `language`.
        language: `python` or `shell`.
        files: Files of the work space, by relative path, written before the start.
        stdin: What the program reads.
        seed: Where `random`, and numpy's if it is used, start from; hashing is the same for all seeds and backends.
    """

    code: str
    language: Literal["python", "shell"] = "python"
    files: Mapping[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """One stream of a program, cut in the middle where it was too long.

    Attributes:
        head: What came first, up to half of the limit.
        tail: The last of what came after; empty if nothing was cut.
        num_bytes: Bytes that the program wrote.
    """

    head: bytes = b""
    tail: bytes = b""
    num_bytes: int = 0

    @property
    def text(self) -> str:
        """The stream as text; bytes that are no UTF-8 are escaped, a cut says how much is missing."""
        head, tail = (part.decode("utf-8", "backslashreplace") for part in (self.head, self.tail))
        missing = self.num_bytes - len(self.head) - len(self.tail)
        return f"{head}\n[... {missing} bytes left out ...]\n{tail}" if missing > 0 else head + tail

    @property
    def last_line(self) -> bytes:
        """The last line that is not blank."""
        return (self.tail or self.head).rstrip().rpartition(b"\n")[2]


@dataclass(frozen=True, slots=True)
class Usage:
    """What an execution used.

    Attributes:
        cpu_s: CPU seconds of all its processes.
        wall_s: Wall seconds from its start to the death of its last process.
        memory_mb: Its peak of resident memory, in megabytes.
    """

    cpu_s: float = 0.0
    wall_s: float = 0.0
    memory_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one execution.

    Attributes:
        status: How it ended.
        exit_code: The code of `nonzero_exit` and `ok`; None otherwise.
        signal: The number of the signal that ended it; None if none did.
        stdout: What it wrote.
        stderr: What it wrote to its other stream; a Python traceback stands here.
        value: For a cell of a session, the `repr` of its last expression; empty if it has none.
        images: The figures of matplotlib that were open at its end, as PNG.
        num_lost_images: Further ones, left out because they were too many or too large.
        usage: What it used.
        detail: For `refused` and `infra_error`, what happened, for people and not for models.
        backend: Who ran it.
        enforced: The limits and layers that really held, for example `("cpu", "memory:rlimit", "net", "seccomp")`.
    """

    status: Status
    exit_code: int | None = None
    signal: int | None = None
    stdout: Output = Output()
    stderr: Output = Output()
    value: str = ""
    images: tuple[Image, ...] = ()
    num_lost_images: int = 0
    usage: Usage = Usage()
    detail: str = ""
    backend: str = ""
    enforced: tuple[str, ...] = ()


def max_files(disk_mb: int) -> int:
    """Return how many files a work space may hold."""
    return max(1024, 256 * disk_mb)


def refusal(program: Program, limits: Limits) -> str:
    """Say why a program is not started; empty if nothing speaks against it."""
    if len(program.code) > MAX_SOURCE_BYTES:
        return f"a source of {len(program.code)} characters, more than {MAX_SOURCE_BYTES}"
    if "\0" in program.code:
        return "a source with a null byte"
    for name in program.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
            return f"a file {name!r} outside the work space"
    size = sum(map(len, program.files.values()))
    return f"files of {size} bytes, more than {limits.disk_mb} MB" if size > limits.disk_mb << 20 else ""


class SandboxFailure(BackendFailure):
    """The sandbox itself broke, twice: the episode fails, and no reward is made up for it."""


class SandboxUnavailable(UserError):
    """No sandbox works here; the text names each probe that failed and what would mend it."""


@runtime_checkable
class Session(Protocol):
    """A Python interpreter that keeps its state from cell to cell."""

    async def exec(self, code: str, *, limits: Limits | None = None) -> Result:
        """Run a cell; a session whose cell was killed is over, and every further cell is `refused`."""
        ...

    async def fork(self) -> "Session":
        """Return a copy with the same state, independent from now on."""
        ...

    async def close(self) -> None:
        """End the interpreter and everything it started."""
        ...

    async def __aenter__(self) -> Self:
        """Return the session."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        ...


@runtime_checkable
class Sandbox(Protocol):
    """A backend. It may be shared by any number of tasks of one event loop; it bounds its own concurrency."""

    name: str

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program in a fresh place; when this returns, everything that it started is dead and gone."""
        ...

    async def session(self, limits: Limits | None = None) -> Session:
        """Start an interpreter that keeps its state."""
        ...

    async def close(self) -> None:
        """End what the backend keeps warm."""
        ...


async def run_reliably(sandbox: Sandbox, program: Program, limits: Limits | None = None) -> Result:
    """Run a program, and once more if the sandbox itself broke.

    Raises:
        SandboxFailure: It broke again.
    """
    result = await sandbox.run(program, limits)
    if result.status == "infra_error":
        result = await sandbox.run(program, limits)
    if result.status == "infra_error":
        raise SandboxFailure(f"the {sandbox.name} sandbox failed twice: {result.detail}")
    return result

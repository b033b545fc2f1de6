"""What clients and servers of SandboxFusion's `POST /run_code` say to each other, and what AgentFlow adds to it.

SandboxFusion knows neither seeds nor bytes nor most limits, and says of an end only whether it was late. So AgentFlow's
own client and server put what is missing under the key `agentflow`, which others leave out and ignore.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentflow.messages import Base64Bytes, Image
from agentflow.sandbox.base import Limits, Output, Program, Result, Status, Usage
from agentflow.sandbox.guest_figures import MAX_FIGURES
from agentflow.sandbox.streams import Kept
from agentflow.sandbox.verdict import Ending, result_of

MOST = Limits(cpu_s=120.0, wall_s=300.0, memory_mb=8192, disk_mb=1024, output_kb=4096, max_processes=512)
"""What a client may ask of a server."""
LANGUAGES: Mapping[str, Literal["python", "shell"]] = {"python": "python", "bash": "shell", "shell": "shell"}
_KILLED = -9


class _Said(BaseModel):
    """A part of a message; clients and servers of other versions say more than is known here."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _AskedMore(_Said):
    limits: Limits
    stdin: Base64Bytes = b""
    seed: int = 0


class RunRequest(_Said):
    """What a client asks."""

    code: str
    language: str
    run_timeout: float = Field(10.0, gt=0)
    memory_limit_MB: int = -1  # SandboxFusion's name
    stdin: str | None = None
    files: dict[str, Base64Bytes | None] = Field(default_factory=dict)
    fetch_files: tuple[str, ...] = ()
    agentflow: _AskedMore | None = None

    def limits(self) -> Limits:
        """Return the limits; a client of SandboxFusion's knows two of them."""
        if self.agentflow is not None:
            return self.agentflow.limits
        known: dict[str, Any] = {"cpu_s": self.run_timeout, "wall_s": self.run_timeout}
        return Limits(**known, **({"memory_mb": self.memory_limit_MB} if self.memory_limit_MB > 0 else {}))

    def program(self) -> Program:
        """Return the program.

        Raises:
            KeyError: The language is none of `LANGUAGES`.
        """
        more = self.agentflow
        return Program(
            self.code,
            language=LANGUAGES[self.language],
            files={name: content or b"" for name, content in self.files.items()},
            stdin=more.stdin if more else (self.stdin or "").encode("utf-8", "replace"),
            seed=more.seed if more else 0,
        )


class _Stream(_Said):
    head: Base64Bytes = b""
    tail: Base64Bytes = b""
    num_bytes: int = Field(0, ge=0)


class _ToldMore(_Said):
    status: Status
    exit_code: int | None = None
    signal: int | None = None
    stdout: _Stream = _Stream()
    stderr: _Stream = _Stream()
    images: tuple[Image, ...] = Field((), max_length=MAX_FIGURES)
    num_lost_images: int = Field(0, ge=0)
    usage: Usage = Usage()
    detail: str = ""
    backend: str = ""
    enforced: tuple[str, ...] = ()


class _Run(_Said):
    status: Literal["Finished", "Error", "TimeLimitExceeded"]
    execution_time: float | None = None
    return_code: int | None = None
    stdout: str | None = None
    stderr: str | None = None


class RunAnswer(_Said):
    """What a server answers."""

    status: Literal["Success", "Failed", "SandboxError"]
    message: str = ""
    run_result: _Run | None = None
    agentflow: _ToldMore | None = None

    def result(self, limits: Limits, *, backend: str) -> Result:
        """Return the result; a server that is not AgentFlow's leaves usage and what was enforced unknown."""
        told = self.agentflow
        if told is not None:
            return Result(
                told.status,
                exit_code=told.exit_code,
                signal=told.signal,
                stdout=Output(told.stdout.head, told.stdout.tail, told.stdout.num_bytes),
                stderr=Output(told.stderr.head, told.stderr.tail, told.stderr.num_bytes),
                images=told.images,
                num_lost_images=told.num_lost_images,
                usage=told.usage,
                detail=told.detail,
                backend=f"{backend}:{told.backend}",
                enforced=told.enforced,
            )
        run = self.run_result
        if self.status == "SandboxError" or run is None or run.status == "Error":
            return Result("infra_error", detail=self.message[:400] or "the server says no more", backend=backend)
        ending = Ending(
            ended_by="wall_timeout" if run.status == "TimeLimitExceeded" else "",
            code=run.return_code,
            stdout=_kept(run.stdout, limits),
            stderr=_kept(run.stderr, limits),
            usage=Usage(wall_s=run.execution_time or 0.0),
        )
        return result_of(ending, limits, backend=backend)


def request_json(program: Program, limits: Limits) -> str:
    """Return what a client sends."""
    asked = RunRequest(
        code=program.code.encode("utf-8", "replace").decode(),
        language="bash" if program.language == "shell" else program.language,
        run_timeout=limits.wall_s,
        memory_limit_MB=limits.memory_mb,
        stdin=program.stdin.decode("utf-8", "replace"),
        files=dict(program.files),
        agentflow=_AskedMore(limits=limits, stdin=program.stdin, seed=program.seed),
    )
    return asked.model_dump_json()


def answer_json(result: Result) -> str:
    """Return what a server sends."""
    code = result.exit_code
    if code is None:
        code = -result.signal if result.signal else 1 if result.status == "refused" else _KILLED
    statuses = {"cpu_timeout": "TimeLimitExceeded", "wall_timeout": "TimeLimitExceeded", "infra_error": "Error"}
    run = {
        "status": statuses.get(result.status, "Finished"),
        "execution_time": result.usage.wall_s,
        "return_code": None if result.status in statuses else code,
        "stdout": result.stdout.text,
        "stderr": result.detail if result.status == "refused" else result.stderr.text,
    }
    failed = "SandboxError" if result.status == "infra_error" else "Failed"
    told = _ToldMore.model_validate(result, from_attributes=True)
    answer = RunAnswer.model_validate(
        {
            "status": "Success" if result.status == "ok" else failed,
            "message": result.detail,
            "run_result": run,
            "agentflow": told,
        }
    )
    return answer.model_dump_json()


def _kept(text: str | None, limits: Limits) -> Output:
    kept = Kept(limits.output_kb << 10)
    kept.add((text or "").encode("utf-8", "replace"))
    return kept.output()

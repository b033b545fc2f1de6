"""Tools: typed functions that a policy may call, with their schema, their validation and their failures.

    @tool
    def price(item: Annotated[str, Field(description="The item's name.")]) -> int: ...

Pydantic derives both the JSON schema and the validation from the signature, so the two cannot disagree; the
docstring (its summary and its `Args:`) describes the tool and its arguments to the model.
"""

import asyncio
import hashlib
import inspect
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, cast, overload

from docstring_parser import parse as parse_docstring
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema, ErrorDetails, to_jsonable_python

from agentflow.concurrency import call
from agentflow.errors import ConfigError, EpisodeFailure, ToolError, ToolFailure
from agentflow.messages import Image, ToolSchema
from agentflow.tools.throttle import Throttle

_MAX_SHOWN_CHARS = 60
_RETRY_WAIT_S = 0.5
# Arguments come from a model's JSON, where a year or a page number is as likely a number as a text.
_LAX = ConfigDict(coerce_numbers_to_str=True)


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool may return in place of a plain value: text with images, and the end of the episode.

    Attributes:
        text: What the model reads.
        images: What it sees after the text; one that reads text alone sees a line for each.
        ends: `over` ends the episode by its own rules, and it is scored; `limit` cuts it off at a limit.
    """

    text: str
    images: tuple[Image, ...] = ()
    ends: Literal["", "over", "limit"] = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool; in Python it is called like the function that it was made from.

    As an attribute of a class it binds to the instance like a method.

    Attributes:
        name: What the model calls it.
        description: What it does, in words for the model.
        parameters: JSON schema of the arguments object.
        function: The function; for a method, bound to its instance.
        timeout_s: Seconds after which a call is given up; None for no limit of its own.
        parallel: Whether calls of one turn may overlap.
        idempotent: Whether a call that broke may be repeated: it is, once.
        throttle: How many calls may be under way or start, over all episodes of the process.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., Any]
    timeout_s: float | None = None
    parallel: bool = False
    idempotent: bool = False
    throttle: Throttle = field(default_factory=Throttle, repr=False, compare=False)
    check: Callable[[Mapping[str, Any]], dict[str, Any]] = field(kw_only=True, repr=False, compare=False)
    """Returns the arguments as the function wants them, or raises `ToolError`."""

    @property
    def schema(self) -> ToolSchema:
        """The tool as a chat template sees it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    @property
    def usage(self) -> str:
        """The call in one line, for example `search(query, k=3)`."""
        arguments = (
            f"{name}={json.dumps(argument['default'], ensure_ascii=False)}" if "default" in argument else name
            for name, argument in self.parameters.get("properties", {}).items()
        )
        return f"{self.name}({', '.join(arguments)})"

    async def call(self, arguments: Mapping[str, Any]) -> str:
        """Validate the arguments, run the tool and return what the model reads, without images.

        Raises:
            ToolError: The arguments are wrong, the tool says so, or it took too long: text for the model.
            ToolFailure: The tool broke: the episode fails.
        """
        return self.to_text(await self.run(self.validate(arguments)))

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments with the types that the function wants, defaults filled in.

        Raises:
            ToolError: With every wrong argument, in words that a model can act on.
        """
        if not isinstance(arguments, Mapping):
            raise ToolError("the arguments must be a JSON object")
        return self.check(arguments)

    async def run(self, arguments: Mapping[str, Any]) -> Any:
        """Run the function on validated arguments and return its result as it is.

        Waiting for a place is no part of the time that a call may take.

        Raises:
            ToolError: The tool says so, or it took too long.
            EpisodeFailure: The tool raised one of its kinds.
            ToolFailure: The tool raised anything else; twice, if it is idempotent.
        """
        try:
            return await self._attempt(arguments)
        except ToolFailure:
            if not self.idempotent:
                raise
        await asyncio.sleep(retry_wait_s(self.name, arguments))
        return await self._attempt(arguments)

    async def _attempt(self, arguments: Mapping[str, Any]) -> Any:
        async with self.throttle.place():
            return await self._bounded(arguments)

    async def _bounded(self, arguments: Mapping[str, Any]) -> Any:
        try:
            async with asyncio.timeout(self.timeout_s) as limit:
                return await call(self.function, **arguments)
        except (ToolError, EpisodeFailure):
            raise
        # SystemExit too: a tool that calls `exit()` must not take the run along.
        except (Exception, SystemExit) as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise ToolError(f"timed out after {self.timeout_s:g} s") from None
            raise ToolFailure(f"tool {self.name} raised {type(error).__name__}: {error}") from error

    def to_text(self, result: Any) -> str:
        """Return a result as the model reads it: text as it is, everything else but images as JSON.

        Raises:
            ToolFailure: The result has no JSON form.
        """
        if isinstance(result, str | ToolOutput):
            return result if isinstance(result, str) else result.text
        try:
            return json.dumps(to_jsonable_python(result), ensure_ascii=False)
        except ValueError as error:
            raise ToolFailure(f"the result of tool {self.name} has no JSON form: {error}") from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, without validation."""
        return self.function(*args, **kwargs)

    def __get__(self, instance: object | None, owner: type | None = None) -> "Tool":
        """Bind a method's tool to its instance."""
        if instance is None or not _is_method(self.function):
            return self
        return replace(self, function=partial(self.function, instance))


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...


@overload
def tool(
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    parallel: bool = False,
    idempotent: bool = False,
    max_concurrency: int | None = None,
    rate_per_s: float | None = None,
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    parallel: bool = False,
    idempotent: bool = False,
    max_concurrency: int | None = None,
    rate_per_s: float | None = None,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a typed function, or of a method (its first parameter is `self`).

    A plain function runs in a thread of its own; an async one runs in the event loop and must not block it.

    Args:
        function: A function, sync or async, each parameter with a type.
        name: What the model calls it; the function's own name by default.
        timeout_s: Seconds after which a call becomes the text `timed out`.
        parallel: Let the calls of one turn overlap.
        idempotent: Repeat a call that broke, once, after a moment: only where a call that happens twice does no harm.
        max_concurrency: Most calls under way at once, over all episodes of the process; one given up counts no more.
        rate_per_s: Most calls that start in a second, over all episodes of the process; evenly spaced.

    Raises:
        ConfigError: A parameter has no type or one that JSON cannot carry, or a bound lets no call through.
    """
    throttle = Throttle(max_concurrency, rate_per_s)
    make = partial(_make, name=name, timeout_s=timeout_s, parallel=parallel, idempotent=idempotent, throttle=throttle)
    return make if function is None else make(function)


def retry_wait_s(name: str, arguments: Mapping[str, Any]) -> float:
    """Return the seconds before a call is repeated: 0.25 to 0.75, the same for the same call in every run."""
    written = json.dumps(to_jsonable_python(arguments, fallback=lambda value: type(value).__name__), sort_keys=True)
    generator = random.Random(hashlib.sha256(f"{name} {written}".encode()).digest())  # noqa: S311
    return _RETRY_WAIT_S * (0.5 + generator.random())


def tools_of(owner: object) -> dict[str, Tool]:
    """Return the tools of an instance or class by name: base classes first, each in order of definition.

    Raises:
        ConfigError: Two attributes are tools of the same name.
    """
    mro = type(owner).__mro__ if not inspect.isclass(owner) else owner.__mro__
    attributes = {name: None for base in reversed(mro) for name, value in vars(base).items() if isinstance(value, Tool)}
    tools: dict[str, Tool] = {}
    for attribute in attributes:
        found = getattr(owner, attribute)
        if isinstance(found, Tool) and tools.setdefault(found.name, found) is not found:
            raise ConfigError(f"{mro[0].__name__} has two tools named {found.name!r}.", "Rename one: @tool(name=...).")
    return tools


def join_tools(*sources: Mapping[str, Tool]) -> dict[str, Tool]:
    """Return the tools of several sources by name.

    Raises:
        ConfigError: Two sources have a tool of the same name.
    """
    joined: dict[str, Tool] = {}
    for source in sources:
        for name, found in source.items():
            if name in joined:
                raise ConfigError(f"There are two tools named {name!r}.", "Rename one, or give its source a prefix.")
            joined[name] = found
    return joined


def _make(
    function: Callable[..., Any],
    *,
    name: str | None,
    timeout_s: float | None,
    parallel: bool,
    idempotent: bool,
    throttle: Throttle,
) -> Tool:
    name = name or function.__name__
    signature = _signature_of(function, name)
    doc = parse_docstring(inspect.getdoc(function) or "")
    parameters = signature.json_schema(schema_generator=_Untitled)
    for described in doc.params:
        if described.arg_name in parameters["properties"]:
            parameters["properties"][described.arg_name].setdefault("description", described.description or "")
    return Tool(
        name=name,
        description="\n".join(filter(None, (doc.short_description, doc.long_description))),
        parameters=parameters,
        function=function,
        timeout_s=timeout_s,
        parallel=parallel,
        idempotent=idempotent,
        throttle=throttle,
        check=partial(_checked, signature, list(parameters["properties"])),
    )


def _checked(signature: TypeAdapter[dict[str, Any]], names: list[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return signature.validate_python(dict(arguments))
    except ValidationError as error:
        absent = [name for name in names if name not in arguments]
        raise ToolError("; ".join(_describe(item, absent) for item in error.errors())) from None


def _signature_of(function: Callable[..., Any], name: str) -> TypeAdapter[dict[str, Any]]:
    """Return what validates the arguments: the function's signature, without `self` and without its body.

    Pydantic validates on behalf of `bind`, so that an error raised inside the tool is never taken for a wrong argument.
    """

    def bind(**arguments: Any) -> dict[str, Any]:
        return arguments

    kept = list(inspect.signature(function).parameters.values())[1 if _is_method(function) else 0 :]
    for parameter in kept:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"Tool {name!r} takes {parameter}.", "A model names its arguments: spell each one out.")
        if parameter.annotation is parameter.empty:
            raise ConfigError(f"Tool {name!r}: parameter {parameter.name!r} has no type.", "Annotate it.")
    bind.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in kept])  # type: ignore[attr-defined]
    bind.__annotations__ = {key: value for key, value in function.__annotations__.items() if key != "return"}
    bind.__module__ = function.__module__
    try:
        adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(cast(Any, bind), config=_LAX)
        adapter.json_schema()
    except (PydanticUserError, NameError) as error:
        raise ConfigError(f"Tool {name!r}: {str(error).splitlines()[0]}", "Use types that JSON can carry.") from error
    return adapter


def _is_method(function: Callable[..., Any]) -> bool:
    return next(iter(inspect.signature(function).parameters), None) == "self"


class _Untitled(GenerateJsonSchema):
    """JSON schema without `title: Query` beside `query`: the policy pays for every token of it."""

    def field_title_should_be_set(self, schema: CoreSchema | Any) -> bool:
        """Never."""
        return False


def _describe(item: ErrorDetails, absent: list[str]) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("missing_argument", "missing_keyword_only_argument", "missing"):
        return f"{path}: missing"
    if item["type"] == "unexpected_keyword_argument":
        near = get_close_matches(path, absent, n=1)
        return f"{path}: unexpected argument" + (f" (did you mean {near[0]}?)" if near else "")
    given = repr(item["input"])
    if len(given) > _MAX_SHOWN_CHARS:
        given = given[:_MAX_SHOWN_CHARS] + "..."
    return f"{path}: {item['msg'].removeprefix('Input ')}, got {given}"

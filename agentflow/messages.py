"""What environments and policies say to each other: messages and tool calls, never tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
ToolSchema: TypeAlias = Mapping[str, Any]
"""One tool as a chat template sees it: `{"type": "function", "function": {name, description, parameters}}`."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a policy asked for.

    Attributes:
        name: The tool's name as the policy wrote it; it may not exist.
        arguments: The arguments as the policy wrote them; not yet validated.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        content: The text; empty where the message only carries tool calls.
        tool_calls: The calls an assistant asked for, in order.
        name: For a tool message, the tool that answered.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        """Replace lone surrogates, which some web pages and JSON texts hold: no tokenizer and no file takes them."""
        if not self.content.isascii():
            object.__setattr__(self, "content", self.content.encode("utf-8", "replace").decode())


@dataclass(frozen=True, slots=True)
class Reply:
    """What a policy's tokens turned out to say.

    Attributes:
        message: The assistant message; its `content` is the raw text where the tokens did not parse.
        error: Why the tokens are not a well-formed message, in words that a model can act on; empty if they are.
    """

    message: Message
    error: str = ""


def to_chat(message: Message) -> dict[str, Any]:
    """Return the message in the form that Hugging Face chat templates and OpenAI-compatible servers read."""
    chat: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        chat["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.name:
        chat["name"] = message.name
    return chat

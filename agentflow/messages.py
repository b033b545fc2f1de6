"""What environments and policies say to each other: messages and tool calls, never tokens."""

import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, PlainSerializer

MAX_IMAGE_BYTES = 4 << 20
"""A larger image is refused."""
MAX_IMAGE_SIDE = 8192
"""So is a PNG of more pixels in width or height: whoever decodes it pays for its pixels, not for its bytes."""
_SIGNATURES: Mapping[str, tuple[bytes, ...]] = {
    "image/png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}
_PNG_END = b"IEND\xaeB`\x82"
_PNG_SIZE = struct.Struct(">II")
_PNG_HEAD_BYTES = 33

Base64Bytes: TypeAlias = Annotated[
    bytes,
    BeforeValidator(lambda value: b64decode(value, validate=True) if isinstance(value, str) else value),
    PlainSerializer(lambda value: b64encode(value).decode(), return_type=str),
]
"""Bytes that are base64 in JSON."""
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
class Image:
    """A picture in a message; its first bytes are checked, it is never decoded here.

    Attributes:
        media_type: `image/png`, `image/jpeg`, `image/gif` or `image/webp`.
        data: The file; base64 in JSON.

    Raises:
        ValueError: It is too large, or no such file.
    """

    media_type: str
    data: Base64Bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what is no such file."""
        if self.media_type not in _SIGNATURES:
            raise ValueError(f"images of {self.media_type!r} are not known; known are {', '.join(_SIGNATURES)}")
        if len(self.data) > MAX_IMAGE_BYTES:
            raise ValueError(f"an image of {len(self.data)} bytes, more than {MAX_IMAGE_BYTES}")
        is_whole = self.media_type != "image/png" or (len(self.data) > _PNG_HEAD_BYTES and self.data.endswith(_PNG_END))
        if not is_whole or not self.data.startswith(_SIGNATURES[self.media_type]):
            raise ValueError(f"an image that is no {self.media_type}")
        if self.size is not None and not all(1 <= side <= MAX_IMAGE_SIDE for side in self.size):
            raise ValueError(f"an image of {self.size[0]}x{self.size[1]} pixels, more than {MAX_IMAGE_SIDE} in a row")

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels of a PNG; None for other types."""
        if self.media_type != "image/png":
            return None
        width, height = _PNG_SIZE.unpack_from(self.data, len(_SIGNATURES["image/png"][0]))
        return width, height

    @property
    def shown(self) -> str:
        """What it is, in words: its type, and its size where that is known."""
        return self.media_type if self.size is None else f"{self.media_type}, {self.size[0]}x{self.size[1]}"

    @property
    def url(self) -> str:
        """The image as a `data:` address."""
        return f"data:{self.media_type};base64,{b64encode(self.data).decode()}"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        content: The text; empty where the message only carries tool calls.
        tool_calls: The calls an assistant asked for, in order.
        name: For a tool message, the tool that answered.
        images: What is shown after the text.
        imitate: Of what an expert says, whether imitation learns it; else it is said and done, and its tokens are what
            the model reads.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    images: tuple[Image, ...] = ()
    imitate: bool = True

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


def in_words(message: Message) -> Message:
    """Return the message as a model that reads only text sees it: one line in place of each image."""
    if not message.images:
        return message
    lines = [f"[image {number}: {image.shown}]" for number, image in enumerate(message.images, 1)]
    return replace(message, content="\n".join(filter(None, (message.content, *lines))), images=())


def to_chats(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return a conversation as OpenAI-compatible servers read it.

    They take images from users only: those that tools returned follow the tools' messages as a message of the user.
    """
    return [to_chat(message) for message in _images_by_users(messages)]


def to_chat(message: Message) -> dict[str, Any]:
    """Return the message in the form that Hugging Face chat templates and OpenAI-compatible servers read.

    Its content is text, or OpenAI's list of parts where it has images.
    """
    chat: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        text = [{"type": "text", "text": message.content}] if message.content else []
        chat["content"] = text + [{"type": "image_url", "image_url": {"url": image.url}} for image in message.images]
    if message.tool_calls:
        chat["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.name:
        chat["name"] = message.name
    return chat


def _images_by_users(messages: Sequence[Message]) -> Iterator[Message]:
    for by_tools, neighbours in groupby(messages, lambda message: message.role == "tool"):
        said = list(neighbours)
        if not by_tools:
            yield from said
            continue
        yield from map(in_words, said)
        images = tuple(image for message in said for image in message.images)
        if images:
            yield Message("user", "The images that the tools returned:", images=images)

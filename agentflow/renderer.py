"""Messages to tokens and back, by appending only.

    prompt_0 = start(messages, tools)                    the first prompt, up to where the assistant speaks
    prompt_k = prompt_{k-1} + sampled_{k-1} + extend(messages)

What the policy sampled is never rendered again: `extend` returns the tokens that stand between a sampled turn and
the next one, whatever the sampled turn said. So the transcript only grows even where a chat template would rewrite
history, as those that drop the reasoning of earlier turns do. A template that leaves a turn out altogether is refused
at construction.

A policy here reads text alone: an image is one line that names its type and size, in training and serving alike.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing.response_parser import ResponseParser
from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template

from agentflow.errors import ModelError
from agentflow.messages import Message, Reply, ToolCall, ToolSchema, in_words, to_chat
from agentflow.trajectory import Completion

_MAX_REMEMBERED = 1 << 16  # observations whose tokens are kept; groups see the same ones again and again
_MARK = "agentflowprobe"  # what the probing turns say: found again in whatever a template makes of them
_PROBE = Message("assistant", _MARK)
_PROBE_SYSTEM = Message("system", "rules")
_PROBE_USER = Message("user", "question")
_PROBE_CALL = Message("assistant", "", (ToolCall("tool", {"argument": _MARK}),))


class Renderer:
    """Render conversations with a tokenizer's own chat template and read replies with its response template.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        tools: The tools that the policy is told of in the first prompt.

    Raises:
        ModelError: The tokenizer has no chat template, its template does not close an assistant turn with a special
            token or leaves one out, or tools are given and nothing says how its tool calls are written.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[ToolSchema] = ()) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template.",
                "Use an instruction-tuned model, or put a chat_template.jinja beside its tokenizer.",
            )
        self.tokenizer = tokenizer
        self.tools: list[Any] = [dict(tool) for tool in tools]
        self._template = load_response_template(_response_template(tokenizer)) if tools else None
        added = sorted(str(token) for token in tokenizer.added_tokens_decoder.values())
        special = [token for token in added if token.strip()]
        self._special = re.compile("|".join(re.escape(token) for token in special)) if special else None
        self._opening = self._render([_PROBE_SYSTEM, _PROBE_USER], generation=True)
        self._closing_id = self._find_closing()
        self._closing_text = str(tokenizer.decode([self._closing_id]))
        eos = tokenizer.eos_token_id
        self.stop_ids = frozenset({self._closing_id} | ({eos} if isinstance(eos, int) else set()))
        self._extensions: dict[tuple[Message, ...], tuple[int, ...]] = {}
        self.extend([Message("user", "next")])
        if self.tools:
            self.extend([Message("tool", "result", name="tool")])

    def start(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of the first prompt, up to where the assistant speaks."""
        return self._encode(self._render(messages, generation=True))

    def extend(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the tokens between the stop token of a sampled turn and the place where the next one starts."""
        key = tuple(map(in_words, messages))
        if any(message.tool_calls for message in key):  # their arguments cannot be hashed
            return tuple(self._encode(self._between(key)))
        if len(self._extensions) >= _MAX_REMEMBERED:
            self._extensions.clear()
        if key not in self._extensions:
            self._extensions[key] = tuple(self._encode(self._between(key)))
        return self._extensions[key]

    def reply(self, message: Message) -> list[int]:
        """Return the tokens with which a policy would say `message`, the stop token included: for imitation."""
        before = self._opening
        after = self._render([_PROBE_SYSTEM, _PROBE_USER, message], generation=False)
        if not after.startswith(before):
            raise ModelError(
                f"The chat template of {self.tokenizer.name_or_path!r} writes an assistant turn differently once it "
                "is complete.",
                "Imitation needs a template whose generation prompt is a prefix of the finished turn.",
            )
        ids = self._encode(after[len(before) :])
        last = max((i for i, token in enumerate(ids) if token in self.stop_ids), default=len(ids) - 1)
        return ids[: last + 1]

    def closing(self) -> int:
        """Return the token that is appended where a turn was cut before its stop token."""
        return self._closing_id

    def parse(self, completion: Completion) -> Reply:
        """Read what a policy said; a reply that is not well formed carries the error and the raw text."""
        ids = completion.token_ids
        kept = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        text = str(self.tokenizer.decode(list(kept), skip_special_tokens=False))
        if completion.finish_reason == "length":
            return Reply(Message("assistant", text), f"Your turn was cut at its limit of {len(ids)} tokens.")
        if self._template is None:
            return Reply(Message("assistant", text.strip()))
        return self._parse_text(text, self._template)

    def _parse_text(self, text: str, template: ResponseTemplate) -> Reply:
        parser = ResponseParser(template, prefix="", tools=self.tools)
        try:
            opened = [event["field"] for event in parser.feed(text) if event["type"] in ("region_open", "region_close")]
            unclosed = {name for name in opened if opened.count(name) % 2 and name != "content"}
            parsed, _ = parser.finalize()
            if unclosed:
                return Reply(Message("assistant", text), f"Your message has an unclosed {sorted(unclosed)[0]} section.")
            calls = tuple(_tool_call(call) for call in parsed.get("tool_calls", ()))
        except (ValueError, KeyError, TypeError) as error:
            return Reply(Message("assistant", text), f"Your tool call is malformed: {error}.")
        content = str(parsed.get("content", "")).strip()
        if not content and not calls:
            return Reply(Message("assistant", text), "Your message is empty: call a tool or answer.")
        return Reply(Message("assistant", content, calls))

    def _render(self, messages: Sequence[Message], *, generation: bool) -> str:
        try:
            rendered: Any = self.tokenizer.apply_chat_template(
                [to_chat(self._defused(in_words(message))) for message in messages],
                tools=self.tools or None,
                add_generation_prompt=generation,
                tokenize=False,
            )
        except TemplateError as error:
            raise ModelError(
                f"The chat template of {self.tokenizer.name_or_path!r} refuses {[m.role for m in messages]}: {error}.",
                "Use a model whose template takes system, user, assistant and tool messages.",
            ) from error
        return str(rendered)

    def _defused(self, message: Message) -> Message:
        """Break up special tokens that stand in a message's text: a web page must not end the turn it is quoted in."""
        if message.role == "assistant" or self._special is None or not self._special.search(message.content):
            return message
        content = self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", message.content)
        return replace(message, content=content)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _between(self, messages: tuple[Message, ...]) -> str:
        """Render after a known assistant turn and cut off everything up to the token that closes it.

        The assistant turn before a tool message must carry a call: many templates refuse a result without one.
        """
        after_call = bool(messages) and messages[0].role == "tool"
        history = [_PROBE_SYSTEM, _PROBE_USER, _PROBE_CALL if after_call else _PROBE]
        after = self._after_mark(self._render([*history, *messages], generation=True))
        _, closed, between = after.partition(self._closing_text)
        if not closed:
            raise ModelError(
                f"The chat template of {self.tokenizer.name_or_path!r} leaves out the end of an assistant turn when "
                "messages follow it.",
                "Training needs a template that closes each turn in the same way.",
            )
        return between

    def _find_closing(self) -> int:
        """Take the first special token after what an assistant said: the one that closes its turn."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        after = self._after_mark(self._render([_PROBE_SYSTEM, _PROBE_USER, _PROBE], generation=False))
        closing = next((token for token in self._encode(after) if token in special), None)
        if closing is None:
            raise ModelError(
                f"The chat template of {self.tokenizer.name_or_path!r} does not close an assistant turn with a "
                "special token.",
                "A policy needs a token that ends its turn: add one to the template and to the tokenizer.",
            )
        return closing

    def _after_mark(self, rendered: str) -> str:
        # The first one: what is quoted after it may hold the mark as well.
        _, found, after = rendered.partition(_MARK)
        if not found:
            raise ModelError(
                f"The chat template of {self.tokenizer.name_or_path!r} leaves out an assistant turn.",
                "Training needs a template that keeps the whole history.",
            )
        return after


def _tool_call(parsed: dict[str, Any]) -> ToolCall:
    function = parsed["function"]
    if not isinstance(function["arguments"], dict):
        raise ValueError("the arguments are not an object of named values")
    # JSON can escape what no text may hold: lone surrogates.
    written = json.dumps([str(function["name"]).strip(), function["arguments"]], ensure_ascii=False)
    name, arguments = json.loads(written.encode("utf-8", "replace"))
    return ToolCall(name, arguments)


@lru_cache(maxsize=8)
def _fallback_templates() -> dict[str, Any]:
    # transformers ships templates for families whose repositories do not; the module pulls in its server code.
    from transformers.cli.serving.utils import _RESPONSE_TEMPLATE_FALLBACKS  # noqa: PLC0415

    return {family: spec for families, spec in _RESPONSE_TEMPLATE_FALLBACKS.items() for family in families}


def _response_template(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    own = getattr(tokenizer, "response_template", None)
    if own:
        return dict(own)
    template = str(tokenizer.chat_template)
    family = "qwen3_5" if "<function=" in template else "qwen3" if "<tool_call>" in template else ""
    if family and "<|im_start|>" in template:
        return dict(_fallback_templates()[family])
    raise ModelError(
        f"Nothing says how the tokenizer of {tokenizer.name_or_path!r} writes tool calls.",
        "Set `response_template` in its tokenizer_config.json (see transformers' chat parsing).",
    )

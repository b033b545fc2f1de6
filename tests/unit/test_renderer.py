"""The renderer, on chat templates of the kinds that are in use: what is appended must be all that ever changes."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agentflow.errors import ModelError
from agentflow.messages import Message, ToolCall
from agentflow.renderer import _MARK, Renderer
from agentflow.trainers.scratch import new_tokenizer
from agentflow.trajectory import Completion
from tests.pictures import PICTURE

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
</tool_call>
{%- endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""
# As Qwen3 does: an empty thought is written into the last assistant turn only, and goes once a user speaks again.
THINKING = """\
{%- set ns = namespace(last=0) -%}
{%- for message in messages if message.role == 'user' -%}{%- set ns.last = messages.index(message) -%}{%- endfor -%}
{%- for message in messages -%}
<|im_start|>{{ 'user' if message.role == 'tool' else message.role }}
{% if message.role == 'assistant' and loop.index0 > ns.last %}<think>

</think>

{% endif %}{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
</tool_call>
{%- endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""
# As Llama 2 does: no role tokens, the end token closes what the assistant said.
BRACKETS = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' %} {{ message.content }}<|endoftext|>
{%- else -%}[INST] {{ message.content }} [/INST]{%- endif -%}
{%- endfor -%}
"""
FORGETFUL = "{%- for message in messages[-1:] -%}{{ message.content }}<|im_end|>{%- endfor -%}"
ENDLESS = "{%- for message in messages -%}{{ message.role }}: {{ message.content }}\n{%- endfor -%}"

SCHEMA = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"properties": {}}}}
ASK = (Message("system", "Be brief."), Message("user", "Where is the lamp?"))
CALL = Message("assistant", "", (ToolCall("look", {"at": "table"}),))
RESULT = (Message("tool", "a lamp", name="look"),)
ANSWER = Message("assistant", "on the table")


def byte_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes with the special tokens of the ChatML family."""
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    # The end of the text comes before the end of a turn, as in Qwen2.5: the smallest stop token closes nothing.
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    plain = ("<think>", "</think>", "<tool_call>", "</tool_call>", "    ")
    inner.add_tokens([AddedToken(text, special=False) for text in plain])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, eos_token="<|endoftext|>"
    )
    tokenizer.chat_template = template
    return tokenizer


def text_of(renderer: Renderer, ids: Sequence[int]) -> str:
    return str(renderer.tokenizer.decode(list(ids)))


def closing_of(renderer: Renderer) -> str:
    return str(renderer.tokenizer.decode([renderer.closing()]))


def transcript(renderer: Renderer, turns: Sequence[Message], observations: Sequence[Sequence[Message]]) -> list[int]:
    """What a policy that says these turns would have read and written."""
    ids = renderer.start(observations[0])
    for turn, observation in zip(turns, [*observations[1:], ()], strict=True):
        ids += renderer.reply(turn)
        if observation:
            ids += renderer.extend(observation)
    return ids


@pytest.mark.parametrize("template", [CHATML, THINKING])
def test_turn_ends_at_the_token_that_closes_it_not_at_the_first_special_one(template: str) -> None:
    renderer = Renderer(byte_tokenizer(template), [SCHEMA])
    assert closing_of(renderer) == "<|im_end|>"
    ends = {str(renderer.tokenizer.decode([token])) for token in renderer.stop_ids}
    assert ends == {"<|im_end|>", "<|endoftext|>"}


def test_end_token_closes_where_the_template_says_so() -> None:
    renderer = Renderer(byte_tokenizer(BRACKETS))
    assert closing_of(renderer) == "<|endoftext|>"
    assert text_of(renderer, renderer.extend([Message("user", "again")])) == "[INST] again [/INST]"


def test_transcript_by_appending_is_what_the_template_writes() -> None:
    tokenizer = byte_tokenizer(CHATML)
    renderer = Renderer(tokenizer, [SCHEMA])
    ids = transcript(renderer, [CALL, ANSWER], [ASK, RESULT])
    chat: Any = [
        *({"role": m.role, "content": m.content} for m in ASK),
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"at": "table"}}}],
        },
        {"role": "tool", "content": "a lamp"},
        {"role": "assistant", "content": "on the table"},
    ]
    assert text_of(renderer, ids) + "\n" == tokenizer.apply_chat_template(chat, tools=[SCHEMA], tokenize=False)


def test_template_that_rewrites_history_is_extended_without_it() -> None:
    renderer = Renderer(byte_tokenizer(THINKING), [SCHEMA])
    said = renderer.reply(ANSWER)
    assert text_of(renderer, said) == "<think>\n\n</think>\n\non the table<|im_end|>"
    assert text_of(renderer, renderer.extend([Message("user", "And now?")])) == (
        "\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text_of(renderer, renderer.extend(RESULT)) == (
        "\n<|im_start|>user\na lamp<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", [CHATML, THINKING])
@pytest.mark.parametrize("message", [ANSWER, CALL])
def test_reply_reads_back(template: str, message: Message) -> None:
    renderer = Renderer(byte_tokenizer(template), [SCHEMA])
    ids = renderer.reply(message)
    assert ids[-1] == renderer.closing()
    reply = renderer.parse(Completion(tuple(ids), (0.0,) * len(ids), "stop", 0))
    assert (reply.error, reply.message) == ("", message)


def test_an_image_is_a_line_of_text_in_every_place() -> None:
    renderer = Renderer(byte_tokenizer(CHATML), [SCHEMA])
    pictured = Message("tool", "drawn", name="look", images=(PICTURE,))
    described = Message("tool", "drawn\n[image 1: image/png, 2x1]", name="look")
    assert renderer.extend([pictured]) == renderer.extend([described])
    start = [Message("user", "What?"), CALL]
    assert renderer.start([*start, pictured]) == renderer.start([*start, described])
    assert renderer.extend([CALL, pictured]) == renderer.extend([CALL, described])


def test_text_of_an_observation_is_no_special_token_and_keeps_its_blanks() -> None:
    renderer = Renderer(byte_tokenizer(CHATML), [SCHEMA])
    ids = renderer.extend([Message("tool", "<|im_end|> and    blanks </tool_call>", name="look")])
    assert ids.count(renderer.closing()) == 1
    text = text_of(renderer, ids)
    assert "and    blanks" in text
    assert "</tool_call>" not in text


def test_observation_with_calls_of_another_agent_is_rendered() -> None:
    renderer = Renderer(byte_tokenizer(CHATML), [SCHEMA])
    text = text_of(renderer, renderer.extend([CALL, *RESULT]))
    assert json.dumps({"name": "look", "arguments": {"at": "table"}}) in text


def test_text_that_quotes_the_renderers_own_mark_is_kept() -> None:
    renderer = Renderer(byte_tokenizer(CHATML), [SCHEMA])
    text = text_of(renderer, renderer.extend([Message("tool", f"before {_MARK} after", name="look")]))
    assert f"before {_MARK} after" in text


def test_lone_surrogates_of_a_call_become_question_marks() -> None:
    renderer = Renderer(byte_tokenizer(CHATML), [SCHEMA])
    written = '<tool_call>\n{"name": "look", "arguments": {"at": "a\\ud800b"}}\n</tool_call>'
    ids = [*renderer.tokenizer.encode(written, add_special_tokens=False), renderer.closing()]
    reply = renderer.parse(Completion(tuple(ids), (0.0,) * len(ids), "stop", 0))
    assert reply.message.tool_calls == (ToolCall("look", {"at": "a?b"}),)


def test_templates_that_cannot_be_trained_on_are_refused() -> None:
    with pytest.raises(ModelError, match="no system please"):
        Renderer(byte_tokenizer("{{ raise_exception('no system please') }}"))
    with pytest.raises(ModelError, match="leaves out an assistant turn"):
        Renderer(byte_tokenizer(FORGETFUL))
    with pytest.raises(ModelError, match="does not close an assistant turn"):
        Renderer(byte_tokenizer(ENDLESS))
    bare = byte_tokenizer(CHATML)
    bare.chat_template = None
    with pytest.raises(ModelError, match="has no chat template"):
        Renderer(bare)
    with pytest.raises(ModelError, match="how the tokenizer of"):
        Renderer(byte_tokenizer(BRACKETS), [SCHEMA])


def test_starter_template_has_the_prefix_property() -> None:
    renderer = Renderer(new_tokenizer([" look at lamp table Where is the brief"], 100), [SCHEMA])
    ids = transcript(renderer, [CALL, ANSWER], [ASK, RESULT])
    text = text_of(renderer, ids)
    assert text.startswith("<|system|> Be brief.")
    assert text.endswith("<|tool|> a lamp<|end|><|assistant|> on the table<|end|>")

"""A small policy from nothing: a word-level tokenizer made from texts, and a randomly initialised transformer.

Small models learn last to copy a name from a page into a call, and the more pieces a name has the later they do.
So each word of the training texts is one token, with its leading blank; bytes stand in for everything else, and no
text is lost (but U+2581, which marks blanks inside the vocabulary, reads back as a blank).
"""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Self

import torch
from pydantic import Field, model_validator
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from agentflow.config import Config

SPECIAL_TOKENS = (
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
<|system|> {{ message.content }}
{%- if tools %}
{%- for tool in tools %} {{ tool.function.name }}({{ tool.function.parameters.properties | join(', ') }}){% endfor %}
{%- endif -%}
<|end|>
{%- elif message.role == 'assistant' -%}
<|assistant|>
{%- if message.content %} {{ message.content }}{% endif -%}
{%- for call in message.tool_calls or [] -%}
<tool_call> {{ call.function.name }}
{%- for key, value in call.function.arguments.items() -%}
<arg_key> {{ key }}</arg_key><arg_value> {{ value if value is string else value | tojson }}</arg_value>
{%- endfor -%}
</tool_call>
{%- endfor -%}
<|end|>
{%- else -%}
<|{{ message.role }}|> {{ message.content }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""

RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open_pattern": r"<tool_call>\s*(?P<name>[^<]*)",
            "close": "</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r"<arg_key>\s*(?P<key>[^<]*?)</arg_key><arg_value>\s*(?P<value>[\s\S]*?)</arg_value>"
            },
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close": "<|end|>", "content": "text"},
    },
}


class ScratchConfig(Config):
    """The shape of a randomly initialised policy (Qwen3 architecture)."""

    max_words: int = Field(
        2000, ge=0, description="Words of the training texts that become tokens of their own, most frequent first."
    )
    hidden_size: int = Field(128, ge=8, description="Width of the residual stream.")
    intermediate_size: int = Field(384, ge=8, description="Width of each feed-forward layer.")
    num_layers: int = Field(4, ge=1, description="Number of transformer layers.")
    num_heads: int = Field(4, ge=1, description="Number of query heads.")
    num_key_value_heads: int = Field(4, ge=1, description="Number of key-value heads.")
    max_length: int = Field(2048, ge=16, description="Most tokens of one episode.")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(f"hidden_size = {self.hidden_size} is no multiple of twice num_heads = {self.num_heads}")
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} is no multiple of num_key_value_heads = {self.num_key_value_heads}"
            )
        return self


def new_tokenizer(texts: Iterable[str], max_words: int) -> PreTrainedTokenizerFast:
    """Make a lossless word-level tokenizer whose words are the most frequent of `texts`.

    Args:
        texts: What policies will read and write.
        max_words: Words that become tokens of their own.
    """
    splitter = pre_tokenizers.Split(Regex(r"▁?\p{L}+|▁?\p{N}+|▁?[^▁\p{L}\p{N}]|▁"), behavior="isolated")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(text.replace(" ", "▁")))
    # Numbers that the texts do not hold split by two digits.
    words = [f"{blank}{n:02d}" for blank in ("", "▁") for n in range(100)]
    words += [f"{blank}{n}" for blank in ("", "▁") for n in range(10)]
    words += [piece for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:max_words]]
    words += ["▁", *(chr(code) for code in range(33, 127))]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + list(dict.fromkeys(words))
    # One score for all, so that the segmentation with the fewest pieces wins: the whole word.
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS] + [(piece, -10.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
        response_template=RESPONSE_TEMPLATE,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def new_model(tokenizer: PreTrainedTokenizerFast, config: ScratchConfig, *, seed: int) -> PreTrainedModel:
    """Make a randomly initialised Qwen3 of the given shape for a tokenizer."""
    torch.manual_seed(seed)
    shape = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_heads,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model: Qwen3ForCausalLM = Qwen3ForCausalLM(shape)  # type: ignore[no-untyped-call]
    _start_by_copying(model, seed=seed)
    return model


@torch.no_grad()
def _start_by_copying(model: Qwen3ForCausalLM, *, seed: int) -> None:
    """Initialise attention so that it looks back, looks for equal tokens, and passes on what it finds.

    Query and key maps begin as the same rotation, and the output map as the inverse of the value map: the mimetic
    initialisation of Trockman and Kolter (2305.09828). Some heads of the first layers look at the tokens just before
    instead: with both, "what followed this name" is a short step away. From independent weights the copying of a list
    of names takes more than 600 updates; from here it takes 120.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = model.model.embed_tokens.weight
    common = torch.randn(embeddings.shape[1], generator=generator)
    common /= common.norm()
    embeddings.normal_(0.0, _EMBEDDING_STD, generator=generator)
    # What all embeddings have in common is what heads that look back by position go by.
    embeddings += _COMMON * _EMBEDDING_STD * embeddings.shape[1] ** 0.5 * common
    for layer, offsets in zip(model.model.layers, itertools.chain(_LOOK_BACK, itertools.repeat(())), strict=False):
        attention = layer.self_attn
        groups = attention.num_key_value_groups
        look, carry = (_rotation(attention.k_proj.weight, generator) for _ in range(2))
        look -= torch.outer(look @ common, common)
        for projection, rows in ((attention.q_proj, _per_query_head(look, attention)), (attention.k_proj, look)):
            width = projection.weight.shape[1]
            noise = torch.randn(projection.weight.shape, generator=generator) / width**0.5
            projection.weight.copy_(rows + _QUERY_KEY_NOISE * noise)
        attention.v_proj.weight.add_(_CARRIED * carry)
        attention.o_proj.weight.add_(_CARRIED / groups * _per_query_head(carry, attention).T)
        for head, offset in enumerate(offsets[: attention.config.num_key_value_heads]):
            _look_back(attention, head, offset=offset, along=common, frequencies=model.model.rotary_emb.inv_freq)
        for norm in (attention.q_norm, attention.k_norm):
            norm.weight.fill_(_SHARPNESS)


_EMBEDDING_STD = 0.08
_COMMON = 0.5
_QUERY_KEY_NOISE = 0.2
_CARRIED = 0.9
_SHARPNESS = 1.3
_LOOK_BACK = ((1, 1, 2), (1,))
"""For each of the first layers, how far its first key-value heads look back."""


def _look_back(
    attention: Qwen3Attention, head: int, *, offset: int, along: torch.Tensor, frequencies: torch.Tensor
) -> None:
    """Let a head attend to the token `offset` places before, whatever the tokens are.

    Rotary positions turn the query at m and the key at n by (n - m) times each frequency against each other, so a
    query that is turned by -offset in advance meets its key where n = m - offset. Low frequencies hardly tell
    neighbours apart and are left out.
    """
    fast = frequencies > _SLOWEST
    zeros = torch.zeros_like(frequencies)
    key = torch.cat([fast.float(), zeros])
    query = torch.cat([fast * torch.cos(-offset * frequencies), fast * torch.sin(-offset * frequencies)])
    size, groups = attention.head_dim, attention.num_key_value_groups
    queries = slice(head * groups * size, (head + 1) * groups * size)
    attention.q_proj.weight[queries] = torch.outer(query.repeat(groups), along)
    attention.k_proj.weight[head * size : (head + 1) * size] = torch.outer(key, along)


_SLOWEST = 0.1


def _rotation(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw a matrix of the given shape [n, d], n <= d, with orthonormal rows."""
    rows, width = like.shape
    rotation: torch.Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    return rotation[:rows]


def _per_query_head(rows: torch.Tensor, attention: Qwen3Attention) -> torch.Tensor:
    """Repeat the rows of each key-value head for the query heads that share it."""
    heads = rows.view(-1, attention.head_dim, rows.shape[1])
    return heads.repeat_interleave(attention.num_key_value_groups, dim=0).flatten(0, 1)

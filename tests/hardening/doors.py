"""Every route that takes a prompt, as a stranger sees it: what it is called with, and what it calls
the things that may be wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

RAW = "\ue000raw\ue000"  # stands in a body where a value is put as it is
USER = {"role": "user", "content": "hi"}


@dataclass(frozen=True)
class Door:
    """A route. `names`: what it calls a thing, as a path. `beside`: more fields that a thing goes
    with, or that hold it, where `RAW` stands."""

    path: str
    body: dict[str, Any]
    names: dict[str, str]
    beside: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # more fields that a thing needs
    socket: bool = False  # over the WebSocket

    @property
    def id(self) -> str:
        return "socket" if self.socket else self.path

    def with_thing(self, thing: str, raw: str) -> str:
        """The body with this JSON text as the thing."""
        beside = self.beside.get(thing, {})
        body = json.loads(json.dumps(self.body | beside))
        if RAW not in json.dumps(beside, ensure_ascii=False):
            place = body
            *before, last = self.names[thing].split(".")
            for name in before:
                place = place.setdefault(name, {})
            place[last] = RAW
        return json.dumps(body, ensure_ascii=False).replace(f'"{RAW}"', raw)


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_COMMON = same(
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "ignore_eos",
    "skip_special_tokens",
    "stream",
    "stream_options",
    "priority",
    "deadline_s",
    "session_id",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)
_SCHEMAS = {"schema": "guided_json", "regex": "guided_regex", "grammar": "guided_grammar"}
_CHAT = same("chat_template_kwargs", "thinking_token_budget") | {
    "thinking": "thinking_token_budget"
}
_MANY = same(
    "n", "prompt_logprobs", "include_stop_str_in_output", "return_token_ids", "stream_interval"
)
_RESPONSES = (
    _COMMON | _CHAT | _SCHEMAS | same("tools", "tool_choice", "text", "reasoning", "metadata")
)
_RESPONSES |= {"max_tokens": "max_output_tokens", "prompt": "input", "format": "text.format"}
del _RESPONSES["session_id"]
_FUNCTION = {"name": "f", "strict": True, "parameters": RAW}
_FORMAT = {"type": "json_schema", "name": "x", "schema": RAW}
_HOLDING = {
    "schema@tools": {"tools": [{"type": "function", **_FUNCTION}]},
    "schema@text": {"text": {"format": _FORMAT}},
}
_JUDGING = same("model", "labels", "priority", "deadline_s")
_OPTIONS = {
    name: f"options.{name}"
    for name in "temperature top_p top_k min_p seed stop presence_penalty frequency_penalty".split()
} | {"repetition_penalty": "options.repeat_penalty", "max_tokens": "options.num_predict"}

DOORS = [
    Door(
        "/v1/chat/completions",
        {"messages": [USER], "max_tokens": 2},
        _COMMON
        | _CHAT
        | _MANY
        | _SCHEMAS
        | same("messages", "max_tokens", "max_completion_tokens", "tools", "tool_choice")
        | {"prompt_ids": "input_ids", "top_logprobs": "top_logprobs"}
        | {"schema@tools": "tools", "schema@format": "response_format"},
        {
            "prompt_ids": {"messages": []},
            "top_logprobs": {"logprobs": True},
            "schema@tools": {
                "tools": [{"type": "function", "function": _FUNCTION}],
            },
            "schema@format": {
                "response_format": {"type": "json_schema", "json_schema": {"schema": RAW}}
            },
        },
    ),
    Door(
        "/v1/completions",
        {"prompt": "hi", "max_tokens": 2},
        _COMMON
        | _MANY
        | _SCHEMAS
        | same("max_tokens", "best_of", "prompt")
        | {"prompt_ids": "prompt", "top_logprobs": "logprobs", "many_prompts": "prompt"},
    ),
    Door(
        "/generate",
        {"prompt": "hi", "max_tokens": 2},
        _COMMON
        | _SCHEMAS
        | same("max_tokens", "prompt")
        | {"prompt_ids": "input_ids", "top_logprobs": "top_logprobs_num"},
        {"prompt_ids": {"prompt": None}, "top_logprobs": {"return_logprob": True}},
    ),
    Door("/v1/responses", {"input": "hi", "max_output_tokens": 2, "store": False}, _RESPONSES),
    Door(
        "/v1/sessions/hardened/turns",
        {"input": "hi", "max_output_tokens": 2, "after": "root"},
        _RESPONSES,
        _HOLDING,
    ),
    Door(
        "/v1/responses",
        {"type": "response.create", "input": "hi", "max_output_tokens": 2, "store": False},
        _RESPONSES,
        _HOLDING,
        socket=True,
    ),
    Door(
        "/v1/messages",
        {"messages": [USER], "max_tokens": 2},
        same("model", "messages", "max_tokens", "temperature", "top_p", "top_k", "stream")
        | same("priority", "deadline_s", "system", "tools", "tool_choice", "thinking")
        | {"stop": "stop_sequences", "prompt": "messages"}
        | {"schema@tools": "tools", "schema@format": "output_config"},
        {
            "schema@tools": {
                "tools": [{"name": "f", "input_schema": RAW}],
                "tool_choice": {"type": "any"},
            },
            "schema@format": {"output_config": {"format": {"type": "json_schema", "schema": RAW}}},
        },
    ),
    Door(
        "/v1/messages/count_tokens",
        {"messages": [USER]},
        same("model", "messages", "system", "tools") | {"prompt": "messages"},
    ),
    Door(
        "/api/chat",
        {"messages": [USER], "stream": False, "options": {"num_predict": 2}},
        _OPTIONS
        | same("model", "stream", "format", "tools", "top_logprobs", "think", "options")
        | {"schema@format": "format", "schema@tools": "tools"},
        {
            "schema@tools": {
                "tools": [{"type": "function", "function": _FUNCTION}],
            },
            "top_logprobs": {"logprobs": True},
        },
    ),
    Door(
        "/api/generate",
        {"prompt": "hi", "stream": False, "options": {"num_predict": 2}},
        _OPTIONS
        | same("model", "stream", "format", "top_logprobs", "think", "options")
        | {"schema@format": "format"},
        {"top_logprobs": {"logprobs": True}},
    ),
    Door(
        "/v1/chat/interactive",
        {"prompt": "hi", "request_output_len": 2},
        same("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")
        | same("stream", "session_id", "prompt", "ignore_eos", "skip_special_tokens")
        | {"max_tokens": "request_output_len", "min_tokens": "min_new_tokens"},
    ),
    Door(
        "/v1/embeddings",
        {"input": "hi"},
        same("model", "dimensions", "encoding_format", "pooling", "priority", "deadline_s")
        | {"prompt": "input", "prompt_ids": "input", "many_prompts": "input"},
    ),
    Door(
        "/api/embed",
        {"input": "hi"},
        same("model", "dimensions") | {"prompt": "input"},
    ),
    Door("/v1/score", {"text_1": "a", "text_2": "b"}, _JUDGING),
    Door(
        "/v1/rerank",
        {"query": "a", "documents": ["b"]},
        _JUDGING | same("top_n") | {"many_prompts": "documents"},
    ),
    Door(
        "/get_ppl", {"input": "hi you"}, same("model") | {"prompt": "input", "prompt_ids": "input"}
    ),
    Door(
        "/tokenize",
        {"prompt": "hi"},
        same("model", "add_special_tokens", "return_token_strs"),
    ),
    Door("/detokenize", {"tokens": [65]}, same("model") | {"shown_ids": "tokens"}),
    Door("/v1/encode", {"input": "hi"}, {"add_bos": "add_bos"}),
    Door(
        "/v1/chat/completions/render",
        {"messages": [USER]},
        same("messages", "chat_template_kwargs"),
    ),
]

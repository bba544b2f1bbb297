"""Ollama's bodies, lines and model cards."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import orjson
import pytest

from lmserve.errors import InvalidField, LmserveError
from lmserve.messages import EngineInfo, TokenLogprob
from lmserve.protocol.decode import decode
from lmserve.protocol.ollama.answers import (
    OllamaChatResponse,
    OllamaEncoder,
    OllamaGenerateResponse,
    error_body,
)
from lmserve.protocol.ollama.models import OllamaShowRequest, model_of, running, show
from lmserve.protocol.ollama.requests import OllamaChatRequest, OllamaGenerateRequest
from lmserve.protocol.ollama.teller import OllamaTeller
from lmserve.types import (
    CallArguments,
    CallBegun,
    Content,
    Done,
    GenerateRequest,
    Part,
    Reasoning,
    Structure,
    TextDelta,
    Tool,
    Usage,
)
from tests.protocol.told import Bytes, Time

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> GenerateRequest:
    return decode(orjson.dumps(fields), OllamaChatRequest)[0].to_generate("ann", "m")


def generate(**fields: Any) -> GenerateRequest:
    return decode(orjson.dumps(fields), OllamaGenerateRequest)[0].to_generate("ann", "m")


def test_options_are_ours_under_other_names() -> None:
    options = {
        "num_predict": 7,
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 9,
        "stop": ["a", "b"],
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "num_ctx": 4096,
        "mirostat": 0,
        "typical_p": 1,
    }
    asked = chat(messages=HI, options=options, keep_alive="5m")
    assert (asked.owner, asked.model, asked.messages) == ("ann", "m", HI)
    assert (asked.max_tokens, asked.temperature, asked.top_p, asked.top_k) == (7, 1.0, 0.5, 3)
    assert (asked.min_p, asked.seed, asked.stop) == (0.1, 9, ("a", "b"))
    assert (asked.repetition_penalty, asked.presence_penalty) == (1.1, 0.2)
    assert asked.frequency_penalty == 0.3
    assert asked.params["max_tokens"] == "options.num_predict"


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({}, "max_tokens", None),
        ({"num_predict": -1}, "max_tokens", None),
        ({"num_predict": -2}, "max_tokens", None),
        ({"num_predict": 0}, "max_tokens", 0),  # for the validator to refuse
        ({"seed": -1}, "seed", None),
        ({"seed": 0}, "seed", 0),
        ({"stop": "a"}, "stop", ("a",)),
        ({"stop": None}, "stop", ()),
    ],
)
def test_values_with_a_meaning_of_their_own(options: Any, name: str, value: Any) -> None:
    assert getattr(generate(prompt="a", options=options), name) == value


def test_a_prompt_is_a_turn_unless_raw() -> None:
    asked = generate(prompt="hi", system="Be brief.", options=None)
    assert asked.messages == [{"role": "system", "content": "Be brief."}, *HI]
    assert generate(prompt="hi").messages == HI
    asked = generate(prompt="hi", raw=True)
    assert (asked.text, asked.messages) == ("hi", None)
    with pytest.raises(InvalidField, match="system cannot be used with raw"):
        generate(prompt="hi", raw=True, system="a")


@pytest.mark.parametrize(
    ("think", "kwargs"),
    [
        (None, {}),
        (False, {"enable_thinking": False}),
        (True, {"enable_thinking": True}),
        ("low", {"enable_thinking": True, "reasoning_effort": "low"}),
    ],
)
def test_thinking(think: bool | str | None, kwargs: dict[str, Any]) -> None:
    for asked in (chat(messages=HI, think=think), generate(prompt="a", think=think)):
        assert (asked.chat_template_kwargs, asked.splits) == (kwargs, True)


@pytest.mark.parametrize(
    ("format", "structure"),
    [
        (None, None),
        ("", None),
        ("json", Structure("json_object", None, "format")),
        ({"type": "object"}, Structure("json_schema", {"type": "object"}, "format")),
    ],
)
def test_the_form_of_the_answer(format: Any, structure: Structure | None) -> None:
    assert chat(messages=HI, format=format).structure == structure
    assert generate(prompt="a", format=format, raw=True).structure == structure


def test_tools_and_log_probabilities() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    asked = chat(messages=HI, tools=[{"type": "function", "function": function}], logprobs=True)
    assert asked.tools == (Tool("f", "d", {"type": "object"}),)
    assert (asked.tool_choice.mode, asked.logprobs) == ("auto", 0)
    assert generate(prompt="a", logprobs=True, top_logprobs=3).logprobs == 3


def test_what_messages_hold() -> None:
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    asked = chat(
        messages=[
            {"role": "assistant", "tool_calls": calls, "thinking": "hm", "images": []},
            {"role": "tool", "content": "1", "tool_name": "f", "tool_call_id": "c"},
        ]
    )
    assert asked.messages == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": calls,
            "reasoning_content": "hm",
        },
        {"role": "tool", "content": "1", "name": "f", "tool_call_id": "c"},
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"format": "xml"}, "format"),
        ({"format": 7}, "format"),
        ({"tools": [{}]}, "tools[0].function"),
        ({"tools": [{"type": "web", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"think": "deeply"}, "think"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"typical_p": 0.5}}, "options.typical_p"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"messages": [*HI, {**HI[0], "images": ["aGk="]}]}, "messages[1].images"),
        ({"messages": [{"role": "critic", "content": "a"}]}, "messages[0].role"),
    ],
)
def test_what_chat_refuses(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        chat(**{"messages": HI} | fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields", [{"suffix": "b"}, {"images": ["aGk="]}, {"template": "x"}, {"context": [1]}]
)
def test_what_generate_refuses(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidField) as caught:
        generate(prompt="a", **fields)
    assert caught.value.param == next(iter(fields))


def teller(kind: Literal["chat", "generate"], model: str = "m") -> OllamaTeller:
    return OllamaTeller(OllamaEncoder(model, kind), Bytes())


def test_lines_are_what_the_document_says() -> None:
    telling = teller("chat", 'a"b')
    line = msgspec.json.decode(telling.delta(TextDelta('"ü', [1])), type=OllamaChatResponse)
    assert (line.model, line.message.content, line.done) == ('a"b', '"ü', False)
    done = Done("length", Usage(3, 2, 0))
    last = msgspec.json.decode(telling.last(done, Time(), 10**10), type=OllamaChatResponse)
    assert (last.done, last.done_reason, last.message.content) == (True, "length", "")
    assert (last.prompt_eval_count, last.eval_count) == (3, 2)
    assert (last.total_duration, last.load_duration) == (10**10, 0)
    assert (last.prompt_eval_duration, last.eval_duration) == (2 * 10**9, 10**9)
    telling = teller("generate")
    telling.add(TextDelta("Hi", [1]))
    none = Done("abort", Usage(3, 0, 0))
    whole = msgspec.json.decode(
        telling.whole(none, Time(answer_s=0.0), 100), type=OllamaGenerateResponse
    )
    assert (whole.response, whole.done_reason, whole.eval_duration) == ("Hi", "abort", 1)
    load = msgspec.json.decode(OllamaEncoder("m", "chat").load(), type=OllamaChatResponse)
    assert (load.done, load.done_reason, load.message.content) == (True, "load", "")
    assert load.created_at.endswith("Z") and len(load.created_at) == 27


PARTS: list[Part] = [
    Reasoning("hm"),
    Content("Wait"),
    Content("."),
    CallBegun(0, "call_1", "f"),
    CallArguments(0, '{"x"'),
    CallArguments(0, ": 1}"),
    CallBegun(1, "call_2", "g"),
    CallArguments(1, "oh"),
]
CALLS = [
    ("call_1", {"index": 0, "name": "f", "arguments": {"x": 1}}),
    ("call_2", {"index": 1, "name": "g", "arguments": {"INVALID_JSON": "oh"}}),
]


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_thinking_and_calls_however_they_were_cut(size: int) -> None:
    telling, whole = teller("chat"), teller("chat")
    lines = b""
    for start in range(0, len(PARTS), size):
        delta = TextDelta("raw", [1], PARTS[start : start + size])
        whole.add(delta)
        lines += telling.delta(delta)
    done = Done("tool_calls", Usage(3, 2, 0, 1))
    lines += telling.last(done, Time(), 10)
    told = [msgspec.json.decode(line, type=OllamaChatResponse) for line in lines.splitlines()]
    all_at_once = msgspec.json.decode(whole.whole(done, Time(), 10), type=OllamaChatResponse)
    for messages in ([line.message for line in told], [all_at_once.message]):
        assert "".join(message.content for message in messages) == "Wait."
        assert "".join(message.thinking or "" for message in messages) == "hm"
        calls = [call for message in messages for call in message.tool_calls or ()]
        assert [(call.id, msgspec.to_builtins(call.function)) for call in calls] == CALLS
    assert [line.done for line in told] == [False] * (len(told) - 1) + [True]
    assert told[-1].done_reason == all_at_once.done_reason == "stop"
    assert told[-2].message.tool_calls is not None


@pytest.mark.parametrize("kind", ["chat", "generate"])
def test_log_probabilities_come_with_their_line(kind: Literal["chat", "generate"]) -> None:
    one = TokenLogprob(ord("a"), -0.5, [ord("b")], [-0.25])
    delta = TextDelta("a", [ord("a")], None, [one])
    told = {
        "token": "a",
        "logprob": -0.5,
        "bytes": [ord("a")],
        "top_logprobs": [{"token": "b", "logprob": -0.25, "bytes": [ord("b")]}],
    }
    assert orjson.loads(teller(kind).delta(delta))["logprobs"] == [told]
    telling = teller(kind)
    telling.add(delta)
    whole = orjson.loads(telling.whole(Done("stop", Usage(3, 2, 0)), Time(), 10))
    assert whole["logprobs"] == [told]


def test_an_error_is_one_text() -> None:
    assert error_body(LmserveError('no "luck"')) == b'{"error":"no \\"luck\\""}'


@pytest.mark.parametrize(
    ("body", "named"), [({"model": "a", "name": "b"}, "a"), ({"name": "b"}, "b")]
)
def test_the_model_to_show(body: dict[str, str], named: str) -> None:
    assert decode(orjson.dumps(body), OllamaShowRequest)[0].named == named
    with pytest.raises(InvalidField, match="model is required"):
        _ = OllamaShowRequest().named


def info(**fields: Any) -> EngineInfo:
    known: dict[str, Any] = {
        "model_path": "/models/smol.gguf",
        "architecture": "LlamaForCausalLM",
        "num_parameters": 134_515_008,
        "vocab_size": 49152,
        "max_model_len": 8192,
        "block_size": 16,
        "num_blocks": 1,
        "kv_cache_bytes": 1,
        "max_batch_size": 1,
        "dtype": "float32",
        "device": "cpu",
        "attention": "cpu",
        "weights": "q4_1 (int4) + float32",
        "deterministic": True,
        "pid": 1,
        "tokenizer_file": "tokenizer.json",
        "chat_template": None,
        "bos_token": None,
        "eos_token": None,
        "eos_token_ids": (),
        "generation_defaults": {"top_p": 0.9, "temperature": 0.2},
    }
    return EngineInfo(**known | fields)


def test_what_is_told_of_a_model() -> None:
    model = model_of("smol", 0, info())
    assert (model.name, model.model, model.modified_at) == ("smol", "smol", "1970-01-01T00:00:00Z")
    assert len(model.digest) == 64
    assert model.digest != model_of("smol", 0, info(weights="float32")).digest
    details = model.details
    assert (details.format, details.family, details.parameter_size) == ("gguf", "llama", "134.52M")
    shown = show(
        0,
        info(model_path="/models/smol", num_parameters=8_030_261_248, hidden_size=576),
        calls=True,
        thinks=False,
    )
    assert (shown.details.format, shown.details.parameter_size) == ("safetensors", "8.0B")
    assert shown.parameters == "temperature 0.2\ntop_p 0.9"
    assert shown.model_info["llama.context_length"] == 8192
    assert shown.model_info["llama.embedding_length"] == 576
    assert shown.capabilities == ["completion", "embedding", "tools"]
    loaded = running("smol", 0, info())
    assert (loaded.digest, loaded.context_length) == (model.digest, 8192)
    assert b"/models" not in msgspec.json.encode([model, shown])

"""Ollama's bodies, lines and model cards."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from lmserve.errors import InvalidField, LmserveError
from lmserve.messages import EngineInfo
from lmserve.protocol.decode import decode
from lmserve.protocol.ollama import (
    OllamaChatRequest,
    OllamaGenerateRequest,
)
from lmserve.protocol.ollama_answers import (
    OllamaChatResponse,
    OllamaEncoder,
    OllamaGenerateResponse,
    error_body,
)
from lmserve.protocol.ollama_models import OllamaShowRequest, model_of, show
from lmserve.types import GenerateRequest, Usage

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
    with pytest.raises(InvalidField, match="system goes not with raw"):
        generate(prompt="hi", raw=True, system="a")


def test_thinking_can_be_turned_off() -> None:
    assert chat(messages=HI).chat_template_kwargs == {}
    assert chat(messages=HI, think=False).chat_template_kwargs == {"enable_thinking": False}


def test_what_messages_hold() -> None:
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    asked = chat(
        messages=[
            {"role": "assistant", "tool_calls": calls, "thinking": "hm", "images": []},
            {"role": "tool", "content": "1", "tool_name": "f"},
        ]
    )
    assert asked.messages == [
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "1", "name": "f"},
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"format": "json"}, "format"),
        ({"format": {"type": "object"}}, "format"),
        ({"tools": [{}]}, "tools"),
        ({"think": True}, "think"),
        ({"think": "high"}, "think"),
        ({"logprobs": True}, "logprobs"),
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


def test_lines_are_what_the_document_says() -> None:
    encoder = OllamaEncoder('a"b', "chat")
    line = msgspec.json.decode(encoder.delta('"ü'), type=OllamaChatResponse)
    assert (line.model, line.message.content, line.done) == ('a"b', '"ü', False)
    last = msgspec.json.decode(
        encoder.final("", "length", Usage(3, 2, 0), 100, 40), type=OllamaChatResponse
    )
    assert (last.done, last.done_reason, last.message.content) == (True, "length", "")
    assert (last.prompt_eval_count, last.eval_count) == (3, 2)
    assert (last.total_duration, last.load_duration) == (100, 0)
    assert (last.prompt_eval_duration, last.eval_duration) == (40, 60)
    encoder = OllamaEncoder("m", "generate")
    whole = msgspec.json.decode(
        encoder.final("Hi", "abort", Usage(3, 0, 0), 100, None), type=OllamaGenerateResponse
    )
    assert (whole.response, whole.prompt_eval_duration, whole.eval_duration) == ("Hi", 100, 0)
    load = msgspec.json.decode(encoder.load(), type=OllamaGenerateResponse)
    assert (load.done, load.done_reason, load.response) == (True, "load", "")
    assert load.created_at.endswith("Z") and len(load.created_at) == 27


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
    shown = show(0, info(model_path="/models/smol", num_parameters=8_030_261_248))
    assert (shown.details.format, shown.details.parameter_size) == ("safetensors", "8.0B")
    assert shown.parameters == "temperature 0.2\ntop_p 0.9"
    assert shown.model_info["llama.context_length"] == 8192
    assert shown.capabilities == ["completion"]
    assert b"/models" not in msgspec.json.encode([model, shown])

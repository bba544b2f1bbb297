"""Bodies of the routes that show a prompt."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from lmserve.errors import InvalidField
from lmserve.protocol.decode import decode
from lmserve.protocol.tokenize import DetokenizeRequest, TokenizeRequest

TOOL = {"function": {"name": "f"}}


def tokenize(**fields: Any) -> TokenizeRequest:
    return decode(orjson.dumps(fields), TokenizeRequest)[0]


def test_special_tokens_go_around_a_prompt_unless_told_else() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert tokenize(prompt="hi").adds_special
    assert not tokenize(prompt="hi", add_special_tokens=False).adds_special
    assert not tokenize(messages=messages).adds_special
    assert tokenize(messages=messages, add_special_tokens=True).adds_special


def test_what_is_tokenised() -> None:
    asked = tokenize(model="m", prompt="").to_generate()
    assert (asked.model, asked.text, asked.messages) == ("m", "", None)
    messages = [{"role": "user", "content": "hi"}]
    asked = tokenize(messages=messages, chat_template_kwargs={"a": 1}).to_generate()
    assert (asked.text, asked.messages, asked.chat_template_kwargs) == (None, messages, {"a": 1})


@pytest.mark.parametrize("fields", [{}, {"prompt": "a", "messages": []}, {"prompt": None}])
def test_one_of_the_two(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidField, match="exactly one of prompt and messages"):
        tokenize(**fields).to_generate()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1]}, "prompt"),
        ({"messages": [{"role": "x", "content": "a"}]}, "messages[0].role"),
        ({"prompt": "a", "tools": [TOOL]}, "tools"),
        ({"messages": [], "tools": [{"type": "x", **TOOL}]}, "tools[0].type"),
        ({"prompt": "a", "continue_final_message": True}, "continue_final_message"),
        ({"messages": [], "continue_final_message": True}, "continue_final_message"),
        ({"prompt": "a", "chat_template": "x"}, "chat_template"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        tokenize(**fields).to_generate()
    assert caught.value.param == param


def test_tokens_to_read() -> None:
    asked, unknown = decode(b'{"tokens": [1, 2], "skip": 1}', DetokenizeRequest)
    assert (asked.to_generate().token_ids, unknown) == ([1, 2], ["skip"])
    for body in (b"{}", b'{"tokens": "a"}', b'{"tokens": [1.5]}'):
        with pytest.raises(InvalidField, match="tokens"):
            decode(body, DetokenizeRequest)

from __future__ import annotations

from typing import Any

import pytest

from lmserve.errors import InvalidField, RequestError, TextTooSlow
from lmserve.text import deadline
from lmserve.text.template import ChatTemplate

CHATML = (
    "{% for message in messages %}\n"
    "<|im_start|>{{ message['role'] }}\n{{ message.content }}<|im_end|>\n"
    "    {% endfor %}\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = [{"role": "user", "content": "hi"}]


def render(source: str, messages: list[Any] = USER, **options: Any) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages, **options)


def refusal(source: str | None, messages: list[Any] = USER, **options: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ChatTemplate(source, max_chars=10_000).render(messages, **options)
    assert caught.value.status == 400
    return caught.value


def test_blocks_are_trimmed_as_transformers_does() -> None:
    assert render(CHATML) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<é>"}]'),
        ("{{ tools is none }}", "True"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}", ""),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "<é>!"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_conventions(source: str, text: str) -> None:
    assert render(source, [{"role": "user", "content": "<é>"}]) == text


def test_kwargs_reach_the_template() -> None:
    assert render("{{ enable_thinking }}", kwargs={"enable_thinking": False}) == "False"


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "tokenize", "__class__"])
def test_kwargs_do_not_replace_the_servers_names(name: str) -> None:
    error = refusal(CHATML, kwargs={name: 1})
    assert isinstance(error, InvalidField)
    assert error.param == f"chat_template_kwargs.{name}"


def test_text_parts_are_joined_where_the_template_wants_strings() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "a\nb"


def test_parts_are_kept_where_the_template_reads_them() -> None:
    source = (
        "{% if messages[0].content is string %}s{% else %}"
        "{% for part in messages[0]['content'] %}[{{ part.text }}]{% endfor %}{% endif %}"
    )
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render(source, [{"role": "user", "content": parts}]) == "[a][b]"
    assert render(source) == "s"


def test_the_developer_role_is_system_to_templates_that_do_not_know_it() -> None:
    messages = [{"role": "developer", "content": "x"}]
    assert render("{{ messages[0].role }}", messages) == "system"
    assert render("{# developer #}{{ messages[0].role }}", messages) == "developer"


def test_messages_are_left_as_they_were() -> None:
    messages = [{"role": "developer", "content": [{"type": "text", "text": "a"}]}]
    render(CHATML, messages)
    assert messages == [{"role": "developer", "content": [{"type": "text", "text": "a"}]}]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[1]"),
        ({"content": "hi"}, "messages[1].role"),
        ({"role": 3, "content": "hi"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": 3}, "messages[1].content"),
        ({"role": "user", "content": ["hi"]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        (
            {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "image_url"}]},
            "messages[1].content[1].type",
        ),
    ],
)
def test_a_bad_message_is_named(message: Any, param: str) -> None:
    error = refusal(CHATML, [*USER, message])
    assert isinstance(error, InvalidField)
    assert error.param == param
    assert param in error.message


def test_an_answer_of_tool_calls_has_no_content() -> None:
    assert render("[{{ messages[0].content }}]", [{"role": "assistant"}]) == "[]"


def test_a_template_that_raises_tells_its_reason() -> None:
    error = refusal("{{ raise_exception('roles must alternate') }}")
    assert "roles must alternate" in error.message
    assert error.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content + 1 }}",
        "{{ range(10 ** 9) | length }}",
        "{% for a in range(9999) %}{{ 'aaaa' }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
    ],
)
def test_a_template_that_fails_is_a_refusal(source: str) -> None:
    assert refusal(source).param == "messages"


def test_deep_input_is_a_refusal() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert refusal("{{ x | tojson }}", kwargs={"x": deep}).param == "messages"
    while deep:  # taken apart by hand: deep structures are slow to free
        deep = deep[0]


@pytest.mark.parametrize(("source", "words"), [(None, "has no"), ("{% if %}", "damaged")])
def test_without_a_template_the_remedy_is_told(source: str | None, words: str) -> None:
    error = refusal(source)
    assert words in error.message
    assert "/v1/completions" in error.message


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for m in messages %}{% for n in messages if n == m %}{% endfor %}{% endfor %}",
    ],
)
def test_loops_end_in_time(source: str) -> None:
    messages = USER * 2000
    with pytest.raises(TextTooSlow) as caught, deadline.within(0.05):
        render(source, messages)
    assert (caught.value.status, caught.value.param) == (429, "messages")
    assert render(CHATML)  # only what was within


def test_looking_at_the_clock_changes_no_text() -> None:
    source = (
        "{% macro show(m) %}<{{ m.role }}>{% endmacro %}{% for m in messages recursive %}"
        "{{ loop.index }}{{ show(m) }}{% if m.more %}{{ loop(m.more) }}{% endif %}{% endfor %}"
        "{% macro box() %}[{{ caller() }}]{% endmacro %}{% call box() %}in{% endcall %}"
    )
    messages = [{"role": "user", "content": "hi", "more": [{"role": "b"}]}]
    assert render(source, messages) == "1<user>1<b>[in]"

"""What follows an answer, in the shapes of templates that are out there."""

from __future__ import annotations

from typing import Any

import pytest

from lmserve.errors import RequestError
from lmserve.text.template import ChatTemplate
from lmserve.text.tokenizer import Tokenizer

GENERATION = "{% if add_generation_prompt %}"
SHAPES = {
    # marks around role and content
    "chatml": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}" + GENERATION + "<|im_start|>assistant\n{% endif %}",
    # content trimmed, the first one after the beginning of text
    "llama-3": "{% for m in messages %}{% set content = '<|head|>' + m.role + '<|end_head|>\n\n' "
    "+ m.content | trim + '<|eot|>' %}{% if loop.first %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}" + GENERATION + "<|head|>assistant<|end_head|>\n\n"
    "{% endif %}",
    # roles must alternate; the answer's end is the end of text
    "inst": "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}",
    # the assistant has another name
    "turns": "{{ bos_token }}{% for m in messages %}<start>{{ 'model' if m.role == 'assistant' "
    "else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}" + GENERATION + "<start>model\n"
    "{% endif %}",
    # what earlier answers thought is not shown again
    "thinks": "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and "
    "'</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}"
    "{{ m.content }}{% endif %}<|end|>{% endfor %}" + GENERATION + "<|assistant|><think>\n"
    "{% endif %}",
    # a loop over parts
    "parts": "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}</{{ m.role }}>"
    "{% endfor %}" + GENERATION + "<assistant>{% endif %}",
}


def template(shape: str) -> ChatTemplate:
    return ChatTemplate(SHAPES[shape], bos_token="<s>", eos_token="</s>")


def talk(*texts: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("answer", ["an answer", "", "{{ 7 * 7 }} <|im_end|> [INST]"])
def test_prompt_answer_and_rest_are_the_whole(shape: str, answer: str) -> None:
    chat, messages = template(shape), talk("hi", "first", "more", answer, "and then?")
    for num_known in (2, 4):
        rest = chat.render_after(messages, num_known)
        assert rest is not None
        begun = chat.render(messages[: num_known - 1])
        if shape == "inst":
            begun += " "  # the template's own space before an answer
        if shape == "thinks":
            begun = begun.removesuffix("<think>\n")
        assert begun + messages[num_known - 1]["content"] + rest == chat.render(messages)


def test_the_rest_does_not_depend_on_what_the_template_does_to_an_answer() -> None:
    thought = talk("hi", "<think>\nhm\n</think>\n\nyes", "more")
    rest = template("thinks").render_after(thought, 2)
    assert rest == "<|end|><|user|>more<|end|><|assistant|><think>\n"
    spaced = template("llama-3").render_after(talk("hi", "  yes \n", "more"), 2)
    head = "<|head|>user<|end_head|>\n\nmore<|eot|><|head|>assistant<|end_head|>\n\n"
    assert spaced == "<|eot|>" + head


def test_several_messages_may_follow() -> None:
    messages = [*talk("hi", "yes"), {"role": "tool", "content": "7"}, *talk("and?")]
    rest = template("turns").render_after(messages, 2)
    assert rest == "<end>\n<start>tool\n7<end>\n<start>user\nand?<end>\n<start>model\n"


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.content | upper }}",  # not as it is
        "{{ m.content }} {{ m.content }}",  # twice
        "{% if m.role == 'user' %}{{ m.content }}{% endif %}",  # not at all
        "{{ m.content[:5] }}",
    ],
)
def test_an_odd_template_cannot_say(body: str) -> None:
    chat = ChatTemplate("{% for m in messages %}" + body + "{% endfor %}")
    assert chat.render_after(talk("hi", "yes", "more"), 2) is None


def test_a_refusal_is_the_callers_mistake() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        template("inst").render_after([*talk("hi", "yes"), *talk("hi"), *talk("hi")], 2)


@pytest.mark.parametrize("text", ["<s>hello", "hello world", " hello", "\nhello", ".", "", "é"])
def test_a_text_that_goes_on_has_no_beginning(family: Tokenizer, text: str) -> None:
    begun = family.encode("hello world.", add_special=False)
    whole = family.encode("hello world." + text, add_special=False)
    assert [*begun, *family.encode_further(text)] == whole

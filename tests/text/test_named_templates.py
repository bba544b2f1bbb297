from __future__ import annotations

import pytest

from lmserve.errors import RequestError
from lmserve.text.named_templates import ALIASES, NAMED, Turns, jinja_source, literal, named
from lmserve.text.template import ChatTemplate

SYSTEM = {"role": "system", "content": "Be brief."}
HI = {"role": "user", "content": "hi"}
HO = {"role": "assistant", "content": "ho"}
BYE = {"role": "user", "content": "bye"}


def render(name: str, *messages: dict[str, str], bos: str = "<s>") -> str:
    turns = named(name)
    assert turns is not None
    return ChatTemplate(jinja_source(turns), bos_token=bos).render(messages)


# what the models were trained on, after "Be brief.", "hi", "ho", "bye"
EXPECTED = {
    "base": "<s>Be brief.hihobye",
    "chatml": (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nho<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "codellama": (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nhi [/INST] ho</s><s>[INST] bye [/INST] "
    ),
    "deepseek": (
        "<s>Be brief.\n\nUser: hi\n\nAssistant: ho<｜end▁of▁sentence｜>User: bye\n\nAssistant:"
    ),
    "deepseek-v3": (
        "<s>Be brief.<｜User｜>hi<｜Assistant｜>ho<｜end▁of▁sentence｜><｜User｜>bye<｜Assistant｜>"
    ),
    "gemma": (
        "<s>Be brief.<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nho<end_of_turn>\n"
        "<start_of_turn>user\nbye<end_of_turn>\n<start_of_turn>model\n"
    ),
    "glm4": (
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\nhi<|assistant|>\nho<|user|>\nbye<|assistant|>\n"
    ),
    "internlm-chat-7b": (
        "<s><|System|>:Be brief.\n<|User|>:hi\n<|Bot|>:ho<eoa>\n<|User|>:bye\n<|Bot|>:"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nho<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nbye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mixtral": "<s>Be brief.[INST] hi [/INST]ho</s>[INST] bye [/INST]",
    "phi-3": (
        "<s><|system|>\nBe brief.<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\nho<|end|>\n"
        "<|user|>\nbye<|end|>\n<|assistant|>\n"
    ),
    "solar": (
        "<s>### System:\nBe brief.\n\n### User:\nhi\n\n### Assistant:\nho### User:\nbye\n\n"
        "### Assistant:\n"
    ),
    "vicuna": "<s>Be brief. USER: hi ASSISTANT: ho</s>USER: bye ASSISTANT:",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_conversation(name: str) -> None:
    assert render(name, SYSTEM, HI, HO, BYE) == EXPECTED[name]


@pytest.mark.parametrize("name", [*NAMED, *ALIASES])
def test_every_name_renders_a_conversation_and_grows_with_it(name: str) -> None:
    first = render(name, SYSTEM, HI)
    assert "Be brief." in first and "hi" in first
    assert render(name, SYSTEM, HI, HO, BYE).startswith(first)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "qwen",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nhi",
        ),
        ("chatml", "<|im_start|>user\nhi"),
        ("mistral", "[INST] hi"),
        ("codellama", "[INST] <<SYS>>\n\n<</SYS>>\n\nhi"),
        ("internlm2", "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生"),
        ("vicuna", "A chat between a curious user and an artificial intelligence assistant. "),
    ],
)
def test_a_conversation_without_a_system_message_gets_the_default_one(name: str, text: str) -> None:
    assert render(name, HI, bos="").startswith(text)


def test_a_tokenizer_without_bos_gets_none() -> None:
    assert render("mistral", HI, bos="") == "[INST] hi [/INST]"


def test_a_role_it_has_no_words_for_is_refused() -> None:
    with pytest.raises(RequestError, match="it knows no role critic") as refusal:
        render("chatml", HI, {"role": "critic", "content": "4"})
    assert refusal.value.status == 400
    tools = ChatTemplate(jinja_source(Turns(tool="<tool>", eotool="</tool>")))
    assert tools.render([{"role": "tool", "content": "4"}]) == "<tool>4</tool>"


@pytest.mark.parametrize(
    "text", ["it's", "a\\nb", 'say "hi"', "\r\n\t", "{{ 1 }}{% x %}", "é 😀", ""]
)
def test_any_text_is_kept_as_it_is(text: str) -> None:
    assert ChatTemplate(f"{{{{ {literal(text)} }}}}").render([HI]) == text

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmserve.errors import SettingsError
from lmserve.text.named_templates import NAMED
from lmserve.text.template import ChatTemplate
from lmserve.text.template_choice import (
    TemplateChoice,
    resolve_chat_template,
    with_meta_instruction,
)

HI = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
# as the embedded model's own: a system message of its own where there is none
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def rendered(choice: TemplateChoice, *messages: dict[str, str]) -> str:
    assert choice.source is not None
    return ChatTemplate(choice.source, bos_token="<s>").render(messages)


def json_file(folder: Path, value: Any) -> str:
    path = folder / "template.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def refusal(spec: str) -> str:
    with pytest.raises(SettingsError) as error:
        resolve_chat_template(spec)
    assert "\n" not in error.value.message
    return error.value.message


@pytest.mark.parametrize("spec", [None, "hf"])
def test_the_models_own(spec: str | None) -> None:
    assert resolve_chat_template(spec) == TemplateChoice()


def test_a_name() -> None:
    choice = resolve_chat_template("llama3")
    assert choice.stop_words == ("<|eot_id|>", "<|end_of_text|>")
    assert rendered(choice, HI).startswith("<s><|start_header_id|>user<|end_header_id|>\n\nhi")


def test_a_jinja_file_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages[0].content }}!\n")
    choice = resolve_chat_template(str(path))
    assert choice == TemplateChoice(source="{{ messages[0].content }}!\n")


def test_lmdeploys_json(tmp_path: Path) -> None:
    spec = json_file(
        tmp_path,
        {
            "model_name": "my-own",
            "system": "<sys>",
            "meta_instruction": "Be kind.",
            "eosys": "</sys>\n",
            "user": "<u>",
            "eoh": "</u>\n",
            "assistant": "<a>",
            "eoa": "</a>",
            "separator": "\n",
            "capability": "completion",
            "stop_words": ["</a>", "User:"],
        },
    )
    choice = resolve_chat_template(spec)
    assert choice.stop_words == ("</a>", "User:")
    assert choice.capability == "completion"
    answered = [HI, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "bye"}]
    assert rendered(choice, *answered) == (
        "<s><sys>Be kind.</sys>\n<u>hi</u>\n<a>ho</a>\n<u>bye</u>\n<a>"
    )


def test_json_replaces_what_it_names_of_the_template_it_is_based_on(tmp_path: Path) -> None:
    spec = json_file(
        tmp_path, {"model_name": "qwen-7b", "meta_instruction": "Be kind.", "eoh": None}
    )
    choice = resolve_chat_template(spec)
    assert choice.stop_words == NAMED["qwen"].stop_words
    assert rendered(choice, HI) == (
        "<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_json_that_replaces_the_answers_beginning(tmp_path: Path) -> None:
    choice = resolve_chat_template(json_file(tmp_path, {"model_name": "vicuna", "assistant": "A:"}))
    assert rendered(choice, HI).endswith("USER: hi A:")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ([1], "one JSON object"),
        ({"sytem": "x"}, "sytem is unknown; the keys are assistant, capability, "),
        ({"system": 3}, "system must be a text"),
        ({"stop_words": "x"}, "stop_words must be a list of texts"),
        ({"stop_words": ["x", 1]}, "stop_words must be a list of texts"),
        ({"stop_words": [""]}, "stop_words has an empty text"),
        ({"user": "\ud800"}, "user must be a text"),
        ({"capability": "infilling"}, "capability infilling is not supported"),
    ],
)
def test_json_that_is_wrong_is_refused(tmp_path: Path, value: Any, words: str) -> None:
    spec = json_file(tmp_path, value)
    message = refusal(spec)
    assert message.startswith(f"--chat-template {spec}: ")
    assert words in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.json", None, "cannot read it: No such file"),
        ("absent.jinja", None, "cannot read it: No such file"),
        ("latin.jinja", b"\xe9", "not UTF-8"),
        ("open.jinja", b"{% if x %}", "not a Jinja template: line 1: "),
        (
            "vicunia",
            None,
            "no template has this name; give a file (.jinja, or LMDeploy's .json) or",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert words in refusal(str(path))


def test_an_unknown_name_is_told_the_known_ones() -> None:
    assert all(name in refusal("vicunia") for name in ["hf", *NAMED])


def test_a_directory_is_no_template(tmp_path: Path) -> None:
    folder = tmp_path / "folder.json"
    folder.mkdir()
    assert "not a file" in refusal(str(folder))


@pytest.mark.parametrize("source", [SMOLLM2, NAMED], ids=["own", "named"])
def test_the_meta_instruction_is_the_system_message_of_conversations_without_one(
    source: Any,
) -> None:
    if source is NAMED:
        source = resolve_chat_template("qwen").source
    text = 'Say "it\'s me"\\n,\nand {{ nothing }} else.'
    template = ChatTemplate(with_meta_instruction(source, text))
    assert template.render([HI]) == (
        f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert template.render([SYSTEM, HI]) == ChatTemplate(source).render([SYSTEM, HI])


def test_the_meta_instruction_knows_the_developer_where_the_template_does() -> None:
    source = "{# developer #}{% for m in messages %}[{{ m.role }}]{% endfor %}"
    template = ChatTemplate(with_meta_instruction(source, "x"))
    assert template.render([{"role": "developer", "content": "y"}]) == "[developer]"
    assert template.render([HI]) == "[system][user]"

"""Chat formats written as the words around each role's text, and the Jinja made from them.

The names and the fields are LMDeploy's, so that its `--chat-template` names and JSON files mean
here what they mean there. A model that brings a template of its own needs none of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Capability = Literal["chat", "completion", "python"]


@dataclass(frozen=True, slots=True)
class Turns:
    """What stands before and after each role's text."""

    system: str = ""
    meta_instruction: str | None = ""  # the system text of a conversation without one
    eosys: str = ""
    user: str = ""
    eoh: str = ""
    assistant: str = ""
    eoa: str = ""
    separator: str = ""  # between an answer and the next question
    tool: str = ""
    eotool: str = ""
    stop_words: tuple[str, ...] = ()
    capability: Capability | None = None
    start: str | None = None  # of every prompt; None: the tokenizer's BOS where it adds one
    opens: str | None = None  # asks for the answer, where that is not all of `assistant`


def jinja_source(turns: Turns) -> str:
    """The template that renders these turns."""
    ends = {
        "system": (turns.system, turns.eosys),
        "user": (turns.user, turns.eoh),
        "assistant": (turns.assistant, turns.eoa + turns.separator),
        "tool": (turns.tool, turns.eotool),
    }
    branches = "".join(
        f"{{% {'if' if role == 'system' else 'elif'} message.role == '{role}' %}}"
        f"{_out(begin)}{{{{ message.content }}}}{_out(end)}"
        for role, (begin, end) in ends.items()
        if role != "tool" or begin or end
    )
    default = ""
    if turns.meta_instruction is not None:
        text = turns.system + turns.meta_instruction + turns.eosys
        default = f"{{% if messages[0].role != 'system' %}}{_out(text)}{{% endif %}}"
    start = "{{ bos_token }}" if turns.start is None else _out(turns.start)
    opens = turns.assistant if turns.opens is None else turns.opens
    return (
        f"{start}{default}{{% for message in messages %}}{branches}{{% else %}}"
        "{{ raise_exception('it knows no role ' ~ message.role) }}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{_out(opens)}{{% endif %}}"
    )


def literal(text: str) -> str:
    """As a Jinja string."""
    escapes = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r"}
    return "'" + "".join(escapes.get(char, char) for char in text) + "'"


def _out(text: str) -> str:
    return f"{{{{ {literal(text)} }}}}" if text else ""


_INTERNLM = (
    "You are an AI assistant whose name is InternLM (书生·浦语).\n"
    "- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI "
    "Laboratory (上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the "
    "user such as English and 中文.\n"
)
_LLAMA2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe. Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.\n\nIf a question does not make any sense, or is not factually "
    "coherent, explain why instead of answering something not correct. If you don't know the "
    "answer to a question, please don't share false information."
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_DEEPSEEK_CODER = (
    "You are an AI programming assistant, utilizing the Deepseek Coder model, developed by "
    "Deepseek Company, and you only answer questions related to computer science. For politically "
    "sensitive questions, security and privacy issues, and other non-computer science questions, "
    "you will refuse to answer\n"
)
_ULTRACHAT = (
    "A one-turn chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, very detailed, and polite answers to the user's questions."
)


def _chatml(meta_instruction: str | None, *stop_words: str) -> Turns:
    return Turns(
        system="<|im_start|>system\n",
        meta_instruction=meta_instruction,
        eosys="<|im_end|>\n",
        user="<|im_start|>user\n",
        eoh="<|im_end|>\n",
        assistant="<|im_start|>assistant\n",
        eoa="<|im_end|>",
        separator="\n",
        stop_words=("<|im_end|>", *stop_words),
    )


def _llama2(meta_instruction: str) -> Turns:
    return Turns(
        system="[INST] <<SYS>>\n",
        meta_instruction=meta_instruction,
        eosys="\n<</SYS>>\n\n",
        assistant=" [/INST] ",
        eoa="</s>",
        separator="<s>[INST] ",
    )


def _vicuna(meta_instruction: str) -> Turns:
    return Turns(
        meta_instruction=meta_instruction,
        eosys=" ",
        user="USER: ",
        eoh=" ",
        assistant="ASSISTANT: ",
        eoa="</s>",
        stop_words=("</s>",),
        opens="ASSISTANT:",
    )


def _glm(space: str, start: str, *stop_words: str) -> Turns:
    return Turns(
        system=f"<|system|>\n{space}",
        meta_instruction=None,
        user=f"<|user|>\n{space}",
        assistant=f"<|assistant|>\n{space}",
        stop_words=stop_words,
        start=start,
    )


NAMED: dict[str, Turns] = {
    "base": Turns(),
    "baichuan2": Turns(user="<reserved_106>", assistant="<reserved_107>"),
    "chatglm3": _glm(" ", "[gMASK]sop", "<eos>"),
    "chatml": _chatml(None),
    "codellama": _llama2(""),
    "deepseek": Turns(
        eosys="\n\n",
        user="User: ",
        eoh="\n\n",
        assistant="Assistant: ",
        eoa="<｜end▁of▁sentence｜>",
        opens="Assistant:",
    ),
    "deepseek-coder": Turns(
        meta_instruction=_DEEPSEEK_CODER,
        user="### Instruction:\n",
        eoh="\n",
        assistant="### Response:\n",
        eoa="\n<|EOT|>",
        separator="\n",
        stop_words=("<|EOT|>",),
    ),
    "deepseek-v3": Turns(
        user="<｜User｜>", assistant="<｜Assistant｜>", eoa="<｜end▁of▁sentence｜>"
    ),
    "gemma": Turns(
        user="<start_of_turn>user\n",
        eoh="<end_of_turn>\n",
        assistant="<start_of_turn>model\n",
        eoa="<end_of_turn>\n",
        stop_words=("<end_of_turn>",),
    ),
    "glm4": _glm("", "[gMASK]<sop>", "<|user|>", "<|endoftext|>", "<|observation|>"),
    "internlm": Turns(
        system="<|System|>:",
        meta_instruction=_INTERNLM,
        eosys="\n",
        user="<|User|>:",
        eoh="\n",
        assistant="<|Bot|>:",
        eoa="<eoa>",
        separator="\n",
        stop_words=("<eoa>",),
    ),
    "internlm2": _chatml(_INTERNLM, "<|action_end|>"),
    "llama2": _llama2(_LLAMA2),
    "llama3": Turns(
        system="<|start_header_id|>system<|end_header_id|>\n\n",
        meta_instruction=None,
        eosys="<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n",
        eoh="<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
        eoa="<|eot_id|>",
        stop_words=("<|eot_id|>", "<|end_of_text|>"),
    ),
    "mistral": Turns(user="[INST] ", eoh=" [/INST]", eoa="</s>"),
    "phi-3": Turns(
        system="<|system|>\n",
        meta_instruction=None,
        eosys="<|end|>\n",
        user="<|user|>\n",
        eoh="<|end|>\n",
        assistant="<|assistant|>\n",
        eoa="<|end|>\n",
        stop_words=("<|end|>", "<|endoftext|>", "<|assistant|>"),
    ),
    "puyu": Turns(),
    "qwen": _chatml("You are a helpful assistant."),
    "qwen2d5": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "solar": Turns(
        system="### System:\n",
        eosys="\n\n",
        user="### User:\n",
        eoh="\n\n",
        assistant="### Assistant:\n",
    ),
    "ultralm": Turns(
        system="User: ",
        meta_instruction=_ULTRACHAT,
        eosys="</s>\n",
        user="User: ",
        eoh="</s>\n",
        assistant="Assistant: ",
        eoa="</s>",
        separator="\n",
        stop_words=("</s>",),
    ),
    "vicuna": _vicuna(_VICUNA),
    "yi": _chatml(None, "<|endoftext|>"),
}

ALIASES: dict[str, str] = {
    "llama": "base",
    "baichuan2-7b": "baichuan2",
    "internlm-chat": "internlm",
    "internlm-chat-7b": "internlm",
    "internlm-chat-7b-8k": "internlm",
    "internlm-chat-20b": "internlm",
    "internlm2-chat": "internlm2",
    "internlm2-chat-1_8b": "internlm2",
    "internlm2-chat-7b": "internlm2",
    "internlm2-chat-20b": "internlm2",
    "internlm3": "internlm2",
    "llama-2": "llama2",
    "llama-2-chat": "llama2",
    "mixtral": "mistral",
    "phi": "phi-3",
    "phi-4": "phi-3",
    "qwen-7b": "qwen",
    "qwen-14b": "qwen",
    "solar-70b": "solar",
    "ultracm": "ultralm",
    "wizardlm": "vicuna",
    "yi-chat": "yi",
    "yi-200k": "yi",
    "yi-34b": "yi",
}


def named(name: str) -> Turns | None:
    return NAMED.get(ALIASES.get(name, name))

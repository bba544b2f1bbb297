"""The text side of the model that the engine serves: prompts in, visible text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmserve.messages import EngineInfo
from lmserve.sampling import SamplingParams
from lmserve.text.output import OutputText
from lmserve.text.template import ChatTemplate
from lmserve.text.tokenizer import Tokenizer
from lmserve.types import GenerateRequest


class ModelText:
    """Tokenizer and chat template of one model. No asyncio: `token_ids` may run in a thread."""

    def __init__(self, info: EngineInfo):
        self.key = assets_key(info)
        self.tokenizer = Tokenizer.from_file(
            info.tokenizer_file,
            bos_token=info.bos_token,
            eos_token_ids=info.eos_token_ids,
            add_bos=info.add_bos,
        )
        self.template = ChatTemplate(
            info.chat_template, bos_token=info.bos_token, eos_token=info.eos_token
        )

    def token_ids(self, request: GenerateRequest) -> list[int]:
        """The prompt in tokens."""
        if request.token_ids is not None:
            return request.token_ids
        if request.text is not None:
            return self.tokenizer.encode(request.text, add_special=True)
        assert request.messages is not None
        text = self.template.render(request.messages, kwargs=request.chat_template_kwargs)
        return self.tokenizer.encode(text, add_special=False)

    def output(
        self, request: GenerateRequest, sampling: SamplingParams, prompt_ids: Sequence[int]
    ) -> OutputText:
        """What turns the answer's tokens into what the client sees."""
        # a completion goes on from its prompt, a chat's answer is a text of its own
        context = prompt_ids[-8:] if request.messages is None else ()
        detokenizer = self.tokenizer.detokenizer(
            skip_special=request.skip_special_tokens, context=context
        )
        return OutputText(detokenizer, request.stop, sampling.min_tokens)


def assets_key(info: EngineInfo) -> tuple[object, ...]:
    """Engines with equal keys have the same text side."""
    return (
        info.tokenizer_file,
        info.chat_template,
        info.bos_token,
        info.eos_token,
        info.eos_token_ids,
        info.add_bos,
    )


def num_chars(request: GenerateRequest) -> int:
    """About how long the prompt's text is: enough to tell short ones from long ones."""
    if request.text is not None:
        return len(request.text)
    return sum(_num_chars(message) for message in request.messages or ())


def _num_chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_num_chars(item) for item in value.values())
    if isinstance(value, list):
        return sum(_num_chars(item) for item in value)
    return 1

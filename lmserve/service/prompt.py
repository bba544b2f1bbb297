"""The text side of the model that the engine serves: prompts in, visible text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmserve.messages import EngineInfo
from lmserve.sampling import SamplingParams
from lmserve.service import limits
from lmserve.text.output import OutputText
from lmserve.text.template import ChatTemplate
from lmserve.text.tokenizer import Tokenizer
from lmserve.types import GenerateRequest


class ModelText:
    """Tokenizer and chat template of one model. No asyncio: `token_ids` may run in a thread."""

    def __init__(self, info: EngineInfo):
        self.key = assets_key(info)
        self._info = info
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
        text = request.text
        if text is None:
            assert request.messages is not None
            text = self.template.render(request.messages, kwargs=request.chat_template_kwargs)
        limits.check_length(request, len(text), self.tokenizer.max_token_chars, self._info)
        return self.tokenizer.encode(text, add_special=request.text is not None)

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
        info.max_model_len,
    )


def is_short(request: GenerateRequest, max_chars: int) -> bool:
    """Whether all that makes the prompt's text is about so short. Looks no further than that."""
    stack: list[Any] = [request.text, request.messages, request.chat_template_kwargs]
    while stack:
        item = stack.pop()
        max_chars -= len(item) if isinstance(item, str | list | dict) else 1
        if max_chars < 0:
            return False
        if isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return True

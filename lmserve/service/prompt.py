"""The text side of the model that the engine serves: prompts in, visible text out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from lmserve.messages import EngineInfo
from lmserve.sampling import SamplingParams
from lmserve.service import limits
from lmserve.service.speech import Speech
from lmserve.settings import Settings
from lmserve.text.output import OutputText
from lmserve.text.parsing.choice import answer_forms
from lmserve.text.parsing.parser import AnswerParser
from lmserve.text.template import ChatTemplate
from lmserve.text.template_choice import resolve_chat_template, split_stops, template_source
from lmserve.text.tokenizer import Tokenizer
from lmserve.types import GenerateRequest, History

log = logging.getLogger(__name__)


class ModelText:
    """Tokenizer and chat template of one model. No asyncio: `token_ids` may run in a thread."""

    def __init__(self, info: EngineInfo, settings: Settings):
        self.key = assets_key(info)
        self.tokenizer = Tokenizer.from_file(
            info.tokenizer_file,
            bos_token=info.bos_token,
            eos_token_ids=info.eos_token_ids,
            add_bos=info.add_bos,
        )
        choice = resolve_chat_template(settings.server.chat_template)
        meta = settings.server.meta_instruction
        source = template_source(choice, info.chat_template, self.tokenizer, meta)
        info = msgspec.structs.replace(info, chat_template=source)
        self._stops, self._stop_ids = split_stops(choice, self.tokenizer)
        self._max_log_len = settings.log.max_log_len
        self.info = info  # its template is the one that is used
        self.template = ChatTemplate(
            info.chat_template, bos_token=info.bos_token, eos_token=info.eos_token
        )
        server = settings.server
        self.speech = Speech(
            self.tokenizer, answer_forms(source, server.tool_call_parser, server.reasoning_parser)
        )
        #: Texts become other tokens where this differs.
        self.text_key = _digest(info)

    def token_ids(self, request: GenerateRequest) -> list[int]:
        """The prompt in tokens."""
        token_ids = self._token_ids(request)
        return token_ids + self.speech.prompt_end(request, token_ids)

    def _token_ids(self, request: GenerateRequest) -> list[int]:
        if request.token_ids is not None:
            return request.token_ids
        history = request.history
        if history is not None and (rest := self._after(request, history)) is not None:
            self.check_length(request, len(rest))
            self._log(rest)
            return history.token_ids + self.tokenizer.encode_further(rest)
        text = self.rendered(request)
        self._log(text)
        return self.tokenizer.encode(text, add_special=request.text is not None)

    def rendered(self, request: GenerateRequest, *, add_generation_prompt: bool = True) -> str:
        """The whole prompt in text. Raises PromptTooLong, and as the template does."""
        text = request.text
        if text is None:
            messages, begun = request.messages, ""
            assert messages is not None
            if request.continues:
                *messages, answer = messages
                begun = answer["content"]
            text = self.template.render(
                messages,
                kwargs=request.chat_template_kwargs,
                tools=self.speech.tools(request),
                form=self.speech.forms.calls,
                add_generation_prompt=add_generation_prompt,
            )
            text += begun
        self.check_length(request, len(text))
        return text

    def _after(self, request: GenerateRequest, history: History) -> str | None:
        """The text that follows the history. None: this template cannot say."""
        if request.messages is None:
            return request.text
        return self.template.render_after(
            request.messages,
            history.num_messages,
            kwargs=request.chat_template_kwargs,
            tools=self.speech.tools(request),
            form=self.speech.forms.calls,
        )

    def parser(self, request: GenerateRequest, prompt_ids: Sequence[int]) -> AnswerParser | None:
        """What tells the answer's parts apart, where that is asked for and there are any."""
        return self.speech.parser(request, prompt_ids)

    def said(self, request: GenerateRequest, token_ids: Sequence[int]) -> str:
        """The text of an answer so far, which the request goes on with; less the beginning of a
        code point at its end."""
        parser = self.parser(request, ())
        detokenizer = self.tokenizer.detokenizer(
            skip_special=request.skip_special_tokens,
            shown=parser.marks if parser is not None else frozenset(),
        )
        return detokenizer.push(token_ids)

    def check_length(self, request: GenerateRequest, num_chars: int) -> None:
        """Refuses what cannot fit. Raises PromptTooLong."""
        limits.check_length(request, num_chars, self.tokenizer.max_token_chars, self.info)

    def output(
        self,
        request: GenerateRequest,
        sampling: SamplingParams,
        prompt_ids: Sequence[int],
        parser: AnswerParser | None = None,
    ) -> OutputText:
        """What turns the answer's tokens into what the client, and this parser, see."""
        # a completion goes on from its prompt, and an answer from its beginning among messages; a
        # chat's answer is a text of its own
        goes_on = (request.messages is None) != request.continues
        detokenizer = self.tokenizer.detokenizer(
            skip_special=request.skip_special_tokens,
            context=prompt_ids[-8:] if goes_on else (),
            shown=parser.marks if parser is not None else frozenset(),
        )
        if request.continues and request.history is not None:
            detokenizer.push(prompt_ids[len(request.history.token_ids) :])  # said before
        if sampling.grammar is not None:  # which says where it ends
            return OutputText(detokenizer)
        most_chars = self.tokenizer.max_token_chars
        return OutputText(
            detokenizer,
            limits.attainable(request.stop, self.info.max_model_len, most_chars),
            sampling.min_tokens,
            always=self._stops if _ends_as_chat(request) else (),
            include_stop=request.include_stop,
        )

    def with_stops(self, request: GenerateRequest, sampling: SamplingParams) -> SamplingParams:
        """And with the stop tokens of the chat template, in a chat."""
        if not (self._stop_ids and _ends_as_chat(request)):
            return sampling
        ids = dict.fromkeys((*sampling.stop_token_ids, *self._stop_ids))
        return msgspec.structs.replace(sampling, stop_token_ids=tuple(ids))

    def _log(self, text: str) -> None:
        if self._max_log_len:
            log.debug("prompt of %d characters: %r", len(text), text[: self._max_log_len])


def _ends_as_chat(request: GenerateRequest) -> bool:
    """At the stop words of the chat template too."""
    return (request.messages is not None or request.continues) and not request.ignore_eos


def _digest(info: EngineInfo) -> str:
    """Of all that makes tokens of messages. Unlike `assets_key`, it means the same tomorrow."""
    digest = hashlib.sha256()
    with open(info.tokenizer_file, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    others = (info.chat_template, info.bos_token, info.eos_token, info.add_bos)
    digest.update(repr(others).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


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
    stack += [tool.parameters for tool in request.tools]
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

"""`lmserve.LLM`: a model in this process, for scripts. No server, no asyncio."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmserve.errors import InvalidField
from lmserve.messages import EngineInfo
from lmserve.offline.answers import Answer, Growing
from lmserve.offline.engine import Engine, engine_settings
from lmserve.offline.sampling import SamplingParams, request_fields
from lmserve.service import limits
from lmserve.service.prompt import ModelText
from lmserve.settings import EngineSettings, Settings
from lmserve.text.detokenizer import NoDetokenizer
from lmserve.text.output import OutputText
from lmserve.text.tokenizer import Tokenizer
from lmserve.types import GenerateRequest

Prompt = str | Sequence[int]  # text, or token ids
Message = Mapping[str, Any]
Conversation = Sequence[Message]


class LLM:
    """Loads a model: a directory, a .gguf file or a hub id; default: the embedded one. `engine` are
    the settings of the server's [engine] section, by name; `settings` instead are all of them,
    taken as they are. One call runs at a time; others wait for it."""

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        settings: EngineSettings | None = None,
        **engine: Any,
    ):
        self._engine = Engine(engine_settings(model, engine) if settings is None else settings)
        self._text = ModelText(self._engine.info, Settings(engine=self._engine.settings))
        self._rids = itertools.count()
        self._lock = threading.Lock()
        self._close = weakref.finalize(self, self._engine.close)  # at the latest

    @property
    def info(self) -> EngineInfo:
        """What the engine says of the model."""
        return self._engine.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._text.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Answer]:
        """An answer to each, in their order: prompts go on as they are, without a chat template.
        Raises RequestError before anything runs, EngineError where one fails."""
        requests = [
            {"text": each} if isinstance(each, str) else {"token_ids": list(each)}
            for each in _prompts(prompts)
        ]
        return self._run("prompts", requests, sampling)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Answer]:
        """The next message of each conversation, through the model's chat template."""
        conversations = _conversations(messages)
        return self._run("messages", [{"messages": list(each)} for each in conversations], sampling)

    def close(self) -> None:
        """Frees the model's memory. Nothing can be asked after."""
        self._close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(
        self,
        name: str,
        requests: list[dict[str, Any]],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[Answer]:
        fields = [request_fields(each) for each in _each(sampling, len(requests), name)]
        growing = [
            self._prepare(f"{name}[{at}]", request | fields[at])
            for at, request in enumerate(requests)
        ]
        with self._lock:
            self._engine.run(growing)
        return [each.answer for each in growing]

    def _prepare(self, label: str, fields: dict[str, Any]) -> Growing:
        """As `service.prepare` does it: the same checks, text and tokens."""
        info, text = self._engine.info, self._text
        detokenize = fields.pop("detokenize")
        request = GenerateRequest(**fields, params={"prompt": label, "messages": label})
        limits.check_prompt(request, info)
        sampling = text.with_stops(request, limits.sampling_params(request, info))
        sampling = limits.with_bad_words(request, sampling, text.tokenizer.encodings, info)
        token_ids = text.token_ids(request)
        sampling = limits.fit(request, sampling, len(token_ids), info)
        output = (
            text.output(request, sampling, token_ids) if detokenize else OutputText(NoDetokenizer())
        )
        return Growing(next(self._rids), label, token_ids, sampling, output)


def _prompts(given: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(given, str):
        return [given]
    prompts: list[Any] = list(given)
    if prompts and all(isinstance(each, int) for each in prompts):
        return [prompts]
    for at, each in enumerate(prompts):
        good = isinstance(each, str) or (
            isinstance(each, Sequence) and all(type(token) is int for token in each)
        )
        if not good:
            raise InvalidField(
                f"prompts[{at}] must be a text or a list of token ids, not {type(each).__name__}",
                param=f"prompts[{at}]",
            )
    return prompts


def _conversations(given: Conversation | Sequence[Conversation]) -> list[Conversation]:
    messages: list[Any] = list(given)
    if messages and all(isinstance(each, Mapping) for each in messages):
        return [messages]
    for at, each in enumerate(messages):
        if not isinstance(each, Sequence) or isinstance(each, str):
            raise InvalidField(
                f"messages[{at}] must be a message with role and content, or a list of them, not "
                f"{type(each).__name__}",
                param=f"messages[{at}]",
            )
    return messages


def _each(
    sampling: SamplingParams | Sequence[SamplingParams] | None, num: int, name: str
) -> list[SamplingParams]:
    """One for each prompt."""
    if sampling is None or isinstance(sampling, SamplingParams):
        return [sampling or SamplingParams()] * num
    if len(sampling) != num:
        raise InvalidField(
            f"sampling has {len(sampling)} entries for {num} {name}: give one for all, or one each",
            param="sampling",
        )
    return list(sampling)

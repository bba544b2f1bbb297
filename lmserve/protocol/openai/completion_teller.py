"""A choice of a completion, told with all that was asked for."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct

from lmserve.protocol.encode import Head, event
from lmserve.protocol.logprobs import CompletionLogprobs, CompletionScribe, Vocabulary
from lmserve.protocol.openai.completion_answers import (
    CompletionResponse,
    CompletionResponseChoice,
    CompletionResponseStreamChoice,
    CompletionStreamResponse,
)
from lmserve.protocol.openai.plain import Extras
from lmserve.protocol.openai.teller import Source, Teller
from lmserve.protocol.usage import UsageInfo
from lmserve.types import Done


class CompletionTeller(Teller):
    """`prompt`: its text, where that is to be told."""

    def __init__(
        self,
        head: Head,
        index: int,
        source: Source,
        extras: Extras,
        vocabulary: Vocabulary,
        *,
        prompt: str = "",
        skip_special: bool = True,
    ):
        super().__init__(head, index, source, extras, vocabulary)
        self._prompt = prompt
        self._scribe = CompletionScribe(vocabulary, skip_special=skip_special)
        self._told_prompt = False

    def _begin(self) -> bytes:
        return b""  # the first chunk tells the prompt too

    def _said(self, done: Done | None = None) -> Struct:
        reason = None if done is None else done.finish_reason
        return CompletionResponseStreamChoice(
            index=self.index, finish_reason=reason, **self._told()
        )

    def _silence(self) -> Struct:
        return CompletionResponseStreamChoice(index=self.index, text="")

    def choice(self, done: Done) -> CompletionResponseChoice:
        self._end()
        return CompletionResponseChoice(
            index=self.index, finish_reason=done.finish_reason, **self._told()
        )

    def _told(self) -> dict[str, Any]:
        """The prompt once, where it is asked for, and the pieces."""
        first, self._told_prompt = not self._told_prompt, True
        echoes = first and self.extras.echo
        return {
            "text": (self._prompt if echoes else "") + self._pieces.text,
            "logprobs": self._logprobs(echoes) if self.extras.logprobs else None,
            "token_ids": self._token_ids(),
            "prompt_token_ids": self.prompt_token_ids if first else UNSET,
            "prompt_logprobs": self.prompt_logprobs if first else UNSET,
        }

    def _logprobs(self, echoes: bool) -> CompletionLogprobs | None:
        pieces, source = self._pieces, self.source
        if echoes:
            logprobs = [*source.prompt_logprobs, *pieces.logprobs]
            return self._scribe.write(logprobs, source.prompt_ids[0])
        return self._scribe.write(pieces.logprobs) if pieces.logprobs else None

    def _chunk(self, choice: Struct, **others: Any) -> bytes:
        assert isinstance(choice, CompletionResponseStreamChoice)
        head = self.head
        return event(
            CompletionStreamResponse(
                id=head.id,
                created=head.created,
                model=head.model,
                choices=[choice],
                usage=self._usage(),
                **others,
            )
        )

    def response(self, choices: list[CompletionResponseChoice], usage: UsageInfo) -> bytes:
        """The whole answer, this being its first choice."""
        head = self.head
        return msgspec.json.encode(
            CompletionResponse(
                id=head.id,
                created=head.created,
                model=head.model,
                choices=choices,
                usage=usage,
                timings=self.timings,
            )
        )

"""A choice of a chat, told with all that was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from lmserve.protocol.encode import event
from lmserve.protocol.logprobs import ChatLogprobs, chat_logprobs
from lmserve.protocol.openai.chat_answers import (
    ChatAnswer,
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
    DeltaMessage,
)
from lmserve.protocol.openai.pieces import Call, Pieces
from lmserve.protocol.openai.teller import Teller
from lmserve.protocol.tools import FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta
from lmserve.protocol.usage import UsageInfo
from lmserve.types import Done


class ChatTeller(Teller):
    def _begin(self) -> bytes:
        role = self._said_as(DeltaMessage(role="assistant", content=""))
        if self.index:  # the first choice tells of the prompt, which all have in common
            return self._chunk(role)
        return self._chunk(
            role, prompt_token_ids=self.prompt_token_ids, prompt_logprobs=self.prompt_logprobs
        )

    def _said(self, done: Done | None = None) -> Struct:
        return ChatCompletionResponseStreamChoice(
            index=self.index,
            delta=_delta(self._pieces),
            logprobs=self._logprobs(),
            finish_reason=None if done is None else done.finish_reason,
            token_ids=self._token_ids(),
        )

    def _silence(self) -> Struct:
        return self._said_as(DeltaMessage())

    def _said_as(self, delta: DeltaMessage) -> Struct:
        return ChatCompletionResponseStreamChoice(index=self.index, delta=delta)

    def choice(self, done: Done) -> ChatCompletionResponseChoice:
        self._end()
        return ChatCompletionResponseChoice(
            index=self.index,
            message=_message(self._pieces),
            logprobs=self._logprobs(),
            finish_reason=done.finish_reason,
            token_ids=self._token_ids(),
        )

    def _logprobs(self) -> ChatLogprobs | None:
        """Null in a chunk of no token, as where they are not asked for."""
        if not (self.extras.logprobs and self._pieces.logprobs):
            return None
        return chat_logprobs(self._pieces.logprobs, self.vocabulary)

    def _chunk(self, choice: Struct, **others: Any) -> bytes:
        assert isinstance(choice, ChatCompletionResponseStreamChoice)
        head = self.head
        return event(
            ChatCompletionStreamResponse(
                id=head.id,
                created=head.created,
                model=head.model,
                choices=[choice],
                usage=self._usage(),
                **others,
            )
        )

    def response(self, choices: list[ChatCompletionResponseChoice], usage: UsageInfo) -> bytes:
        """The whole answer, this being its first choice."""
        head = self.head
        return msgspec.json.encode(
            ChatCompletionResponse(
                id=head.id,
                created=head.created,
                model=head.model,
                choices=choices,
                usage=usage,
                prompt_token_ids=self.prompt_token_ids,
                prompt_logprobs=self.prompt_logprobs,
                timings=self.timings,
            )
        )


def _delta(pieces: Pieces) -> DeltaMessage:
    return DeltaMessage(
        content=pieces.text or None,
        reasoning_content=pieces.thought or None,
        tool_calls=[_call_delta(index, call) for index, call in pieces.calls.items()] or None,
    )


def _call_delta(index: int, call: Call) -> ToolCallDelta:
    arguments, begun = "".join(call.arguments), call.begun
    if begun is None:
        return ToolCallDelta(index=index, function=FunctionCallDelta(arguments=arguments))
    return ToolCallDelta(
        index=index,
        id=begun.id,
        type="function",
        function=FunctionCallDelta(name=begun.name, arguments=arguments),
    )


def _message(pieces: Pieces) -> ChatAnswer:
    calls: list[ToolCall] | UnsetType = [*_calls(pieces.calls.values())] or UNSET
    text = pieces.text
    return ChatAnswer(
        content=text if text or calls is UNSET else None,
        reasoning_content=pieces.thought or UNSET,
        tool_calls=calls,
    )


def _calls(calls: Iterable[Call]) -> Iterable[ToolCall]:
    for call in calls:
        assert call.begun is not None, "a call begins before its arguments"
        function = FunctionCall(name=call.begun.name, arguments="".join(call.arguments))
        yield ToolCall(id=call.begun.id, function=function)

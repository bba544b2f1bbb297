"""One slot a request, between the engine's step and the request's reader.

A slow reader finds several steps merged into one delivery; memory stays bounded by the
answer's own length. Exactly one terminal delivery is ever made.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable

import msgspec

from lmserve.messages import SequenceOutput, TokenLogprob, unpack_ids

logger = logging.getLogger(__name__)

_unpack_one = struct.Struct("<i").unpack


class Delivery(msgspec.Struct):  # made once a token: a dataclass takes four times as long
    """Everything that arrived since the last `get`."""

    token_ids: list[int] = []
    num_cached_tokens: int = 0  # of the prompt, as far as known by now
    queue_s: float | None = None  # waited in the engine, as far as known by now
    finish: str | None = None  # a FinishReason; the last delivery has it set
    stop_token_id: int | None = None
    error: str | None = None
    died: bool = False  # with finish == "error": the engine process itself is gone
    retry_after_s: int | None = None  # with finish == "error": there is no engine; ask again then
    refused: bool = False  # with finish == "error": what was asked for cannot be
    logprobs: list[TokenLogprob] | None = None  # of `token_ids`, where they were asked for
    prompt_logprobs: list[TokenLogprob] | None = None  # the next of them, where there are some
    num_prompt_run: int | None = None  # tokens of the prompt done, where more were
    embedding: bytes | None = None  # float32, little-endian; with the last delivery


class Mailbox:
    """Owned by the handle that made it; read by one reader, which waits in `get` or, so that no
    task need wake for a step, has `listener` called in the very turn that brings it."""

    __slots__ = (
        "_died",
        "_num_cached_tokens",
        "_outputs",
        "_queue_s",
        "_retry_after_s",
        "_terminal",
        "_waiter",
        "finished",
        "listener",
        "on_begun",
        "rid",
    )

    def __init__(self, rid: int):
        self.rid = rid
        self.finished = False  # the terminal delivery was put (perhaps not yet read)
        self._outputs: list[SequenceOutput] = []  # one a step, read by `take`: `put` stays cheap
        self._num_cached_tokens = 0
        self._queue_s: float | None = None
        self._terminal: SequenceOutput | None = None
        self._died = False
        self._retry_after_s: int | None = None
        self._waiter: asyncio.Future[None] | None = None
        #: Called after each `put`; takes what there is with `take`, and must not raise.
        self.listener: Callable[[], None] | None = None
        #: Called once, when the engine begins with it (True) or it ends before that.
        self.on_begun: Callable[[bool], None] | None = None

    def put(self, output: SequenceOutput) -> None:
        """Adds a step's output. After a terminal one, whatever comes is dropped."""
        if self.finished:
            return
        self._outputs.append(output)
        if output.queue_s is not None:  # again, where the engine that began with it died
            self._queue_s, self._num_cached_tokens = output.queue_s, output.num_cached_tokens
        elif output.num_cached_tokens > self._num_cached_tokens:
            self._num_cached_tokens = output.num_cached_tokens
        if output.finish is not None:
            self.finished = True
            self._terminal = output
        if self.on_begun is not None and (output.queue_s is not None or self.finished):
            on_begun, self.on_begun = self.on_begun, None
            self._call(on_begun, output.queue_s is not None)
        if self.listener is not None:
            self._call(self.listener)
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _call(self, told: Callable[..., None], *args: bool) -> None:
        """Where that fails, no other request may pay for it: what the engine says to all of them
        comes in one loop."""
        try:
            told(*args)
        except Exception:
            logger.exception("the reader of the engine's request %d failed", self.rid)

    @property
    def waiting(self) -> bool:
        """Whether something was put that nobody took."""
        return bool(self._outputs)

    def end(
        self,
        finish: str,
        error: str | None = None,
        *,
        died: bool = False,
        retry_after_s: int | None = None,
    ) -> None:
        """Puts the terminal delivery, unless there is one already."""
        if self.finished:
            return
        self._died, self._retry_after_s = died, retry_after_s
        self.put(SequenceOutput(self.rid, b"", finish=finish, error=error))

    async def get(self) -> Delivery:
        """Waits for the next delivery. After the terminal one, call no more."""
        if not self._outputs:
            assert not self.finished, "the terminal delivery was read already"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.take()

    def take(self) -> Delivery:
        """What is `waiting`, at once."""
        outputs, self._outputs = self._outputs, []
        output = outputs[0] if len(outputs) == 1 else _merged(outputs)
        data = output.token_ids
        one = len(data) == 4  # nearly always, while the reader keeps up
        delivery = Delivery(
            [*_unpack_one(data)] if one else unpack_ids(data),
            self._num_cached_tokens,
            self._queue_s,
            logprobs=output.logprobs,
            prompt_logprobs=output.prompt_logprobs,
            num_prompt_run=output.num_prompt_run,
        )
        if self._terminal is not None:
            delivery.finish = self._terminal.finish
            delivery.stop_token_id = self._terminal.stop_token_id
            delivery.error = self._terminal.error
            delivery.died = self._died
            delivery.retry_after_s = self._retry_after_s
            delivery.refused = self._terminal.refused
            delivery.embedding = self._terminal.embedding
        return delivery


def _merged(outputs: list[SequenceOutput]) -> SequenceOutput:
    """What several steps said."""
    runs = [run for each in outputs if (run := each.num_prompt_run) is not None]
    return SequenceOutput(
        0,
        b"".join([each.token_ids for each in outputs]),
        logprobs=_joined([each.logprobs for each in outputs]),
        prompt_logprobs=_joined([each.prompt_logprobs for each in outputs]),
        num_prompt_run=runs[-1] if runs else None,
    )


def _joined(lists: list[list[TokenLogprob] | None]) -> list[TokenLogprob] | None:
    found = [each for each in lists if each is not None]
    return [logprob for each in found for logprob in each] if found else None

"""Whose the tokens are: log probabilities go with the texts of the message, not with reasoning,
calls, and the marks around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lmserve.messages import LEAST_LOGPROB, TokenLogprob
from lmserve.types import Content, NamedLogprob, Part

TokenBytes = Callable[[int], bytes]


class ContentTokens:
    """Of one answer."""

    def __init__(self, token_bytes: TokenBytes):
        self._token_bytes = token_bytes
        self._pushed: list[tuple[str, list[Part]]] = []
        self._waiting: list[tuple[str, TokenLogprob]] = []  # that have told nothing yet

    def push(self, text: str, parts: list[Part]) -> None:
        """The text of a token, and the parts that it told; "" and those that the end told."""
        self._pushed.append((text, parts))

    def take(self, logprobs: Sequence[TokenLogprob]) -> list[Part]:
        """All parts since, with the log probabilities of the tokens."""
        told: list[Part] = []
        for index, (text, parts) in enumerate(self._pushed):
            if index < len(logprobs):
                self._waiting.append((text, logprobs[index]))
            told += [self._rated(part) if isinstance(part, Content) else part for part in parts]
            if parts:
                self._waiting.clear()
        self._pushed.clear()
        return told

    def _rated(self, content: Content) -> Content:
        """With the tokens that it is of: before it may be those of a mark, or of white space."""
        text = "".join([text for text, _ in self._waiting])
        begin = max(0, text.rfind(content.text))
        num_before = 0
        rated: list[TokenLogprob] = []
        for text, logprob in self._waiting:
            if num_before >= begin or num_before + len(text) > begin:
                rated.append(logprob)
            num_before += len(text)
        self._waiting.clear()
        return Content(content.text, named(rated, self._token_bytes))


def named(logprobs: Iterable[TokenLogprob], token_bytes: TokenBytes) -> tuple[NamedLogprob, ...]:
    return tuple(
        [
            NamedLogprob(
                token_bytes(each.token_id),
                max(each.logprob, LEAST_LOGPROB),
                tuple(
                    [
                        (token_bytes(id), max(logprob, LEAST_LOGPROB))
                        for id, logprob in zip(each.top_ids, each.top_logprobs, strict=True)
                    ]
                ),
            )
            for each in logprobs
        ]
    )

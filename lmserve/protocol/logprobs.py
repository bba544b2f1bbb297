"""Log probabilities in the words of chat, of completions, and of vLLM for prompts."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta, Struct

from lmserve.messages import LEAST_LOGPROB, TokenLogprob
from lmserve.types import NamedLogprob

_BYTES = Annotated[list[int], Meta(description="Of its UTF-8, which tokens may cut anywhere.")]
_PIECE = 64  # tokens


class Vocabulary(Protocol):
    """What the tokens stand for."""

    def token_bytes(self, token_id: int) -> bytes:
        """Of any token, special ones as they are written."""

    def decode(self, token_ids: Sequence[int], *, skip_special: bool) -> str: ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Those that texts leave out, unless they are asked not to."""


class TopLogprob(Struct, kw_only=True):
    """One of the likeliest tokens in a place."""

    token: str
    logprob: float
    bytes: _BYTES


class ChatTokenLogprob(Struct, kw_only=True):
    """A token of the answer."""

    token: str
    logprob: float
    bytes: _BYTES
    top_logprobs: Annotated[list[TopLogprob], Meta(description="Likeliest first.")]


class ChatLogprobs(Struct, kw_only=True):
    content: Annotated[
        list[ChatTokenLogprob], Meta(description="All tokens of the answer, the end token too.")
    ]
    refusal: str | None = None


class CompletionLogprobs(Struct, kw_only=True):
    """Of each token, in four lists of one length."""

    tokens: Annotated[
        list[str], Meta(description=r"A token that is no whole text is `bytes:\xe2\x80`.")
    ]
    token_logprobs: Annotated[list[float | None], Meta(description="Null: of the very first.")]
    top_logprobs: Annotated[
        list[dict[str, float] | None], Meta(description="The likeliest, and the token itself.")
    ]
    text_offset: Annotated[list[int], Meta(description="Where each begins, in characters.")]


class PromptLogprob(Struct, kw_only=True):
    """A token of the prompt, or another in its place."""

    logprob: float
    rank: Annotated[int | None, Meta(description="From 1 on, among the likeliest; else null.")]
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


def token_logprobs(logprobs: Iterable[NamedLogprob]) -> list[ChatTokenLogprob]:
    return [
        ChatTokenLogprob(
            **_spelled(one.token, one.logprob),
            top_logprobs=[TopLogprob(**_spelled(token, logprob)) for token, logprob in one.top],
        )
        for one in logprobs
    ]


def token_logprobs_json(logprobs: Sequence[NamedLogprob]) -> msgspec.Raw:
    """In pieces: between them another thread gets its turn."""
    pieces = (
        msgspec.json.encode(token_logprobs(logprobs[begin : begin + _PIECE]))[1:-1]
        for begin in range(0, len(logprobs), _PIECE)
    )
    return msgspec.Raw(b"[%b]" % b",".join(pieces))


def chat_logprobs(logprobs: Iterable[TokenLogprob], vocabulary: Vocabulary) -> ChatLogprobs:
    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                **_named(one.token_id, one.logprob, vocabulary),
                top_logprobs=[
                    TopLogprob(**_named(id, logprob, vocabulary))
                    for id, logprob in zip(one.top_ids, one.top_logprobs, strict=True)
                ],
            )
            for one in logprobs
        ]
    )


def _named(id: int, logprob: float, vocabulary: Vocabulary) -> dict[str, Any]:
    return _spelled(vocabulary.token_bytes(id), told(logprob))


def _spelled(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def told(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


class CompletionScribe:
    """Writes the lists of one answer, piece by piece: the offsets count on."""

    def __init__(self, vocabulary: Vocabulary, *, skip_special: bool):
        self._vocabulary = vocabulary
        self._hidden = vocabulary.special_ids if skip_special else frozenset[int]()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def write(
        self, logprobs: Sequence[TokenLogprob], first_id: int | None = None
    ) -> CompletionLogprobs:
        """`first_id`: a token before them, which nothing is known of."""
        written = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        if first_id is not None:
            self._add(written, first_id, None, None)
        for one in logprobs:
            chosen = (one.token_id, one.logprob)
            top: dict[str, float] = {}
            for id, logprob in (*zip(one.top_ids, one.top_logprobs, strict=True), chosen):
                top.setdefault(self._spelled(id), told(logprob))
            self._add(written, one.token_id, told(one.logprob), top)
        return written

    def _add(
        self,
        written: CompletionLogprobs,
        id: int,
        logprob: float | None,
        top: dict[str, float] | None,
    ) -> None:
        written.tokens.append(self._spelled(id))
        written.token_logprobs.append(logprob)
        written.top_logprobs.append(top)
        written.text_offset.append(self._offset)
        if id not in self._hidden:
            self._offset += len(self._decoder.decode(self._vocabulary.token_bytes(id)))

    def _spelled(self, id: int) -> str:
        data = self._vocabulary.token_bytes(id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def prompt_logprobs(logprobs: Iterable[TokenLogprob], vocabulary: Vocabulary) -> PromptLogprobs:
    """Of a whole prompt: a null for its first token, then one of each."""
    return [None, *(_alternatives(one, vocabulary) for one in logprobs)]


def _alternatives(one: TokenLogprob, vocabulary: Vocabulary) -> dict[str, PromptLogprob]:
    found: dict[int, tuple[float, int | None]] = {one.token_id: (one.logprob, None)}
    for rank, (id, logprob) in enumerate(zip(one.top_ids, one.top_logprobs, strict=True), 1):
        found[id] = (logprob, rank)
    return {
        str(id): PromptLogprob(
            logprob=told(logprob),
            rank=rank,
            decoded_token=vocabulary.token_bytes(id).decode(errors="replace"),
        )
        for id, (logprob, rank) in found.items()
    }


# --- LMDeploy's ---------------------------------------------------------------------------

Pair = tuple[float | None, int]  # log probability, token id


def pair(one: TokenLogprob) -> Pair:
    return told(one.logprob), one.token_id


def top_pairs(one: TokenLogprob) -> list[Pair]:
    return [(told(logprob), id) for id, logprob in zip(one.top_ids, one.top_logprobs, strict=True)]

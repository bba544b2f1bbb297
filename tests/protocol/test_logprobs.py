"""Log probabilities in the words of each API."""

from __future__ import annotations

import math

import msgspec

from lmserve.messages import TokenLogprob
from lmserve.protocol.logprobs import CompletionScribe, chat_logprobs, prompt_logprobs
from tests.protocol.told import Bytes

VOCABULARY = Bytes()
FIRST, SECOND = "ü".encode()


def test_those_of_a_chat() -> None:
    told = chat_logprobs([TokenLogprob(FIRST, -0.5, [97, FIRST], [-0.25, -0.5])], VOCABULARY)
    assert msgspec.to_builtins(told) == {
        "content": [
            {
                "token": "\N{REPLACEMENT CHARACTER}",
                "logprob": -0.5,
                "bytes": [FIRST],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.25, "bytes": [97]},
                    {"token": "\N{REPLACEMENT CHARACTER}", "logprob": -0.5, "bytes": [FIRST]},
                ],
            }
        ],
        "refusal": None,
    }


def test_those_of_a_completion() -> None:
    """What is no text by itself is told in bytes; offsets are of characters."""
    scribe = CompletionScribe(VOCABULARY, skip_special=True)
    written = scribe.write([TokenLogprob(FIRST, -0.5), TokenLogprob(SECOND, -1.0)], first_id=97)
    assert written.tokens == ["a", r"bytes:\xc3", r"bytes:\xbc"]
    assert written.token_logprobs == [None, -0.5, -1.0]
    assert written.top_logprobs == [None, {r"bytes:\xc3": -0.5}, {r"bytes:\xbc": -1.0}]
    assert written.text_offset == [0, 1, 1]
    more = scribe.write([TokenLogprob(300, -2.0, [98], [-0.1]), TokenLogprob(99, -3.0)])
    assert more.tokens == ["<300>", "c"]
    assert more.top_logprobs == [{"b": -0.1, "<300>": -2.0}, {"c": -3.0}]
    assert more.text_offset == [2, 2]  # a special token is not in the text


def test_special_tokens_that_are_shown_count() -> None:
    scribe = CompletionScribe(VOCABULARY, skip_special=False)
    assert scribe.write([TokenLogprob(300, -1.0), TokenLogprob(97, -1.0)]).text_offset == [0, 5]


def test_of_two_tokens_spelled_alike_the_likelier_counts() -> None:
    class Alike(Bytes):
        def token_bytes(self, token_id: int) -> bytes:
            return b"x"

    scribe = CompletionScribe(Alike(), skip_special=True)
    (top,) = scribe.write([TokenLogprob(1, -2.0, [2, 1], [-1.0, -2.0])]).top_logprobs
    assert top == {"x": -1.0}


def test_those_of_a_prompt() -> None:
    told = prompt_logprobs(
        [TokenLogprob(97, -2.0, [98, 97], [-1.0, -2.0]), TokenLogprob(99, -math.inf, [98], [-1.0])],
        VOCABULARY,
    )
    assert msgspec.to_builtins(told) == [
        None,
        {
            "97": {"logprob": -2.0, "rank": 2, "decoded_token": "a"},
            "98": {"logprob": -1.0, "rank": 1, "decoded_token": "b"},
        },
        {
            "99": {"logprob": -9999.0, "rank": None, "decoded_token": "c"},
            "98": {"logprob": -1.0, "rank": 1, "decoded_token": "b"},
        },
    ]

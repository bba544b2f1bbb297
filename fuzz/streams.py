"""Detokeniser and stop strings: text is the same however its tokens are cut, ends at the first stop
string, and is never held for longer than one may begin."""

from __future__ import annotations

from lmserve.text.output import OutputText
from lmserve.text.tokenizer import Tokenizer
from tests.text.conftest import FAMILIES

NUM_STOPS = 3
WORDS = (b"aaaa", b"abab", b"\xe2\x82\xac", b"\xf0\x9f\x98\x80", b"\xff\xfe", b"<|end|>")


def seeds() -> list[bytes]:
    """A vocabulary and the cuts, the length of a stop string, the strings, ids as bytes."""
    return [
        bytes([kind, size, length]) + body
        for kind in range(4)
        for size, length in ((1, 2), (3, 4))
        for body in (b"ab" * 20, "é€😀 ab<|end|>".encode() * 3, bytes(range(200, 256)))
    ]


def check(data: bytes) -> None:
    kind, size, length = (*data[:3], 0, 0, 0)[:3]
    body = data[3:]
    length, size = length % 5, 1 + size % 9
    stops = [body[at : at + length].decode("utf-8", "replace") for at in range(NUM_STOPS)]
    stops = [stop for stop in stops if stop]
    tokenizer = [*FAMILIES.values()][kind % len(FAMILIES)]()
    ids = [byte % tokenizer.vocab_size for byte in body]
    whole = shown(tokenizer, ids, stops, len(ids) or 1)
    assert shown(tokenizer, ids, stops, size) == whole
    assert shown(tokenizer, ids, stops, 1) == whole
    _check_stop(*whole, shown(tokenizer, ids, [], size)[0], stops)


def _check_stop(text: str, stop: str | None, unstopped: str, stops: list[str]) -> None:
    ends = [(unstopped.find(each) + len(each), -len(each), each) for each in stops]
    ends = [end for end in ends if end[0] >= len(end[2])]
    if not ends:
        assert (text, stop) == (unstopped, None)
        return
    end, _, first = min(ends)
    assert (text, stop) == (unstopped[: end - len(first)], first)


def shown(
    tokenizer: Tokenizer, ids: list[int], stops: list[str], size: int
) -> tuple[str, str | None]:
    output = OutputText(tokenizer.detokenizer(skip_special=False), stops)
    text = ""
    for at in range(0, len(ids), size):
        text += output.push(ids[at : at + size])
        if output.stop is not None:
            return text, output.stop
    text += output.end()
    return text, output.stop

"""Text from tokens as they come, never splitting a code point.

Both kinds work token by token, so that the text never depends on how a stream was cut.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_NUM_CONTEXT = 6  # tokens kept before the new ones: enough for spacing and joins
_MAX_HELD = 8  # a code point takes four byte tokens at most; more than that is not one


class Detokenizer(ABC):
    """One stream of tokens."""

    __slots__ = ()

    @abstractmethod
    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete."""

    @abstractmethod
    def flush(self) -> str:
        """What was held for a code point that never came. Nothing may be pushed after."""


class TokenBytes(dict[int, bytes]):
    """Bytes of each token of a byte-level vocabulary, looked up when first met.

    A token is spelled in an alphabet of 256 printable characters, one a byte; an added token
    that uses any other character stands for its own UTF-8. Tokens in `hidden` have no bytes.
    """

    def __init__(self, id_to_token: Callable[[int], str | None], hidden: frozenset[int]):
        super().__init__()
        self._id_to_token = id_to_token
        self._hidden = hidden
        self.texts = TokenTexts(self)

    def __missing__(self, token_id: int) -> bytes:
        token = None if token_id in self._hidden else self._id_to_token(token_id)
        value = b"" if token is None else _token_bytes(token)
        self[token_id] = value
        return value


class TokenTexts(dict[int, str | None]):
    """Text of each token whose bytes are whole code points, as most are; None for the others."""

    def __init__(self, token_bytes: TokenBytes):
        super().__init__()
        self._token_bytes = token_bytes

    def __missing__(self, token_id: int) -> str | None:
        try:
            text = self._token_bytes[token_id].decode()
        except UnicodeDecodeError:
            text = None
        self[token_id] = text
        return text


class ByteDetokenizer(Detokenizer):
    """For byte-level vocabularies: joins bytes, decodes UTF-8."""

    __slots__ = ("_decoder", "_holds", "_texts", "_token_bytes")

    def __init__(self, token_bytes: TokenBytes):
        self._token_bytes = token_bytes
        self._texts = token_bytes.texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._holds = False  # bytes of a code point that is not whole yet

    def push(self, token_ids: Sequence[int]) -> str:
        if len(token_ids) == 1 and not self._holds:  # nearly always
            text = self._texts[token_ids[0]]
            if text is not None:
                return text
        table, decoder = self._token_bytes, self._decoder
        text = decoder.decode(b"".join([table[token_id] for token_id in token_ids]))
        self._holds = bool(decoder.getstate()[0])
        return text

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer(Detokenizer):
    """For every other vocabulary: decodes a short window of tokens again with each new one.

    `_window` is context whose text was shown, `_shown` characters of it, and then the held
    tokens. A token's text may depend on those before it (spaces, byte fallback), hence the
    context.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        hidden: frozenset[int],
        context: Sequence[int] = (),
    ):
        self._decode = decode
        self._hidden = hidden
        self._window: list[int] = [id for id in context[-_NUM_CONTEXT:] if id not in hidden]
        self._num_context = len(self._window)
        self._shown = len(decode(self._window))

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push(id) for id in token_ids if id not in self._hidden])

    def _push(self, token_id: int) -> str:
        window = self._window
        window.append(token_id)
        text = self._decode(window)
        num_held = len(window) - self._num_context
        if text.endswith(REPLACEMENT) and num_held <= _MAX_HELD:
            return ""
        new = text[self._shown :]
        self._advance(len(text))
        return new

    def _advance(self, shown: int) -> None:
        """All of the window is context now; now and then its beginning is dropped, where the
        rest decodes to clean text by itself."""
        self._num_context = len(self._window)
        self._shown = shown
        if self._num_context < 3 * _NUM_CONTEXT:
            return
        # one of four neighbouring places is not within a code point spelled in byte tokens
        for num_kept in range(_NUM_CONTEXT, _NUM_CONTEXT - 4, -1):
            rest = self._window[-num_kept:]
            text = self._decode(rest)
            # the cap: a stream of broken bytes has no clean place
            if REPLACEMENT not in text or self._num_context >= 8 * _NUM_CONTEXT:
                self._window, self._num_context, self._shown = rest, len(rest), len(text)
                return

    def flush(self) -> str:
        return self._decode(self._window)[self._shown :]


class NoDetokenizer(Detokenizer):
    """For whom tokens are enough: no text."""

    __slots__ = ()

    def push(self, token_ids: Sequence[int]) -> str:
        return ""

    def flush(self) -> str:
        return ""


def _byte_alphabet() -> dict[str, int]:
    """The characters that spell bytes in a byte-level vocabulary (GPT-2's choice): printable
    Latin-1 stands for itself, the other bytes for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _token_bytes(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[char] for char in token])
    except KeyError:
        return token.encode()

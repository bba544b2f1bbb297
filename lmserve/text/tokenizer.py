"""A `tokenizer.json` and what the server needs of it: ids from text, text from ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders

from lmserve.errors import ModelError, RequestError
from lmserve.text.detokenizer import ByteDetokenizer, Detokenizer, TokenBytes, WindowDetokenizer

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # in vocabularies that are not byte-level
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # as are these, which spell what has no other token
_ANCHOR = "."  # a token of its own before nearly everything


class Tokenizer:
    """Thread-safe for `encode` and `decode`; `encode` releases the GIL while it works."""

    def __init__(
        self,
        inner: HfTokenizer,
        *,
        bos_token: str | None = None,
        eos_token_ids: Sequence[int] = (),
        add_bos: bool = False,
    ):
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        #: No token stands for more text than this.
        self.max_token_chars = max(map(len, inner.get_vocab(with_added_tokens=True)), default=0)
        self.bos_token_id: int | None = inner.token_to_id(bos_token) if bos_token else None
        self.eos_token_ids = tuple(eos_token_ids)
        self.special_ids = frozenset(
            id for id, token in inner.get_added_tokens_decoder().items() if token.special
        )
        #: Tokens that were added to the vocabulary: each is found in a text as it is.
        self.added_ids = frozenset(inner.get_added_tokens_decoder())
        self._add_bos = add_bos
        # Byte-level vocabularies (most of today's) spell each token's bytes: no library call a
        # token is needed to detokenise them. The key is what is hidden.
        self._bytes: dict[frozenset[int], TokenBytes] | None = None
        if isinstance(inner.decoder, decoders.ByteLevel):
            self._bytes = {frozenset(): TokenBytes(inner.id_to_token, frozenset())}

    @property
    def adds_bos(self) -> bool:
        """Whether a plain text gets a BOS."""
        return self.encode("a", add_special=True)[:1] == [self.bos_token_id]

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        bos_token: str | None = None,
        eos_token_ids: Sequence[int] = (),
        add_bos: bool = False,
    ) -> Tokenizer:
        try:
            inner = HfTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(
                f"the tokenizer file {path} cannot be read ({error}): fetch the model again, or "
                "empty the cache so that it is converted again"
            ) from error
        return cls(inner, bos_token=bos_token, eos_token_ids=eos_token_ids, add_bos=add_bos)

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Ids of the text. `add_special` adds what the model expects around a plain text; a
        rendered chat template has it already."""
        try:
            # unlike `encode`, the batch call lets other threads run meanwhile
            ids = self._inner.encode_batch_fast([text], add_special_tokens=add_special)[0].ids
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError(
                "the text holds half of a surrogate pair, which is not valid Unicode: send it "
                "as UTF-8"
            ) from error
        bos = self.bos_token_id
        if add_special and self._add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def encode_further(self, text: str) -> list[int]:
        """Ids of a text that goes on from another: vocabularies that mark the beginning of a
        text (a space before its first word) do not do so here."""
        anchor = self.encode(_ANCHOR, add_special=False)
        ids = self.encode(_ANCHOR + text, add_special=False)
        if ids[: len(anchor)] == anchor:
            return ids[len(anchor) :]
        return self.encode(text, add_special=False)  # the text grew together with the anchor

    def encodings(self, text: str) -> list[list[int]]:
        """Ids that may stand for the text: at the beginning of another, right after one, and after
        a space."""
        return [
            self.encode(text, add_special=False),
            self.encode_further(text),
            self.encode_further(" " + text),
        ]

    def decode(self, token_ids: Sequence[int], *, skip_special: bool) -> str:
        return self._inner.decode(token_ids, skip_special_tokens=skip_special)

    def token_bytes(self, token_id: int) -> bytes:
        """What it adds to a text, in UTF-8 that it may cut; of a special token its name."""
        if self._bytes is not None:
            return self._bytes[frozenset()][token_id]
        piece = self._inner.id_to_token(token_id) or ""
        if match := _BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace(_SPACE, " ").encode()

    def spell(self, token_ids: Sequence[int]) -> list[str]:
        """Each as the vocabulary has it; "" where it has none."""
        return [self._inner.id_to_token(id) or "" for id in token_ids]

    def detokenizer(
        self,
        *,
        skip_special: bool,
        context: Sequence[int] = (),
        shown: frozenset[str] = frozenset(),
    ) -> Detokenizer:
        """An incremental decoder. `context` are the tokens before the first one, whose text is
        not repeated; without it, the text begins as a text of its own does. `shown`: special
        tokens that are not skipped."""
        hidden = self.special_ids if skip_special else frozenset[int]()
        if hidden and shown:
            hidden -= {id for mark in shown for id in self.encode(mark, add_special=False)}
        if self._bytes is not None:
            if hidden not in self._bytes:
                self._bytes[hidden] = TokenBytes(self._inner.id_to_token, hidden)
            return ByteDetokenizer(self._bytes[hidden])
        return WindowDetokenizer(
            lambda ids: self._inner.decode(ids, skip_special_tokens=False), hidden, context
        )

"""Structures to grammar sources that compile, for the tokenizer that is served."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

from llguidance import LLTokenizer

from lmserve.errors import InvalidField
from lmserve.grammars import load_tokenizer, new_matcher
from lmserve.text.structures.source import source_of
from lmserve.types import Structure

MAX_MESSAGE_CHARS = 300

_PLACE = re.compile(r"^(at )?\d+\(\d+\): |failed to compile JSON schema: ")


class Compiler:
    """Thread-safe. It wants a deep stack: `lmserve.grammars.DeepThreads`."""

    def __init__(self, tokenizer_file: str, vocab_size: int, eos_ids: Sequence[int]):
        self._of = (tokenizer_file, vocab_size, eos_ids)
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, structure: Structure) -> str:
        """The source of a grammar that an answer can obey. Bounded in time and memory. Raises
        InvalidField."""
        return self.check(
            source_of(structure), structure.param, tell_place=structure.kind == "grammar"
        )

    def check(self, source: str, param: str, *, tell_place: bool = False) -> str:
        """The source itself, where it compiles. Raises InvalidField, which tells the line and
        column where the source is the client's own."""
        try:
            new_matcher(self._loaded(), source)
        except BaseException as error:  # a panic of the library is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            words = _words(error, tell_place)
            raise InvalidField(f"{param} cannot be used: {words}", param=param) from None
        return source

    def _loaded(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = load_tokenizer(*self._of)
            return self._tokenizer


def _words(error: BaseException, tell_place: bool) -> str:
    """The library's message less the source that it quotes: one line."""
    lines = str(error).strip().split("\n")
    reason = next((line for line in lines if line.strip().startswith("error: ")), lines[0])
    text = reason.strip().removeprefix("error: ").strip()
    if not tell_place:
        text = _PLACE.sub("", _PLACE.sub("", text))
    text = text or type(error).__name__
    return text if len(text) <= MAX_MESSAGE_CHARS else text[:MAX_MESSAGE_CHARS] + "…"

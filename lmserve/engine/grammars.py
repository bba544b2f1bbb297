"""Grammars of the sequences: which tokens may come next, computed while the device works.

A sequence with a grammar is held back until its matcher is made, in a thread, or is copied from
that of an earlier one. The masks of a step are begun before its forward pass and needed after it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer

from lmserve.errors import RequestError
from lmserve.grammars import DeepThreads, load_tokenizer, matcher_error, new_matcher
from lmserve.sampling import Grammar

if TYPE_CHECKING:
    from lmserve.engine.sequence import Sequence as TokenSequence

MAX_KEPT = 32  # matchers that have not begun, to copy
MAX_MASK_THREADS = 4
NO_THREAD = "the engine can start no thread for this request's grammar: try again in a moment"

Bits = np.ndarray[tuple[int, int], np.dtype[np.int32]]


class Constraint:
    """One sequence's place in its grammar. Made in a thread, then used by the one that steps."""

    __slots__ = ("_after", "_tail", "active", "error", "matcher")

    def __init__(self, grammar: Grammar):
        self._after = grammar.after
        self._tail: tuple[int, ...] = ()  # the last tokens, as many as `after` has
        self.active = not grammar.after  # the next token is one of the grammar's
        self.matcher: LLMatcher | None = None
        self.error: str | None = None  # it cannot go on

    @property
    def ready(self) -> bool:
        return self.matcher is not None or self.error is not None

    @property
    def complete(self) -> bool:
        """The whole is there, and nothing may follow."""
        matcher = self.matcher
        return self.active and matcher is not None and self.error is None and matcher.is_stopped()

    def take(self, token: int) -> None:
        """The token that was chosen. Sets `error` where the grammar has no place for it."""
        if not self.active:
            self._tail = (*self._tail, token)[-len(self._after) :]
            self.active = self._tail == self._after
            return
        assert self.matcher is not None, "it runs when it is ready"
        if not self.matcher.consume_token(token):
            self.fail()

    def fail(self) -> None:
        assert self.matcher is not None
        self.error = f"the answer cannot go on as its grammar says: {matcher_error(self.matcher)}"


class Grammars:
    """Of one loaded model."""

    def __init__(
        self, tokenizer_file: str, vocab_size: int, eos_ids: Iterable[int], wake: Callable[[], None]
    ):
        self._of = (tokenizer_file, vocab_size, tuple(eos_ids))
        self._wake = wake
        self._tokenizer: LLTokenizer | None = None
        self._makers = DeepThreads(1, "grammar")
        self._maskers = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._parallel: LLExecutor | None = None
        self._fresh: OrderedDict[str, LLMatcher] = OrderedDict()
        self._held: dict[int, TokenSequence] = {}

    def close(self) -> None:
        self._makers.close()
        self._maskers.shutdown(wait=False, cancel_futures=True)

    # --- sequences that wait for their matcher --------------------------------------------

    def hold(self, seq: TokenSequence, grammar: Grammar) -> bool:
        """Gives it its grammar. Says whether it has to wait for that: `take_ready` has it then.
        Raises RequestError where the system gives no thread to make it in."""
        seq.grammar = constraint = Constraint(grammar)
        fresh = self._fresh.get(grammar.source)
        if fresh is not None:
            constraint.matcher = fresh.deep_copy()
            return False
        self._held[seq.rid] = seq
        try:
            self._makers.submit(self._make, grammar.source, constraint)
        except RuntimeError:
            del self._held[seq.rid]
            raise RequestError(NO_THREAD) from None
        return True

    @property
    def has_ready(self) -> bool:
        return any(seq.grammar is not None and seq.grammar.ready for seq in self._held.values())

    def take_ready(self) -> list[TokenSequence]:
        """Those whose matcher was made, or could not be."""
        ready = [seq for seq in self._held.values() if seq.grammar and seq.grammar.ready]
        for seq in ready:
            del self._held[seq.rid]
        return ready

    def held(self, rid: int) -> TokenSequence | None:
        return self._held.get(rid)

    def drop(self, rid: int) -> None:
        self._held.pop(rid, None)

    def _make(self, source: str, constraint: Constraint) -> None:
        """In the maker's thread, the only one that adds to what is kept."""
        try:
            fresh = self._fresh.get(source)
            if fresh is None:
                fresh = new_matcher(self._loaded(), source)
                self._fresh[source] = fresh
                while len(self._fresh) > MAX_KEPT:
                    self._fresh.popitem(last=False)
            constraint.matcher = fresh.deep_copy()
        except BaseException as error:  # a panic of the library is no Exception
            text = str(error).partition("\n")[0] or type(error).__name__
            constraint.error = f"the grammar cannot be used: {text}"
        self._wake()

    def _loaded(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._parallel = LLExecutor(min(MAX_MASK_THREADS, max(1, (os.cpu_count() or 1) // 4)))
            self._tokenizer = load_tokenizer(*self._of)
        return self._tokenizer

    # --- masks ----------------------------------------------------------------------------

    def masks(self, constraints: dict[int, Constraint]) -> Masks | None:
        """Begins the masks of these, by rid; None where none of them rules the next token."""
        ruling = {rid: each for rid, each in constraints.items() if each.active}
        if not ruling or self._tokenizer is None:
            return None
        bits = np.zeros((len(ruling), -(-self._tokenizer.vocab_size // 32)), dtype=np.int32)
        done = self._maskers.submit(self._fill, list(ruling.values()), bits)
        return Masks(list(ruling), bits, done)

    def _fill(self, constraints: list[Constraint], bits: Bits) -> None:
        matchers = [each.matcher for each in constraints]
        pairs = [(matcher, at) for at, matcher in enumerate(matchers) if matcher is not None]
        assert self._parallel is not None, "made with the tokenizer"
        self._parallel.unsafe_compute_mask_ptr(
            pairs, bits.ctypes.data, bits.shape[1] * bits.itemsize, len(bits)
        )
        for constraint, (matcher, at) in zip(constraints, pairs, strict=True):
            if matcher.is_error():
                constraint.fail()
                bits[at] = 0


class Masks:
    """Of one step. A bit for each token that may come."""

    def __init__(self, rids: list[int], bits: Bits, done: Future[None]):
        self._places = {rid: at for at, rid in enumerate(rids)}
        self._bits = bits
        self._done = done

    def of(self, rids: Sequence[int]) -> Bits | None:
        """(rows, vocab / 32), all bits set where there is no grammar; None where there is none
        for any. Waits for what is not computed yet."""
        if not any(rid in self._places for rid in rids):
            return None
        self._done.result()
        bits = np.full((len(rids), self._bits.shape[1]), -1, dtype=np.int32)
        for row, rid in enumerate(rids):
            if rid in self._places:
                bits[row] = self._bits[self._places[rid]]
        return bits

"""What server and engine share of llguidance: its view of the tokenizer, its matchers, its limits.

A grammar's source is llguidance's Lark. The library bounds its own work ("fuel"), but follows
chains of rules by recursion: whatever compiles runs in threads with a deep stack, and what is
too long a chain even so is refused before (`lmserve.text.structures`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

STACK_BYTES = 128 * 2**20  # address space: what is not used costs nothing

_stack_size = threading.Lock()

_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # about 20 ms
    step_lexer_fuel=200_000,  # about 15 ms
    step_max_items=50_000,
    max_items_in_row=2_000,
    max_lexer_states=50_000,  # of 1 to 2 KB each
    max_grammar_size=500_000,
    verbose_errors=False,
)


def load_tokenizer(path: str, vocab_size: int, eos_ids: Sequence[int]) -> LLTokenizer:
    """Takes some tenths of a second. `vocab_size` is the model's; the tokenizer may know less.
    Raises ValueError where the library does not know this kind of tokenizer."""
    known = LLTokenizer(path).vocab_size
    return LLTokenizer(path, n_vocab=max(vocab_size, known), eos_token=list(eos_ids) or None)


def new_matcher(tokenizer: LLTokenizer, source: str) -> LLMatcher:
    """Raises ValueError with one line for the client, also where nothing at all matches."""
    is_error, messages = LLMatcher.validate_grammar_with_warnings(source, tokenizer, limits=_LIMITS)
    if messages:  # a warning tells of something that would be ignored
        raise ValueError(messages[0] if is_error else f"not supported: {messages[0]}")
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=_LIMITS)
    matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError(matcher_error(matcher))
    return matcher


def matcher_error(matcher: LLMatcher) -> str:
    """Why a matcher failed."""
    text = matcher.get_error().partition("\n")[0]
    return "no text can match it" if text.startswith("NoExtension") else text


class DeepThreads:
    """Threads with a deep stack, started as they are needed."""

    def __init__(self, num_threads: int, name: str):
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """As an executor does. Raises RuntimeError where no thread can be started, and then it is
        never run: the executor keeps it for its next thread."""
        future = Future[Any]()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(*args))
                except BaseException as error:
                    future.set_exception(error)

        with _stack_size:
            before = threading.stack_size(STACK_BYTES)
            try:
                kept = self._executor.submit(run)  # starts a thread where it needs one
                kept.add_done_callback(lambda kept: kept.cancelled() and future.cancel())
            except RuntimeError:
                if future.cancel():  # else a thread that ended its work has it
                    raise
            finally:
                threading.stack_size(before)
        return future

    def close(self) -> None:
        """What has begun ends by itself; nobody waits for it."""
        self._executor.shutdown(wait=False, cancel_futures=True)

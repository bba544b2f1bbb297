"""Stop strings on text, with bounded hold-back.

The match that is complete first wins; of two that end together, the longer one. That is a
property of the text alone, so the result never depends on how the stream was cut.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """One stream of text. Text is held only while it may be the beginning of a stop string,
    so never more than the longest stop string less one character."""

    def __init__(self, stops: Sequence[str], before: str = ""):
        """`before`: text that another matcher held; it comes before what is pushed first."""
        assert all(stops)
        self._automata = [_Automaton(stop) for stop in stops]
        self._held = ""
        self._before = before

    def push(self, text: str) -> tuple[str, str | None]:
        """The text to show, and the stop string matched if one was. After a match the stream
        is over: nothing may be pushed or flushed."""
        if self._before:
            text, self._before = self._before + text, ""
        first: tuple[int, int, str] | None = None  # end in `text`, start (negative: held), stop
        for automaton in self._automata:
            end = automaton.feed(text)
            if end >= 0:
                found = (end, end - len(automaton.stop), automaton.stop)
                first = found if first is None else min(first, found)
        whole = self._held + text
        if first is not None:
            _, start, stop = first
            shown, self._held = whole[: len(self._held) + start], ""
            return shown, stop
        num_shown = len(whole) - max((automaton.matched for automaton in self._automata), default=0)
        self._held = whole[num_shown:]
        return whole[:num_shown], None

    def flush(self) -> str:
        """At the end of the stream: what was held after all."""
        held, self._held, self._before = self._held + self._before, "", ""
        return held


class _Automaton:
    """Knuth, Morris and Pratt: one pass over the text however hostile the stop string, and no
    more of its table than the text has matched, however long the stop string."""

    __slots__ = ("_failure", "matched", "stop")

    def __init__(self, stop: str):
        self.stop = stop
        self.matched = 0  # characters of `stop` that the text so far ends with
        # for each beginning of `stop`, the length of its longest proper suffix that is one too
        self._failure = [0]

    def feed(self, text: str) -> int:
        """The index in `text` just after the first match, or -1."""
        stop, matched = self.stop, self.matched
        index, length = 0, len(text)
        while index < length:
            if matched == 0:
                index = text.find(stop[0], index)
                if index < 0:
                    break
            char = text[index]
            while matched and stop[matched] != char:
                matched = self._fallback(matched)
            if stop[matched] == char:
                matched += 1
            index += 1
            if matched == len(stop):
                self.matched = 0
                return index
        self.matched = matched
        return -1

    def _fallback(self, matched: int) -> int:
        """The next longest beginning that may still be matched, where this one is not gone on
        with."""
        stop, failure = self.stop, self._failure
        for index in range(len(failure), matched):
            shorter = failure[index - 1]
            while shorter and stop[index] != stop[shorter]:
                shorter = failure[shorter - 1]
            failure.append(shorter + 1 if stop[index] == stop[shorter] else shorter)
        return failure[matched - 1]

"""What a client may see of one answer: detokenised, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from lmserve.text.detokenizer import Detokenizer
from lmserve.text.stops import StopMatcher


class OutputText:
    """Text of one answer as its tokens come."""

    __slots__ = (
        "_always",
        "_detokenizer",
        "_include_stop",
        "_matcher",
        "_min_tokens",
        "num_tokens",
        "stop",
    )

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: Sequence[str] = (),
        min_tokens: int = 0,
        *,
        always: Sequence[str] = (),
        include_stop: bool = False,
    ):
        """`always`: stop strings that are never changed, nor shown. `include_stop`: the others
        are shown, where they end it."""
        self._detokenizer = detokenizer
        self._always = tuple(always)
        stops = (*stops, *always)
        self._matcher = StopMatcher(stops) if stops else None
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self.num_tokens = 0  # pushed, up to and with the one that completed a stop string
        self.stop: str | None = None  # the stop string met

    @property
    def has_stops(self) -> bool:
        return self._matcher is not None

    def push(self, token_ids: Sequence[int]) -> str:
        """The text to show for these tokens. Once `stop` is set, further tokens are not used."""
        if self._matcher is None:
            self.num_tokens += len(token_ids)
            return self._detokenizer.push(token_ids)
        parts: list[str] = []
        for token_id in token_ids:
            if self.stop is not None:
                break
            self.num_tokens += 1
            parts.append(self._match(self._detokenizer.push((token_id,)), self._matcher))
        return "".join(parts)

    def _match(self, text: str, matcher: StopMatcher) -> str:
        if self.num_tokens <= self._min_tokens:
            return text  # a stop string does not begin in these either
        shown, self.stop = matcher.push(text)
        return shown + self._shown_stop

    @property
    def _shown_stop(self) -> str:
        """What is shown of the stop string met."""
        stop = self.stop
        shown = stop is not None and self._include_stop and stop not in self._always
        return stop if stop is not None and shown else ""

    def change_stops(self, stops: Sequence[str]) -> None:
        """From here on. Text that was held and is not shown yet is looked at again."""
        held = "" if self._matcher is None else self._matcher.flush()
        stops = (*stops, *self._always)
        self._matcher = StopMatcher(stops, held) if stops or held else None

    def end(self, num_hidden: int = 0) -> str:
        """The stream is over: what was held. `num_hidden` tokens more were made, not shown."""
        self.num_tokens += num_hidden
        rest = self._detokenizer.flush()
        if self._matcher is None or self.stop is not None:
            return "" if self.stop is not None else rest
        shown, self.stop = self._matcher.push(rest)
        return shown + (self._matcher.flush() if self.stop is None else self._shown_stop)

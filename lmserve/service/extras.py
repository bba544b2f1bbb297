"""What an answer tells beside its text. Only of those who asked: others pay nothing for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lmserve.bridge.mailbox import Delivery
from lmserve.messages import TokenLogprob
from lmserve.service.content_tokens import ContentTokens
from lmserve.service.parts import joined
from lmserve.service.work import Work
from lmserve.text.output import OutputText
from lmserve.text.parsing.parser import AnswerParser
from lmserve.types import Part, PromptProgress, TextDelta


def extras_of(work: Work) -> Extras | None:
    """None where nothing more than the text is asked for."""
    sampling = work.sampling
    asked = (
        work.parser is not None
        or sampling.logprobs is not None
        or sampling.prompt_logprobs is not None
        or sampling.pooling is not None
        or sampling.tell_progress
    )
    return Extras(work) if asked else None


class Extras:
    """Of one answer. Stands between its tokens and `OutputText`, whose methods it has."""

    def __init__(self, work: Work):
        self._output: OutputText = work.output
        self._parser: AnswerParser | None = work.parser
        self._shows_logprobs = work.shows_logprobs
        self._num_prompt_tokens = len(work.token_ids)
        self._contents: ContentTokens | None = None
        if work.parser is not None and work.shows_logprobs:
            self._contents = ContentTokens(work.vocabulary.token_bytes)
        self._parts: list[Part] = []  # not told yet, as are these
        self._logprobs: list[TokenLogprob] = []
        self._progress: PromptProgress | None = None
        self._sum_logprob = 0.0
        self._num_rated = 0
        self.num_reasoning_tokens = 0
        self.prompt_logprobs: list[TokenLogprob] = []
        self.end_logprob: TokenLogprob | None = None  # of the hidden end token
        self.embedding: bytes | None = None

    @property
    def num_calls(self) -> int:
        return 0 if self._parser is None else self._parser.num_calls

    @property
    def mean_logprob(self) -> float:
        return self._sum_logprob / self._num_rated if self._num_rated else -math.inf

    # --- as OutputText ----------------------------------------------------------------

    def push(self, token_ids: Sequence[int]) -> str:
        output, parser = self._output, self._parser
        if parser is None:
            return output.push(token_ids)
        texts: list[str] = []
        for token_id in token_ids:  # one by one, so that each counts as what it is
            if output.stop is not None:
                break
            self.num_reasoning_tokens += parser.in_reasoning
            texts.append(text := output.push((token_id,)))
            self._add(text, parser.push(text) if text else [])
        if output.stop is not None:
            self._add("", parser.end())
        return "".join(texts)

    def end(self, num_hidden: int = 0) -> str:
        text = self._output.end(num_hidden)
        if self._parser is not None:
            self._add("", self._parser.push(text) + self._parser.end())
        return text

    def _add(self, text: str, parts: list[Part]) -> None:
        if self._contents is None:
            self._parts += parts
        else:
            self._contents.push(text, parts)

    # --- what is told -----------------------------------------------------------------

    def take(self, delivery: Delivery, num_shown: int, num_used: int, running_s: float) -> None:
        """What came with these tokens, of which some are used, and some of those shown. `running_s`
        since the first step."""
        if delivery.logprobs is not None:
            used = delivery.logprobs[:num_used]
            self._num_rated += len(used)
            self._sum_logprob += sum([each.logprob for each in used])
            if self._shows_logprobs:
                self._logprobs += delivery.logprobs[:num_shown]
                if num_used > num_shown:
                    self.end_logprob = delivery.logprobs[num_shown]
        if self._contents is not None:
            self._parts += self._contents.take((delivery.logprobs or [])[:num_shown])
        if delivery.prompt_logprobs is not None:
            self.prompt_logprobs += delivery.prompt_logprobs
        if delivery.embedding is not None:
            self.embedding = delivery.embedding
        if delivery.num_prompt_run is not None:
            self._progress = PromptProgress(
                self._num_prompt_tokens,
                delivery.num_cached_tokens,
                delivery.num_prompt_run,
                running_s,
            )

    def has_news(self, *, ended: bool) -> bool:
        """Whether there is something to tell though there is no text. The log probabilities of
        tokens wait for their text, if any comes."""
        return bool(self._parts or self._progress or (ended and self._logprobs))

    def complete(self, delta: TextDelta) -> None:
        """Adds what was not told yet."""
        if self._parser is not None:
            delta.parts, self._parts = joined(self._parts), []
        if self._shows_logprobs:
            delta.logprobs, self._logprobs = self._logprobs, []
        delta.progress, self._progress = self._progress, None

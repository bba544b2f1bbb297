"""An answer that a script gets, and how it comes together."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmserve.errors import EngineError, LmserveError, Unsatisfiable
from lmserve.messages import SequenceOutput, TokenLogprob, unpack_ids
from lmserve.sampling import SamplingParams
from lmserve.text.output import OutputText
from lmserve.types import FinishReason


@dataclass(slots=True, kw_only=True)
class Answer:
    """To one prompt. Times are in seconds since all prompts of the call were submitted."""

    text: str
    token_ids: list[int]  # without the end token, and cut where a stop string was met
    finish_reason: FinishReason
    stop_reason: str | int | None  # the stop string or stop token that ended it
    prompt_token_ids: list[int]
    num_cached_tokens: int  # of the prompt: their KV was there
    token_times_s: list[float]  # when each of `token_ids` came
    total_s: float
    logprobs: list[TokenLogprob] | None = None  # of `token_ids`, where they were asked for
    prompt_logprobs: list[TokenLogprob] | None = None  # of all but the prompt's first

    @property
    def ttft_s(self) -> float:
        """When the first token came; of an answer without any, when it ended."""
        return self.token_times_s[0] if self.token_times_s else self.total_s


@dataclass(slots=True)
class Growing:
    """An answer while it is made."""

    rid: int
    label: str  # of the prompt, in what is told of a failure
    prompt_token_ids: list[int]
    sampling: SamplingParams
    output: OutputText
    ended: bool = False
    error: LmserveError | None = None
    answer: Answer = field(init=False)
    _is_plain: bool = field(init=False)  # nothing but tokens and their text

    def __post_init__(self) -> None:
        self.answer = Answer(
            text="",
            token_ids=[],
            finish_reason="abort",
            stop_reason=None,
            prompt_token_ids=self.prompt_token_ids,
            num_cached_tokens=0,
            token_times_s=[],
            total_s=0.0,
            logprobs=None if self.sampling.logprobs is None else [],
            prompt_logprobs=None if self.sampling.prompt_logprobs is None else [],
        )
        told = self.sampling.logprobs, self.sampling.prompt_logprobs
        self._is_plain = told == (None, None) and not self.output.has_stops

    def take(self, output: SequenceOutput, passed_s: float) -> None:
        """What a step gave it. The engine may go on after the end, where that is a stop string."""
        answer, text = self.answer, self.output
        answer.total_s = passed_s
        if output.num_cached_tokens > answer.num_cached_tokens:
            answer.num_cached_tokens = output.num_cached_tokens
        ids = unpack_ids(output.token_ids)
        if self._is_plain and output.finish is None:  # nearly always: the rest takes its time
            answer.text += text.push(ids)
            answer.token_ids += ids
            answer.token_times_s += [passed_s] * len(ids)
            return
        ended_by = output.stop_token_id
        num_hidden = 1 if ended_by is not None and ids[-1:] == [ended_by] else 0
        before = text.num_tokens
        answer.text += text.push(ids[: len(ids) - num_hidden])
        num_used = text.num_tokens - before
        if output.finish is not None and text.stop is None:
            answer.text += text.end(num_hidden)
        answer.token_ids += ids[:num_used]
        answer.token_times_s += [passed_s] * num_used
        if answer.logprobs is not None and output.logprobs is not None:
            answer.logprobs += output.logprobs[:num_used]
        if answer.prompt_logprobs is not None and output.prompt_logprobs is not None:
            answer.prompt_logprobs += output.prompt_logprobs
        self._end_with(output)

    def _end_with(self, output: SequenceOutput) -> None:
        answer, stop = self.answer, self.output.stop
        if stop is not None:
            self.ended, answer.finish_reason, answer.stop_reason = True, "stop", stop
        elif output.finish == "error":
            kind = Unsatisfiable if output.refused else EngineError
            told = output.error or "the engine failed this request"
            self.ended, self.error = True, kind(f"{self.label}: {told}")
        elif output.finish is not None:
            self.ended = True
            answer.finish_reason = "length" if output.finish == "length" else "stop"
            if output.stop_token_id in self.sampling.stop_token_ids:
                answer.stop_reason = output.stop_token_id

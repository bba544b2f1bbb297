"""How an answer comes together from what steps give it, several tokens in one included."""

from __future__ import annotations

import pytest

from lmserve.bridge.assets import EOS_ID, byte_tokenizer
from lmserve.errors import EngineError, Unsatisfiable
from lmserve.messages import SequenceOutput, TokenLogprob, pack_ids
from lmserve.offline.answers import Growing
from lmserve.sampling import SamplingParams
from lmserve.text.output import OutputText
from lmserve.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(byte_tokenizer())


def growing(*stops: str, **sampling: object) -> Growing:
    output = OutputText(TOKENIZER.detokenizer(skip_special=True), stops)
    return Growing(4, "prompts[0]", [1, 2], SamplingParams(logprobs=0, **sampling), output)


def step(text: bytes, *more: int, **told: object) -> SequenceOutput:
    ids = [*text, *more]
    logprobs = [TokenLogprob(token, -float(token)) for token in ids]
    return SequenceOutput(4, pack_ids(ids), logprobs=logprobs, **told)


def test_a_stop_string_within_a_step_cuts_what_follows() -> None:
    one = growing("de")
    one.take(step(b"abc", num_cached_tokens=1), 0.5)
    assert (one.ended, one.answer.text) == (False, "abc")
    one.take(step(b"defg"), 0.75)
    answer = one.answer
    assert (one.ended, answer.text, answer.finish_reason) == (True, "abc", "stop")
    assert (answer.stop_reason, answer.num_cached_tokens) == ("de", 1)
    assert answer.token_ids == list(b"abcde")
    assert answer.token_times_s == [0.5] * 3 + [0.75] * 2
    assert answer.logprobs is not None
    assert [each.token_id for each in answer.logprobs] == answer.token_ids


def test_nothing_but_tokens_and_their_text() -> None:
    one = Growing(4, "prompts[0]", [1], SamplingParams(), growing().output)
    one.take(SequenceOutput(4, pack_ids([97]), num_cached_tokens=1), 0.5)
    one.take(SequenceOutput(4, pack_ids([98, 99])), 0.75)
    one.take(SequenceOutput(4, b""), 0.8)
    answer = one.answer
    assert (answer.text, answer.token_ids) == ("abc", [97, 98, 99])
    assert (answer.token_times_s, answer.num_cached_tokens) == ([0.5, 0.75, 0.75], 1)
    one.take(SequenceOutput(4, pack_ids([100]), finish="length"), 1.0)
    assert (one.ended, answer.text, answer.total_s) == (True, "abcd", 1.0)


def test_text_that_was_held_is_told_at_the_end() -> None:
    one = growing("bcd")
    one.take(step(b"ab"), 0.5)
    assert one.answer.text == "a"
    one.take(step(b"", EOS_ID, finish="stop", stop_token_id=EOS_ID), 0.6)
    assert (one.answer.text, one.answer.token_ids) == ("ab", [97, 98])
    assert (one.answer.finish_reason, one.answer.stop_reason) == ("stop", None)
    assert (one.answer.ttft_s, one.answer.total_s) == (0.5, 0.6)


def test_a_cut_character_is_told_as_such() -> None:
    one = growing()
    one.take(step("é".encode()[:1], finish="length"), 0.5)
    assert (one.answer.text, one.answer.finish_reason) == ("\N{REPLACEMENT CHARACTER}", "length")


@pytest.mark.parametrize(("refused", "kind"), [(True, Unsatisfiable), (False, EngineError)])
def test_a_failure_names_the_prompt(refused: bool, kind: type[Exception]) -> None:
    one = growing()
    one.take(SequenceOutput(4, b"", finish="error", error="no good", refused=refused), 0.5)
    assert one.ended and type(one.error) is kind
    assert str(one.error) == "prompts[0]: no good"

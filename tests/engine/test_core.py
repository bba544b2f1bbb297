from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from lmserve.engine.plan import StepPlan
from lmserve.messages import LOWEST, Begun, Control, Submit, pack_ids
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings
from tests.engine.paged import Bench, PagedRunner, chain, choose, oracle

BAD = 50  # the poison token: above those that the oracle chooses from


def poisonable(num_blocks: int, block_size: int) -> PagedRunner:
    return PagedRunner(num_blocks, block_size, vocab_size=51, poison=BAD)


def control(bench: Bench, verb: str) -> Any:
    (reply,) = bench.core.handle([Control(7, verb)])
    assert reply.id == 7
    assert reply.error is None
    return reply.value


def test_a_request_gets_the_oracles_answer() -> None:
    bench = Bench()
    answer = bench.submit(1, [1, 2, 3], max_tokens=20)
    bench.drain()
    expected = oracle([1, 2, 3], SamplingParams(max_tokens=20))
    assert (answer.ids, answer.finish) == (expected.ids, "length")


def test_many_in_a_pool_too_small_get_the_answers_they_get_alone() -> None:
    bench = Bench(PagedRunner(12, 2), EngineSettings(max_batch_size=6, max_step_tokens=7))
    prompts = [[5, 6, 7, 8, *range(rid)] for rid in range(8)]
    answers = [bench.submit(rid, p, max_tokens=8) for rid, p in enumerate(prompts)]
    bench.drain()
    assert bench.core.scheduler.num_preemptions > 0
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.ids == oracle(prompt, SamplingParams(max_tokens=8)).ids


def test_the_end_token_stops_and_is_told() -> None:
    eos = choose(chain([1, 2])[-1], 50)
    bench = Bench(PagedRunner(eos_ids=(eos,)))
    answer = bench.submit(1, [1, 2], max_tokens=20)
    bench.drain()
    assert (answer.ids, answer.finish, answer.stop_token_id) == ([eos], "stop", eos)


def test_ignore_eos_goes_on_but_a_stop_token_still_stops() -> None:
    first = choose(chain([1, 2])[-1], 50)
    second = choose(chain([1, 2, first])[-1], 50)
    assert first != second
    bench = Bench(PagedRunner(eos_ids=(first,)))
    answer = bench.submit(1, [1, 2], max_tokens=20, ignore_eos=True, stop_token_ids=(second,))
    bench.drain()
    assert (answer.ids, answer.stop_token_id) == ([first, second], second)


def test_below_min_tokens_end_and_stop_tokens_are_banned() -> None:
    bench = Bench(PagedRunner(eos_ids=(3,)))
    bench.submit(1, [1, 2], min_tokens=2, stop_token_ids=(9,), max_tokens=20)
    banned = []
    while bench.core.has_work() and len(banned) < 3:
        banned += [row.banned_ids for row in bench.step().rows]
    assert banned[:3] == [(3, 9), (3, 9), ()]
    bench.drain()


def test_an_answer_ends_where_the_context_ends() -> None:
    bench = Bench(PagedRunner(max_model_len=10))
    answer = bench.submit(1, [1, 2, 3, 4, 5, 6], max_tokens=20)
    bench.drain()
    assert (len(answer.ids), answer.finish) == (4, "length")


def test_the_context_is_no_longer_than_the_pool() -> None:
    bench = Bench(PagedRunner(3, 4))
    assert bench.info.max_model_len == 12
    answer = bench.submit(1, [1] * 11, max_tokens=20)
    bench.drain()
    assert (len(answer.ids), answer.finish) == (1, "length")


def test_cached_tokens_are_told_once_with_the_first_output() -> None:
    bench = Bench()
    bench.submit(1, list(range(10)), max_tokens=3)
    bench.drain()
    answer = bench.submit(2, list(range(10)), max_tokens=3)
    bench.drain()
    assert answer.num_cached_tokens == 9
    assert answer.ids == bench.answers[1].ids


def test_a_conversation_finds_all_of_its_last_turn_but_the_last_token() -> None:
    bench = Bench()
    first = bench.submit(1, list(range(10)), max_tokens=5)
    bench.drain()
    turn = [*range(10), *first.ids, 30, 31]
    second = bench.submit(2, turn, max_tokens=2)
    bench.drain()
    assert second.num_cached_tokens == 14  # the last token was never run
    assert second.ids == oracle(turn, SamplingParams(max_tokens=2)).ids


def test_an_aborted_request_hears_nothing_and_frees_its_blocks() -> None:
    bench = Bench(settings=EngineSettings(max_batch_size=1))
    running = bench.submit(1, [1, 2, 3], max_tokens=50)
    waiting = bench.submit(2, [1, 2, 3], max_tokens=50)
    refused = bench.submit(3, [])
    bench.abort(3)
    bench.step()
    bench.abort(1, 2, 99)
    assert not bench.core.has_work()
    assert (running.num_outputs, waiting.num_outputs, refused.num_outputs) == (1, 0, 0)
    assert bench.core.cache.counts().held == 0


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([], {}, "no tokens"),
        ([1, 50], {}, "token id 50 is not in the vocabulary"),
        ([-1], {}, "token id -1"),
        ([1], {"stop_token_ids": (50,)}, "token id 50"),
        ([1] * 100, {}, "100 tokens"),
        ([1] * 101, {"max_tokens": 0}, "101 tokens"),
        ([1], {"max_tokens": -1}, "max_tokens is -1"),
        ([1], {"logprobs": -1}, "logprobs is -1"),
        ([1], {"prompt_logprobs": -1}, "prompt_logprobs is -1"),
        ([1], {"prompt_logprobs_start": -2}, "prompt_logprobs_start is -2"),
        ([1], {"logit_bias": ((50, 1.0),)}, "token id 50"),
        ([1], {"logit_bias": ((5, math.nan),)}, "logit_bias of token 5 is nan"),
        ([1], {"allowed_token_ids": (3, 50)}, "token id 50"),
        ([1], {"bad_words": ((3, 50),)}, "token id 50"),
        ([1], {"bad_words": ((),)}, "a bad word has no tokens"),
    ],
)
def test_a_bad_submit_fails_alone_and_at_once(
    prompt: list[int], sampling: dict[str, Any], message: str
) -> None:
    bench = Bench()
    good = bench.submit(1, [1, 2], max_tokens=3)
    bad = bench.submit(2, prompt, **sampling)
    bench.step()
    assert bad.finish == "error"
    assert bad.error is not None and message in bad.error
    bench.drain()
    assert good.finish == "length"


def test_damaged_token_bytes_fail_their_request() -> None:
    bench = Bench()
    bench.core.handle([Submit(1, b"\x01\x02\x03", SamplingParams())])
    (output,) = bench.core.step().outputs
    assert (output.rid, output.finish) == (1, "error")
    assert not bench.core.has_work()


def test_an_id_in_use_is_refused_and_the_first_request_unharmed() -> None:
    bench = Bench()
    bench.submit(1, [1, 2], max_tokens=3)
    bench.core.handle([Submit(1, pack_ids([3]), SamplingParams())])
    outputs = bench.core.step().outputs
    assert [output.error for output in outputs] == ["request id 1 is in use", None]
    while bench.core.has_work():
        bench.core.step()
    assert bench.core.cache.counts().held == 0


def test_a_row_that_fails_fails_alone() -> None:
    bench = Bench()
    bench.runner.failing = {2}
    good = bench.submit(1, [1, 2], max_tokens=3)
    bad = bench.submit(2, [3, 4], max_tokens=3)
    bench.drain()
    assert (bad.finish, bad.error, bad.ids) == ("error", "injected", [])
    assert good.ids == oracle([1, 2], SamplingParams(max_tokens=3)).ids


@pytest.mark.parametrize("half_done", [False, True])
def test_a_step_that_raises_is_run_row_by_row(half_done: bool) -> None:
    bench = Bench()
    bench.submit(1, list(range(10)), max_tokens=2)
    bench.drain()
    bench.runner.raising, bench.runner.half_done = {3}, half_done
    good = bench.submit(2, [0, 1, 2, 3, 4, 5, 9], max_tokens=3)  # both copy on write
    bad = bench.submit(3, [0, 1, 2, 3, 4, 5, 8], max_tokens=3)
    bench.drain()
    assert (bad.finish, bad.error) == ("error", "RuntimeError: injected")
    assert good.num_cached_tokens == 6
    assert good.ids == oracle([0, 1, 2, 3, 4, 5, 9], SamplingParams(max_tokens=3)).ids


def test_what_a_failed_request_computed_is_not_reused() -> None:
    bench = Bench()
    bench.runner.failing = {1}
    bench.submit(1, list(range(10)), max_tokens=2)
    bench.drain()
    assert bench.core.cache.counts().cached == 0


def test_a_chunk_that_does_not_sample_fails_its_request_at_once() -> None:
    bench = Bench(poisonable(12, 4), EngineSettings(max_step_tokens=8))
    bad = bench.submit(1, [BAD] * 30, max_tokens=2)
    plan = bench.step()
    assert plan.rows[0].sampling is None
    assert (bad.finish, bad.error) == ("error", "poisoned")
    bench.runner.raising = {2}  # and its blocks stay suspect until a step has zeroed them
    bench.submit(2, [1, 2, 3], max_tokens=2)
    bench.drain()
    for rid in range(3, 9):
        good = bench.submit(rid, [1, 2, 3, rid, 5], max_tokens=9)
        bench.drain()
        assert good.finish == "length"
    assert bench.core.cache.pool.suspect == set()


@pytest.mark.parametrize("half_done", [False, True])
def test_suspect_blocks_are_zeroed_where_a_step_is_run_row_by_row(half_done: bool) -> None:
    bench = Bench(poisonable(6, 2))
    bench.submit(1, [BAD] * 11, max_tokens=1)
    bench.drain()
    bench.runner.raising, bench.runner.half_done = {3}, half_done
    good = bench.submit(2, [1, 2, 3], max_tokens=2)
    bad = bench.submit(3, [4, 5], max_tokens=2)
    bench.drain()
    assert good.ids == oracle([1, 2, 3], SamplingParams(max_tokens=2)).ids
    assert bad.finish == "error"
    again = bench.submit(4, [4] * 9, max_tokens=2)
    bench.drain()
    assert again.finish == "length"


def test_who_shares_a_block_with_one_that_fails_gets_its_answer() -> None:
    bench = Bench(poisonable(16, 2), EngineSettings(max_step_tokens=8))
    text = [1, 2, 3, 4, 5, 6]
    bench.submit(1, text, max_tokens=1)
    bench.drain()
    good = bench.submit(2, [*text, 8], max_tokens=9)
    bad = bench.submit(3, [*text, 9, BAD, 9], max_tokens=9)
    bench.step()
    assert (bad.finish, good.num_cached_tokens) == ("error", 6)
    later = bench.submit(4, [*text, 8, 8], max_tokens=9)
    bench.drain()
    assert later.num_cached_tokens == 0
    for answer, tail in ((good, [8]), (later, [8, 8])):
        assert answer.ids == oracle([*text, *tail], SamplingParams(max_tokens=9)).ids


def test_a_row_without_a_token_is_an_error_not_a_hang() -> None:
    class Mute(PagedRunner):
        def sample(self, *args: Any) -> Any:
            result = super().sample(*args)
            result.tokens.clear()
            return result

    bench = Bench(Mute())
    answer = bench.submit(1, [1], max_tokens=2)
    bench.drain()
    assert (answer.finish, answer.error) == ("error", "the runner chose no token")


def test_controls_answer_with_plain_data() -> None:
    bench = Bench()
    bench.submit(1, list(range(10)), max_tokens=3)
    bench.drain()
    counts = control(bench, "check")
    assert counts == {"free": 61, "cached": 3, "pinned": 0, "held": 0, "total": 64}
    stats = control(bench, "stats")
    assert (stats["steps"], stats["blocks_cached"], stats["prefix_queries"]) == (3, 3, 10)
    assert control(bench, "clear_cache") == {"blocks_freed": 3}
    assert control(bench, "check")["free"] == 64


def test_an_unknown_control_is_answered_with_an_error() -> None:
    (reply,) = Bench().core.handle([Control(1, "dance")])
    assert reply.error is not None and "dance" in reply.error


def test_check_tells_of_a_corrupt_pool() -> None:
    bench = Bench()
    bench.core.cache.pool.num_held += 1
    (reply,) = bench.core.handle([Control(1, "check")])
    assert reply.error is not None and reply.error.startswith("IntegrityError")


def test_stats_follow_the_step() -> None:
    bench = Bench(settings=EngineSettings(max_batch_size=1, max_step_tokens=4))
    bench.submit(1, list(range(6)), max_tokens=3)
    bench.submit(2, [9], max_tokens=3)
    stats = bench.core.step().stats
    assert (stats.num_running, stats.num_waiting, stats.step_tokens) == (1, 1, 4)
    assert (stats.blocks_held, stats.blocks_free, stats.blocks_total) == (2, 62, 64)


def test_the_first_output_alone_tells_how_long_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("lmserve.engine.core.perf_counter", lambda: float(next(clock)))
    bench = Bench(settings=EngineSettings(max_batch_size=1))
    for rid in (1, 2):
        bench.core.handle([Submit(rid, pack_ids([5]), SamplingParams(max_tokens=2))])
    outputs = [output for _ in range(4) for output in bench.core.step().outputs]
    # the clock is read once a submit, and at the start of each step
    assert [(o.rid, o.queue_s) for o in outputs] == [(1, 2.0), (1, None), (2, 3.0), (2, None)]


def test_the_first_part_of_a_prompt_tells_that_it_runs() -> None:
    bench = Bench(settings=EngineSettings(max_step_tokens=4))
    bench.core.handle([Submit(1, pack_ids(range(10)), SamplingParams(max_tokens=2))])
    steps = [bench.core.step().outputs for _ in range(4)]
    assert [len(outputs) for outputs in steps] == [1, 0, 1, 1]
    first, token = steps[0][0], steps[2][0]
    assert (first.token_ids, first.finish) == (b"", None)
    assert first.queue_s is not None
    assert (len(token.token_ids), token.queue_s) == (4, None)


def test_who_begins_is_told_before_the_step_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(settings=EngineSettings(max_batch_size=2))
    order: list[Any] = []
    compute = bench.runner.compute

    def noted(plan: StepPlan) -> dict[int, list[int]]:
        order.append([row.rid for row in plan.rows])
        return compute(plan)

    monkeypatch.setattr(bench.core, "tell", order.extend)
    monkeypatch.setattr(bench.runner, "compute", noted)
    for rid in (1, 2, 3):
        bench.submit(rid, [5], max_tokens=2)
    bench.drain()
    assert order == [Begun([1, 2]), [1, 2], [1, 2], Begun([3]), [3], [3]]


# --- more than tokens ------------------------------------------------------------------------


def test_of_no_tokens_the_prompt_alone_is_run() -> None:
    bench = Bench(PagedRunner(30, 4), EngineSettings(max_step_tokens=8))
    prompt = [i % 50 for i in range(100)]  # the whole context
    answer = bench.submit(1, prompt, max_tokens=0, prompt_logprobs=0)
    bench.drain()
    assert (answer.ids, answer.finish) == ([], "length")
    assert answer == replace(
        oracle(prompt, SamplingParams(max_tokens=0, prompt_logprobs=0)),
        num_outputs=13,
        num_cached_tokens=0,
    )
    again = bench.submit(2, prompt, max_tokens=0)
    bench.drain()
    assert (again.finish, again.num_cached_tokens) == ("length", 99)


@pytest.mark.parametrize("start", [0, 1, 5, 6, 19, 20, 21, 99])
def test_a_prompts_log_probabilities_begin_where_they_are_wanted(start: int) -> None:
    bench = Bench(settings=EngineSettings(max_step_tokens=6))
    prompt = [i % 7 for i in range(20)]
    bench.submit(1, prompt, max_tokens=1)
    bench.drain()
    sampling = {"max_tokens": 2, "prompt_logprobs": 0, "prompt_logprobs_start": start}
    answer = bench.submit(2, prompt, **sampling)
    bench.drain()
    expected = oracle(prompt, SamplingParams(**sampling))
    assert (answer.ids, answer.prompt_logprobs) == (expected.ids, expected.prompt_logprobs)
    assert answer.num_cached_tokens == min(max(start, 1) - 1, 19)  # all before is taken


def test_what_was_told_before_a_preemption_is_not_run_again() -> None:
    bench = Bench(PagedRunner(12, 2), EngineSettings(max_step_tokens=8))
    prompt = list(range(16))
    asked = {"max_tokens": 3, "prompt_logprobs": 0, "logprobs": 0, "tell_progress": True}
    answer = bench.submit(1, prompt, **asked)
    bench.step()
    bench.core.scheduler._preempt(bench.core.scheduler.running[1])
    plan = bench.step()
    assert plan.rows[0].start == 8
    bench.drain()
    expected = oracle(prompt, SamplingParams(**asked))
    for name in ("ids", "logprobs", "prompt_logprobs", "num_prompt_run"):
        assert getattr(answer, name) == getattr(expected, name)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_is_the_same_in_chunks_and_after_others(pooling: str) -> None:
    bench = Bench(settings=EngineSettings(max_step_tokens=6))
    prompt = list(range(20))
    bench.submit(1, prompt, max_tokens=3)
    bench.drain()
    answer = bench.submit(2, prompt, pooling=pooling, max_tokens=9)
    bench.step()
    bench.update(2, pooling=pooling, max_tokens=1)  # changes nothing: no token is chosen
    bench.drain()
    expected = oracle(prompt, SamplingParams(pooling=pooling))
    assert (answer.ids, answer.finish, answer.embedding) == ([], "stop", expected.embedding)


def test_progress_is_told_chunk_by_chunk() -> None:
    bench = Bench(settings=EngineSettings(max_step_tokens=8))
    bench.submit(1, list(range(20)), max_tokens=1)
    bench.drain()
    told = []
    bench.core.handle(
        [Submit(2, pack_ids([*range(20), *range(20)]), SamplingParams(tell_progress=True))]
    )
    for _ in range(4):
        told += [output.num_prompt_run for output in bench.core.step().outputs]
    assert told == [28, 36, 40, None]


def test_settings_that_cannot_be_run_end_an_answer_when_they_come() -> None:
    bench = Bench()
    bad, good = bench.submit(1, [1, 2], max_tokens=9), bench.submit(2, [1, 2], max_tokens=9)
    bench.step()
    bench.update(1, max_tokens=9, allowed_token_ids=(50,))
    bench.drain()
    assert (bad.finish, bad.error) == ("error", "token id 50 is not in the vocabulary (0 to 49)")
    assert good.finish == "length"


# --- changed while it runs ------------------------------------------------------------------


def test_an_answer_made_longer_is_the_longer_answer() -> None:
    bench = Bench(PagedRunner(8, 4, max_model_len=32))
    answer = bench.submit(1, [1, 2, 3], max_tokens=4)
    bench.step()
    bench.update(1, max_tokens=10**6)
    bench.drain()
    expected = oracle([1, 2, 3], SamplingParams(max_tokens=29), max_model_len=32)
    assert (answer.ids, answer.finish) == (expected.ids, "length")


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_an_answer_that_is_too_long_already_ends_at_once(max_tokens: int) -> None:
    bench = Bench()
    answer = bench.submit(1, [1, 2, 3], max_tokens=50)
    other = bench.submit(2, [1, 2, 3], max_tokens=6)
    for _ in range(3):
        bench.step()
    bench.update(1, max_tokens=max_tokens)
    assert bench.core.has_work()
    bench.step()
    assert (len(answer.ids), answer.finish) == (3, "length")
    bench.drain()
    assert other.ids == oracle([1, 2, 3], SamplingParams(max_tokens=6)).ids


def test_one_that_waits_is_changed_too_and_one_that_is_gone_is_not() -> None:
    bench = Bench(settings=EngineSettings(max_batch_size=1))
    first = bench.submit(1, [1, 2, 3], max_tokens=3)
    second = bench.submit(2, [4], max_tokens=50)
    bench.step()
    bench.update(2, max_tokens=2)
    bench.update(99, max_tokens=2)
    bench.drain()
    assert (len(first.ids), len(second.ids), second.finish) == (3, 2, "length")


def test_the_next_row_samples_with_the_new_settings() -> None:
    bench = Bench()
    bench.submit(1, [1, 2, 3], max_tokens=9, temperature=1.0)
    bench.step()
    bench.update(1, max_tokens=9, temperature=0.25)
    (row,) = bench.step().rows
    assert row.sampling is not None
    assert row.sampling.temperature == 0.25


def test_a_draft_without_room_is_told_abort() -> None:
    bench = Bench(PagedRunner(4, 2, max_model_len=8))
    bench.submit(1, [1, 2, 3, 4, 5, 6], max_tokens=1)
    bench.drain()
    bench.core.cache.pin([1, 2, 3, 4, 5, 6])
    answer = bench.submit(2, [9, 8, 7, 6, 5], LOWEST, max_tokens=1)
    bench.drain()
    assert (answer.ids, answer.finish) == ([], "abort")
    again = bench.submit(3, [1, 2, 3, 4, 5, 6, 7], LOWEST, max_tokens=1)
    bench.drain()
    assert (again.finish, again.num_cached_tokens) == ("length", 6)


def test_planning_needs_no_torch() -> None:
    code = "import sys, lmserve.engine.core; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

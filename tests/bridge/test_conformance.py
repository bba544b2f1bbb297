"""What every engine does, whatever it is made of."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import pytest

from lmserve.errors import EngineError, EngineUnavailable
from lmserve.messages import EngineStats, pack_ids
from lmserve.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bridge.conftest import Bench


async def test_an_answer_ends_exactly_once(bench: Bench) -> None:
    mailbox = bench.ask(7, max_tokens=5)
    token_ids, last = await bench.read(mailbox)
    assert len(token_ids) == 5
    assert (last.finish, last.error, last.died) == ("length", None, False)
    await bench.engine.control("ping")
    with pytest.raises(AssertionError, match="read already"):
        await mailbox.get()


async def test_ready_tells_what_the_engine_knows(bench: Bench) -> None:
    info = await bench.engine.wait_ready()
    assert info is bench.engine.info
    assert info.vocab_size > 0
    assert bench.engine.health().ok


async def test_not_ready_is_unavailable(make_bench: Callable[..., Bench], kind: str) -> None:
    bench = make_bench(kind)
    with pytest.raises(EngineUnavailable, match="not ready"):
        bench.ask()
    with pytest.raises(EngineUnavailable):
        await bench.engine.control("ping")
    assert bench.engine.info is None
    assert not bench.engine.health().ok


async def test_abort_before_the_engine_knows_of_it(bench: Bench) -> None:
    mailbox = bench.ask(1, max_tokens=bench.FOREVER)
    bench.engine.abort(mailbox)
    assert (await bench.read(mailbox))[1].finish == "abort"


async def test_abort_before_the_first_token(bench: Bench) -> None:
    mailbox = bench.ask_and_wait()
    await bench.engine.control("ping")
    bench.engine.abort(mailbox)
    assert (await bench.read(mailbox))[1].finish == "abort"


async def test_abort_in_the_middle(bench: Bench) -> None:
    mailbox = bench.ask(1, max_tokens=bench.FOREVER)
    first = await mailbox.get()
    assert first.token_ids
    assert first.finish is None
    bench.engine.abort(mailbox)
    assert mailbox.finished
    assert (await bench.read(mailbox))[1].finish == "abort"


async def test_abort_after_the_end_and_twice(bench: Bench) -> None:
    ended = bench.ask(1, max_tokens=1)
    assert (await bench.read(ended))[1].finish == "length"
    running = bench.ask(1, max_tokens=bench.FOREVER)
    for mailbox in (ended, running, running, ended):
        bench.engine.abort(mailbox)
    assert (await bench.read(running))[1].finish == "abort"
    assert len((await bench.read(bench.ask(1, max_tokens=3)))[0]) == 3


async def test_the_engine_forgets_what_is_aborted(bench: Bench) -> None:
    mailboxes = [bench.ask(i, max_tokens=bench.FOREVER) for i in range(8)]
    await asyncio.gather(*(mailbox.get() for mailbox in mailboxes))
    for mailbox in mailboxes:
        bench.engine.abort(mailbox)
    assert (await bench.engine.control("stats"))["num_running"] == 0


async def test_an_answer_is_made_shorter_and_longer(bench: Bench) -> None:
    mailbox = bench.ask(1, max_tokens=bench.FOREVER)
    num_seen = len((await mailbox.get()).token_ids)
    bench.engine.update(mailbox, SamplingParams(max_tokens=bench.FOREVER - 1))
    assert (await mailbox.get()).finish is None
    most = num_seen + 100_000
    bench.engine.update(mailbox, SamplingParams(max_tokens=most))
    bench.engine.update(mailbox, SamplingParams(max_tokens=1))  # it has said more
    token_ids, last = await bench.read(mailbox)
    assert last.finish == "length"
    assert len(token_ids) < most
    short = bench.ask(1, max_tokens=2)
    bench.engine.update(short, SamplingParams(max_tokens=20))
    assert len((await bench.read(short))[0]) == 20


async def test_an_update_goes_on_where_the_answer_was(bench: Bench) -> None:
    changed, twin = bench.ask(5, max_tokens=300), bench.ask(5, max_tokens=300)
    changed.listener = lambda: bench.engine.update(changed, SamplingParams(max_tokens=300))
    token_ids, _ = await bench.read(twin)
    assert changed.take().token_ids == token_ids


async def test_an_update_of_what_has_ended_harms_nobody(bench: Bench) -> None:
    ended, aborted = bench.ask(1, max_tokens=1), bench.ask(1, max_tokens=bench.FOREVER)
    await bench.read(ended)
    bench.engine.abort(aborted)
    for mailbox in (ended, aborted):
        bench.engine.update(mailbox, SamplingParams(max_tokens=9))
    assert len((await bench.read(bench.ask(1, max_tokens=3)))[0]) == 3
    assert (await bench.read(aborted))[1].finish == "abort"


async def test_it_is_told_once_that_a_request_has_begun(bench: Bench) -> None:
    told: list[bool] = []
    runs, waits = bench.ask(1, max_tokens=5), bench.ask_and_wait()
    runs.on_begun = waits.on_begun = told.append
    await bench.read(runs)
    assert told == [True]
    bench.engine.abort(waits)
    assert told == [True, False]


async def test_a_slow_reader_finds_steps_merged(bench: Bench) -> None:
    slow, after = bench.ask(1, max_tokens=50), bench.ask(1, max_tokens=60)
    await bench.read(after)
    delivery = await slow.get()
    assert delivery.finish == "length"
    assert len(delivery.token_ids) == 50


async def test_many_at_once_keep_apart(bench: Bench) -> None:
    mailboxes = [bench.ask(i, max_tokens=1 + i % 7) for i in range(300)]
    answers = await asyncio.gather(*(bench.read(mailbox) for mailbox in mailboxes))
    assert [len(token_ids) for token_ids, _ in answers] == [1 + i % 7 for i in range(300)]
    if bench.kind != "fake":
        assert all(
            token_ids == list(range(i, i + 1 + i % 7)) for i, (token_ids, _) in enumerate(answers)
        )


async def test_a_failure_harms_no_other(bench: Bench) -> None:
    before = bench.ask(1, max_tokens=20)
    failing = bench.ask_and_fail()
    after = bench.ask(2, max_tokens=20)
    _, last = await bench.read(failing)
    assert (last.finish, last.error, last.died) == ("error", "out of luck", False)
    for mailbox in (before, after):
        token_ids, last = await bench.read(mailbox)
        assert (len(token_ids), last.finish) == (20, "length")


async def test_control(bench: Bench) -> None:
    assert await bench.engine.control("ping") == "pong"
    await bench.engine.control("check")
    with pytest.raises(EngineError, match="'sing'"):
        await bench.engine.control("sing")


async def test_controls_take_arguments(bench: Bench) -> None:
    ids, path = pack_ids([1, 2, 3]), "nowhere.kv"
    control = bench.engine.control
    nothing = {"num_tokens": 0, "num_blocks": 0, "pinned_blocks": 0}
    assert await control("pin", key="a", token_ids=ids) == nothing
    assert await control("unpin", key="a") == {"pinned_blocks": 0}
    assert await control("restore", token_ids=ids, path=path) == {"num_tokens": 0, "num_known": 0}
    with pytest.raises(EngineError, match="'colour'"):
        await control("pin", key="a", token_ids=ids, colour="red")


async def test_a_control_that_takes_time_wakes_a_waiting_engine(bench: Bench) -> None:
    for num_tokens in (1, 0, 5):
        reply = await bench.engine.control(
            "save", timeout_s=50, token_ids=pack_ids([3] * num_tokens), path="nowhere.kv"
        )
        assert reply["num_tokens"] == 0
        if bench.kind != "fake":
            assert reply["num_bytes"] == 4 * num_tokens
    asked = [
        bench.engine.control("save", timeout_s=50, token_ids=b"", path="nowhere.kv")
        for _ in range(20)
    ]
    assert len(await asyncio.gather(*asked)) == 20


async def test_control_during_a_stream(bench: Bench) -> None:
    mailbox = bench.ask(1, max_tokens=bench.FOREVER)
    await mailbox.get()
    assert await bench.engine.control("ping") == "pong"
    bench.engine.abort(mailbox)


async def test_close_ends_open_mailboxes(bench: Bench) -> None:
    mailboxes = [bench.ask(1, max_tokens=bench.FOREVER), bench.ask_and_wait()]
    await mailboxes[0].get()
    await bench.engine.close()
    for mailbox in mailboxes:
        assert (await bench.read(mailbox))[1].finish == "abort"
    assert bench.engine.health().state == "closed"
    with pytest.raises(EngineUnavailable):
        bench.ask()
    with pytest.raises(EngineUnavailable):
        await bench.engine.wait_ready()
    await bench.engine.close()


async def test_sleep_ends_open_requests_and_wake_serves_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    engine = bench.engine
    mailboxes = [bench.ask(1, max_tokens=bench.FOREVER), bench.ask_and_wait()]
    await mailboxes[0].get()
    await engine.sleep()
    for mailbox in mailboxes:
        assert (await bench.read(mailbox))[1].finish == "abort"
    assert (engine.health().state, engine.health().reason) == ("sleeping", "asleep: POST /wakeup")
    assert engine.info is None
    assert engine.stats.num_running == 0
    with pytest.raises(EngineUnavailable, match="asleep: POST /wakeup"):
        bench.ask()
    with pytest.raises(EngineUnavailable, match="asleep: POST /wakeup"):
        await engine.control("ping")
    await engine.sleep()
    await engine.wake()
    assert engine.health().ok
    await engine.wake()  # it is awake
    assert (await bench.read(bench.ask(1, max_tokens=3)))[1].finish == "length"
    assert not caplog.records  # nothing died


async def test_the_last_of_sleep_and_wake_wins(bench: Bench) -> None:
    engine = bench.engine

    async def first() -> None:
        with pytest.raises(EngineUnavailable):  # put to sleep again
            await engine.wake()

    sleeping = asyncio.create_task(engine.sleep())
    await asyncio.sleep(0)
    waking = asyncio.create_task(first() if bench.kind != "fake" else engine.wake())
    await asyncio.sleep(0)
    await asyncio.gather(engine.sleep(), sleeping, waking)
    assert engine.health().state == "sleeping"
    await asyncio.gather(engine.wake(), engine.wake())
    assert (await bench.read(bench.ask(1, max_tokens=3)))[1].finish == "length"


async def test_close_wins_over_sleep_and_wake(bench: Bench) -> None:
    engine = bench.engine
    await engine.sleep()
    waking = asyncio.create_task(engine.wake())
    await asyncio.sleep(0)
    await asyncio.gather(engine.close(), engine.close())
    await asyncio.wait((waking,))
    assert isinstance(waking.exception(), EngineUnavailable) or bench.kind == "fake"
    assert engine.health().state == "closed"
    with pytest.raises(EngineUnavailable, match="closed"):
        await engine.sleep()
    with pytest.raises(EngineUnavailable, match="closed"):
        await engine.wake()
    assert engine.health().state == "closed"


async def test_who_waits_for_a_sleeping_engine_waits_for_its_wake(bench: Bench) -> None:
    await bench.engine.sleep()
    waiting = asyncio.create_task(bench.engine.wait_ready())
    await asyncio.sleep(0)
    await bench.engine.wake()
    assert await waiting is bench.engine.info


async def test_an_abort_from_inside_a_listener_harms_no_neighbour(bench: Bench) -> None:
    before, stopped, ended, after = [
        bench.ask(i, max_tokens=max_tokens) for i, max_tokens in enumerate((30, 10**9, 5, 30), 1)
    ]
    heard = 0

    def on_stopped() -> None:
        nonlocal heard
        heard += 1
        if heard == 3:
            for mailbox in (stopped, ended):  # itself, and one with an output in this step
                bench.engine.abort(mailbox)

    stopped.listener = on_stopped
    for mailbox in (before, after):
        token_ids, last = await bench.read(mailbox)
        assert (len(token_ids), last.finish) == (30, "length")
    assert stopped.take().finish == "abort"
    assert (await bench.read(ended))[1].finish in ("abort", "length")


async def test_a_listener_may_abort_in_its_last_step(bench: Bench) -> None:
    ending, neighbour = bench.ask(1, max_tokens=2), bench.ask(2, max_tokens=30)
    ending.listener = lambda: bench.engine.abort(ending) if ending.finished else None
    assert len((await bench.read(neighbour))[0]) == 30
    assert ending.take().finish == "length"


async def test_a_reader_that_fails_harms_no_neighbour(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: bool) -> None:
        raise ValueError("a bug of this reader")

    failing, neighbour = bench.ask(1, max_tokens=2), bench.ask(2, max_tokens=30)
    failing.listener = failing.on_begun = fail
    info = bench.engine.info
    with caplog.at_level(logging.ERROR):
        assert len((await bench.read(neighbour))[0]) == 30
    assert caplog.text.count("a bug of this reader") >= 3  # it begins, and two tokens
    assert failing.take().finish == "length"
    assert bench.engine.info is info
    assert bench.engine.health().ok


async def test_close_ends_each_mailbox_though_a_reader_fails(bench: Bench) -> None:
    def fail() -> None:
        raise ValueError("a bug of this reader")

    mailboxes = [bench.ask_and_wait() for _ in range(3)]
    for mailbox in mailboxes:
        mailbox.listener = fail
    await bench.engine.close()
    assert [mailbox.take().finish for mailbox in mailboxes] == ["abort"] * 3


async def test_each_step_is_told_before_its_outputs(bench: Bench) -> None:
    told: list[int] = []
    sent = [time.monotonic()]
    seen: list[tuple[int, int]] = []

    def on_step(stats: EngineStats) -> None:
        told.append(stats.steps)
        sent.append(stats.sent_s)

    bench.engine.on_step = on_step
    mailbox = bench.ask(1, max_tokens=4)
    mailbox.listener = lambda: seen.append((told[-1], bench.engine.stats.steps))
    await bench.read(bench.ask(1, max_tokens=6))
    assert len(seen) == 4
    assert all(step == now for step, now in seen)
    assert told == sorted(set(told))
    sent.append(time.monotonic())
    assert sent == sorted(sent)


async def test_each_chosen_token_has_its_log_probability(bench: Bench) -> None:
    asked, plain = bench.ask(7, max_tokens=5, logprobs=3), bench.ask(7, max_tokens=5)
    await bench.read(plain)
    delivery = await asked.get()  # all steps in one
    assert delivery.logprobs is not None
    assert [each.token_id for each in delivery.logprobs] == delivery.token_ids
    for each in delivery.logprobs:
        assert len(each.top_ids) == len(each.top_logprobs) == 3
        assert 0 > each.top_logprobs[0] >= each.logprob
    chosen_only = await bench.ask(7, max_tokens=1, logprobs=0).get()
    assert chosen_only.logprobs is not None
    assert chosen_only.logprobs[0].top_ids == []


async def test_log_probabilities_and_tokens_arrive_together(bench: Bench) -> None:
    mailbox = bench.ask(1, max_tokens=40, logprobs=0)
    num_seen = 0
    while True:
        delivery = await mailbox.get()
        num_seen += len(delivery.token_ids)
        assert [each.token_id for each in delivery.logprobs or []] == delivery.token_ids
        if delivery.finish is not None:
            break
    assert num_seen == 40


async def test_only_who_asks_gets_more_than_tokens(bench: Bench) -> None:
    delivery = await bench.ask(1, 2, 3, max_tokens=1).get()
    told = (delivery.logprobs, delivery.prompt_logprobs, delivery.num_prompt_run)
    assert (*told, delivery.embedding) == (None, None, None, None)


@pytest.mark.parametrize("start", [0, 1, 2, 4])
async def test_a_prompt_has_log_probabilities_from_its_start(bench: Bench, start: int) -> None:
    prompt = (5, 6, 7, 8)
    mailbox = bench.ask(*prompt, max_tokens=2, prompt_logprobs=2, prompt_logprobs_start=start)
    told: list[int] = []
    while True:
        delivery = await mailbox.get()
        told += [each.token_id for each in delivery.prompt_logprobs or []]
        if delivery.finish is not None:
            break
    assert told == list(prompt[max(1, start) :])  # nothing comes before the very first


async def test_a_prompt_may_be_all_that_is_run(bench: Bench) -> None:
    token_ids, last = await bench.read(bench.ask(1, 2, 3, max_tokens=0))
    assert (token_ids, last.finish, last.error) == ([], "length", None)
    delivery = await bench.ask(1, 2, 3, max_tokens=0, prompt_logprobs=0).get()
    assert [each.token_id for each in delivery.prompt_logprobs or []] == [2, 3]


@pytest.mark.parametrize("pooling", ["mean", "last"])
async def test_an_embedding_is_all_of_an_answer(bench: Bench, pooling: str) -> None:
    token_ids, last = await bench.read(bench.ask(1, 2, 3, pooling=pooling))
    assert (token_ids, last.finish) == ([], "stop")
    assert last.embedding is not None
    assert len(memoryview(last.embedding).cast("f")) > 0


async def test_progress_ends_with_the_whole_prompt(bench: Bench) -> None:
    prompt = [3] * 600
    mailbox = bench.ask(*prompt, max_tokens=2, tell_progress=True)
    told: list[int] = []
    while True:
        delivery = await mailbox.get()
        if delivery.num_prompt_run is not None:
            told.append(delivery.num_prompt_run)
        if delivery.finish is not None:
            break
    assert told == sorted(set(told))
    assert told[-1] == 600


@pytest.fixture(params=["child", "thread", "fake"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind

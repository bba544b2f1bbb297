"""The fake tells the stories it is given, and mocks when it has none."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer

from lmserve.bridge import assets
from lmserve.bridge.fake import FakeEngine
from lmserve.errors import EngineUnavailable
from lmserve.messages import EngineStats, unpack_ids
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lmserve.bridge.mailbox import Mailbox


@pytest.fixture
async def fake() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(EngineSettings(engine="mock", session_len=100))
    await engine.start()
    yield engine
    await engine.close()


def ask(fake: FakeEngine, max_tokens: int = 50) -> Mailbox:
    return fake.submit([1, 2], SamplingParams(max_tokens=max_tokens))


async def test_it_says_one_piece_a_step(fake: FakeEngine) -> None:
    fake.will_say("Hel", "lo")
    mailbox = ask(fake)
    assert (await mailbox.get()).token_ids == list(b"Hel")
    last = await mailbox.get()
    assert last.token_ids == [*b"lo", assets.EOS_ID]
    assert (last.finish, last.stop_token_id) == ("stop", assets.EOS_ID)


async def test_scripts_are_for_requests_in_turn(fake: FakeEngine) -> None:
    fake.will_say([300, 301], finish="length").will_fail("out of luck", "so far")
    first, second = ask(fake), ask(fake)
    said = await first.get()
    assert (said.token_ids, said.finish) == ([300, 301], "length")
    assert (await second.get()).token_ids == list(b"so far")
    assert (await second.get()).error == "out of luck"
    assert [submit.rid for submit in fake.submits] == [first.rid, second.rid]
    assert unpack_ids(fake.submits[0].token_ids) == [1, 2]


async def test_max_tokens_cuts_a_script(fake: FakeEngine) -> None:
    fake.will_say("Hel", "lo, you")
    mailbox = ask(fake, max_tokens=5)
    await mailbox.get()
    last = await mailbox.get()
    assert (last.token_ids, last.finish) == (list(b"lo"), "length")


async def test_hanging_requests_wait_for_their_abort(fake: FakeEngine) -> None:
    fake.will_hang("Hel")
    mailbox = ask(fake)
    await mailbox.get()
    assert not mailbox.finished
    fake.abort(mailbox)
    fake.abort(mailbox)
    assert (await mailbox.get()).finish == "abort"
    assert fake.aborts == [mailbox.rid]


async def test_a_hanging_engine_is_stuck_until_it_resumes(fake: FakeEngine) -> None:
    mailbox = ask(fake, max_tokens=1)
    fake.hang()
    assert fake.health().state == "stuck"
    later = ask(fake, max_tokens=1)
    with pytest.raises(EngineUnavailable):
        await fake.control("ping")
    fake.resume()
    assert (await mailbox.get()).finish == "length"
    assert (await later.get()).finish == "length"


async def test_death_is_told_once_and_survived(fake: FakeEngine) -> None:
    mailbox = ask(fake)
    fake.die()
    last = await mailbox.get()
    assert (last.finish, last.died) == ("error", True)
    assert fake.info is None
    with pytest.raises(EngineUnavailable, match="restarting"):
        ask(fake)
    fake.resume()
    assert (await ask(fake, max_tokens=1).get()).finish == "length"


async def test_its_tokenizer_speaks_bytes_and_words(fake: FakeEngine) -> None:
    assert fake.info is not None
    tokenizer = Tokenizer.from_file(fake.info.tokenizer_file)
    assert tokenizer.get_vocab_size() == fake.info.vocab_size
    text = "<|im_start|>user\nnaïve 🦆\x00<|im_end|>"
    ids = tokenizer.encode(text).ids
    assert ids == [256, *"user\nnaïve 🦆\x00".encode(), assets.EOS_ID]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == "user\nnaïve 🦆\x00"
    said = await ask(fake, max_tokens=1).get()
    assert tokenizer.decode(said.token_ids) == " time"


async def test_a_slow_mock_keeps_its_pace() -> None:
    fake = FakeEngine(EngineSettings(engine="mock", mock_tokens_s=200.0), record=False)
    await fake.start()
    mailbox = ask(fake, max_tokens=3)
    assert [len((await mailbox.get()).token_ids) for _ in range(3)] == [1, 1, 1]
    assert fake.submits == []
    await fake.close()


async def test_a_loop_that_is_late_does_not_slow_the_pace() -> None:
    fake = FakeEngine(EngineSettings(engine="mock", mock_tokens_s=500.0), record=False)
    await fake.start()
    due: list[float] = []

    def on_step(stats: EngineStats) -> None:
        due.append(stats.sent_s)
        if len(due) == 1:
            time.sleep(0.01)  # the loop is held up

    fake.on_step = on_step
    mailbox = ask(fake, max_tokens=4)
    while not mailbox.finished:
        await mailbox.get()
    assert [round(later - due[0], 6) for later in due] == [0.0, 0.002, 0.004, 0.006]
    await fake.close()


async def test_a_long_prompt_is_told_of_in_pieces(fake: FakeEngine) -> None:
    asked = SamplingParams(max_tokens=3, tell_progress=True, prompt_logprobs=1, logprobs=2)
    mailbox = fake.submit(list(range(300)), asked)
    first, second = await mailbox.get(), await mailbox.get()
    assert (first.token_ids, first.num_prompt_run, len(first.prompt_logprobs or [])) == (
        [],
        256,
        255,
    )
    assert (len(second.token_ids), second.num_prompt_run) == (1, 300)
    assert [each.token_id for each in second.prompt_logprobs or []] == list(range(256, 300))
    fake.update(mailbox, SamplingParams(max_tokens=2, tell_progress=True, logprobs=2))
    third = await mailbox.get()
    assert (len(third.token_ids), third.num_prompt_run, third.finish) == (1, None, "length")


async def test_what_it_invents_follows_from_the_tokens(fake: FakeEngine) -> None:
    asked = SamplingParams(max_tokens=9, logprobs=4)
    one, other = [await fake.submit(prompt, asked).get() for prompt in ([1], [2])]
    assert one.logprobs == other.logprobs
    pooled = SamplingParams(pooling="mean")
    embeddings = [(await fake.submit(p, pooled).get()).embedding for p in ([1, 2], [2, 1], [3])]
    assert embeddings[0] == embeddings[1] != embeddings[2]


async def test_a_script_is_told_whatever_was_asked(fake: FakeEngine) -> None:
    fake.will_fail("out of luck").will_say("Hi")
    failed = await fake.submit([1], SamplingParams(pooling="last")).get()
    assert failed.error == "out of luck"
    said = await fake.submit([1], SamplingParams(logprobs=0)).get()
    assert [each.token_id for each in said.logprobs or []] == [*b"Hi", assets.EOS_ID]


async def test_what_a_killed_mock_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    left, other = (tmp_path / f"lmserve-mock-{pid}-x" for pid in (ended.pid, os.getpid()))
    left.mkdir()
    other.mkdir()
    fake = FakeEngine()
    await fake.start()
    assert not left.exists()
    assert other.exists()  # whose process lives
    await fake.close()
    assert os.listdir(tmp_path) == [other.name]

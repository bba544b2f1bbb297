"""Trees over a real engine: the greedy answers of every branch are those of its flat history, and
only what is new on it is run."""

from __future__ import annotations

from lmserve.messages import pack_ids
from lmserve.service.generate import collect
from lmserve.service.sessions.sessions import UNSET, SessionKey
from lmserve.types import GenerateRequest
from tests.e2e.test_sessions import conversing

KEY = SessionKey("", "sess_a")
FORK = SessionKey("", "sess_b")
NUM_TOKENS = 12


async def answer(sessions, key, text, after=UNSET):
    """A greedy turn, and the line it made: its tokens up to the answer, and those of that."""
    request = GenerateRequest(
        messages=[] if text is None else [{"role": "user", "content": text}],
        temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True,
    )  # fmt: skip
    turn = await sessions.turn(key, request, keep=True, after=after, must_exist=True)
    _, done = await collect(turn.generation)
    await turn.settled()
    text_key = (await sessions._service.model_text()).text_key
    line = await sessions.keeper.run(lambda store: store.load(key, text_key))
    assert line.history.num_messages == len(line.messages)
    ids = line.history.token_ids
    return turn, done.usage, ids[:-NUM_TOKENS], ids[-NUM_TOKENS:]


async def flat(sessions, prompt):
    """What the engine answers to these tokens alone."""
    request = GenerateRequest(
        token_ids=prompt, temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True
    )
    generation = await sessions._service.generate(request)
    ids = []
    with generation.lease():
        async for event in generation.events():
            ids += getattr(event, "token_ids", [])
    return [*ids, *generation.unshown_ids]


async def test_every_branch_answers_as_its_flat_history(tiny_llama, tmp_path):
    async with conversing(tiny_llama, tmp_path) as sessions:
        await sessions.create(KEY)
        first, _, *one = await answer(sessions, KEY, "hello there")
        second, _, *two = await answer(sessions, KEY, "and then?")
        shared = len(one[0]) + NUM_TOKENS - 1  # the last token's KV was never needed

        edited, usage, *three = await answer(sessions, KEY, "or else?", first.answer.id)
        assert usage.cached_tokens >= shared
        assert edited.history_tokens == shared + 1

        _, usage, *four = await answer(sessions, KEY, None, second.input_ids[0])
        assert usage.cached_tokens >= usage.prompt_tokens - 1 - 16  # all but its last block
        assert four == two  # greedy: the same question has the same answer

        await sessions.fork(KEY, FORK, at=first.answer.id)
        _, usage, *five = await answer(sessions, FORK, "a third way")
        assert usage.cached_tokens >= shared

        await sessions.update(KEY, head=edited.answer.id)
        _, usage, *six = await answer(sessions, KEY, "go on")
        assert usage.cached_tokens >= len(three[0]) + NUM_TOKENS - 1

        branches = (one, two, three, five, six)
        for prompt, said in branches:
            assert said == tiny_llama.golden(prompt, NUM_TOKENS)  # by transformers, from nothing
            assert said == await flat(sessions, prompt)
    for (prompt, _), base in zip(branches[1:], (one, one, one, three), strict=True):
        assert pack_ids(prompt).startswith(pack_ids([*base[0], *base[1]]))


async def test_an_imported_session_is_run_anew_and_answers_alike(tiny_llama, tmp_path):
    async with conversing(tiny_llama, tmp_path) as sessions:
        await sessions.create(KEY, messages=[{"role": "user", "content": "hello there"}])
        _, _, *one = await answer(sessions, KEY, None)
        exported = await sessions.export(KEY)
        await sessions.import_(FORK, exported)
        question = (await sessions.nodes(FORK))[0]
        _, usage, *two = await answer(sessions, FORK, None, question.id)
        assert two == one
        assert usage.prompt_tokens == len(one[0])
        *_, answered = await sessions.nodes(FORK)
        assert answered.line_tokens == len(one[0]) + NUM_TOKENS

"""The whole engine, scheduler to sampler, against transformers: token for token in float32,
whatever the batch, the chunks, the prefix hits and the preemptions."""

from __future__ import annotations

import random

import pytest

from lmserve.engine.core import EngineCore
from lmserve.messages import Submit, pack_ids, unpack_ids
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings

NUM_TOKENS = 12
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "neox"]


def core_for(model, **settings) -> EngineCore:
    chosen = {"dtype": "float32", "threads": 1, "block_size": 4, "session_len": 128, **settings}
    core = EngineCore(EngineSettings(model=str(model.path), device="cpu", **chosen))
    core.load(lambda stage: None)
    return core


def answers(core: EngineCore, prompts: list[list[int]], num_tokens: int = NUM_TOKENS):
    """Submits all at once and steps to the end: tokens by prompt, and tokens found cached."""
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    core.handle([Submit(i, pack_ids(ids), sampling) for i, ids in enumerate(prompts)])
    tokens: dict[int, list[int]] = {i: [] for i in range(len(prompts))}
    cached = dict.fromkeys(tokens, 0)
    finished: dict[int, str] = {}
    for _ in range(5000):
        if not core.has_work():
            break
        for output in core.step().outputs:
            assert output.rid not in finished and output.error is None
            tokens[output.rid] += unpack_ids(output.token_ids)
            cached[output.rid] = max(cached[output.rid], output.num_cached_tokens)
            if output.finish is not None:
                finished[output.rid] = output.finish
        core.cache.check()
    counts = core.cache.counts()
    assert counts.held == 0
    assert counts.free + counts.cached + counts.pinned == counts.total
    assert finished == dict.fromkeys(tokens, "length")
    return list(tokens.values()), list(cached.values())


def prompts_of(seed: int, lens: list[int], shared: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    beginning = [source.randrange(256) for _ in range(shared)]
    return [beginning + [source.randrange(256) for _ in range(n)] for n in lens]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_step_tokens", [512, 7])
def test_a_batch_answers_as_transformers_does_one_by_one(tiny_models, family, max_step_tokens):
    model = tiny_models(family)
    prompts = prompts_of(1, [1, 3, 17, 30, 8, 41])
    golden = [model.golden(prompt, NUM_TOKENS) for prompt in prompts]
    core = core_for(model, max_step_tokens=max_step_tokens)
    assert answers(core, prompts)[0] == golden
    assert [answers(core, [prompt])[0][0] for prompt in prompts] == golden  # alone, and cached


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_hits_change_nothing_and_are_exact_to_the_token(tiny_models, family):
    model = tiny_models(family)
    core = core_for(model)
    first, *others = prompts_of(2, [9, 9, 5, 20], shared=21)
    answers(core, [first])
    tokens, cached = answers(core, others)
    assert tokens == [model.golden(prompt, NUM_TOKENS) for prompt in others]
    assert all(num >= 21 for num in cached)  # the shared beginning ends inside a block of 4
    tokens, cached = answers(core, [first])
    assert cached == [len(first) - 1]
    assert tokens == [model.golden(first, NUM_TOKENS)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_preempted_sequences_resume_where_they_were(tiny_models, family, prefix_cache):
    model = tiny_models(family)
    core = core_for(model, num_blocks=12, session_len=47, prefix_cache=prefix_cache)
    prompts = prompts_of(3, [14, 11, 13, 12, 9])
    tokens, _ = answers(core, prompts, 20)
    assert tokens == [model.golden(prompt, 20) for prompt in prompts]
    assert core.scheduler.num_preemptions > 0


def test_a_conversation_reuses_all_of_its_history(tiny_llama):
    core = core_for(tiny_llama)
    history: list[int] = []
    for turn, new in enumerate(prompts_of(4, [6, 5, 9, 3])):
        prompt = history + new
        (answer,), (cached,) = answers(core, [prompt])
        assert answer == tiny_llama.golden(prompt, NUM_TOKENS)
        assert cached == (len(history) - 1 if turn else 0)  # the last token had no KV yet
        history = prompt + answer


def test_eight_of_a_prompt_at_once_cost_little_more_than_one(tiny_llama):
    """As for n = 8: the prompt is run once, and its KV is held once but for the last block."""
    (prompt,) = prompts_of(6, [110])
    costs = {}
    for n in (1, 8):
        core = core_for(tiny_llama, max_step_tokens=40)
        sampling = [SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)] * n
        core.handle([Submit(i, pack_ids(prompt), each) for i, each in enumerate(sampling)])
        tokens: dict[int, list[int]] = {}
        num_run, held = 0, []
        while core.has_work():
            output = core.step()
            num_run += output.stats.step_tokens
            held.append(output.stats.blocks_held)
            for each in output.outputs:
                tokens.setdefault(each.rid, []).extend(unpack_ids(each.token_ids))
        assert list(tokens.values()) == [tiny_llama.golden(prompt, NUM_TOKENS)] * n
        costs[n] = num_run, max(held)
        core.cache.check()
    answer, own = NUM_TOKENS - 1, NUM_TOKENS // 4  # decodes; blocks that no other shares
    assert costs[1] == (110 + answer, 27 + own)
    assert costs[8] == (110 + 7 + 8 * answer, 27 + 8 * own)


def test_a_request_that_fails_in_the_engine_fails_alone(tiny_llama):
    """A token id past the embedding gets by no validator but the engine's own; here it is put
    into a running sequence, so that the step itself fails."""
    core = core_for(tiny_llama)
    prompts = prompts_of(5, [6, 7, 8])
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    core.handle([Submit(i, pack_ids(ids), sampling) for i, ids in enumerate(prompts)])
    core.step()
    core.scheduler.running[1].tokens[-1] = 10**6
    tokens: dict[int, list[int]] = {}
    errors: dict[int, str] = {}
    while core.has_work():
        for output in core.step().outputs:
            tokens.setdefault(output.rid, []).extend(unpack_ids(output.token_ids))
            if output.error is not None:
                errors[output.rid] = output.error
        core.cache.check()
    assert list(errors) == [1]
    for rid in (0, 2):
        assert tokens[rid] == tiny_llama.golden(prompts[rid], NUM_TOKENS)[1:]
    assert core.cache.counts().held == 0

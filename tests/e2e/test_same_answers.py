"""Greedy answers do not depend on how they were come by: in a batch or alone, in chunks, on a
cached beginning, forked, preempted, restored from disk or with tokens proposed. In float32 they
are transformers' own, by each set of kernels that runs here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lmserve.engine.core import EngineCore
from lmserve.engine.speculation.lookup import PromptLookup
from lmserve.engine.speculation.speculation import Speculation
from lmserve.native.select import INSTRUCTIONS, pick, runnable
from tests.e2e.test_default_model import PROMPTS, core_of, tokenizer
from tests.e2e.test_golden_engine import answers, core_for, prompts_of
from tests.e2e.test_kv_restore import move
from tests.e2e.test_speculation_engine import Replay
from tests.engine.paged import Free

NUM_TOKENS = 12
LENS = [1, 17, 6, 30]  # after what they share
SHARED = 21  # tokens that the prompts begin with: they end inside a block of 4, 7 or 16
DONE = 9  # tokens of an answer whose KV is saved too
CHUNKS = 5, 13, 512  # tokens in a step
MakeCore = Callable[..., EngineCore]
Way = Callable[[MakeCore, list[list[int]], Path], Iterator[list[list[int]]]]


def batched_and_alone(make: MakeCore, prompts: list[list[int]], _: Path) -> Iterator[Any]:
    core = make()
    yield _answers(core, prompts)
    core.cache.clear()
    yield _alone(core, prompts)


def in_chunks(make: MakeCore, prompts: list[list[int]], _: Path) -> Iterator[Any]:
    for max_step_tokens in CHUNKS:
        yield _answers(make(max_step_tokens=max_step_tokens), prompts)


def on_a_cached_beginning(make: MakeCore, prompts: list[list[int]], _: Path) -> Iterator[Any]:
    core = make()
    first = _answers(core, prompts[:1])
    others, cached = answers(core, prompts[1:], NUM_TOKENS)
    assert all(num >= SHARED for num in cached)
    yield first + others
    yield _alone(core, prompts)  # all but the last token of each is cached


def forked(make: MakeCore, prompts: list[list[int]], _: Path) -> Iterator[Any]:
    """Each goes on from within another's beginning or answer, while those are asked again."""
    core = make()
    told = _answers(core, prompts)
    forks = [
        prompt[:cut] + answer[: cut // 2]
        for prompt, answer in zip(prompts, told, strict=True)
        for cut in (SHARED - 2, len(prompt))
    ]
    mixed = _answers(core, [*prompts, *forks])
    yield mixed[: len(prompts)]
    core.cache.clear()
    assert mixed[len(prompts) :] == _alone(core, forks)
    yield [_answers(core, [prompt] * 3)[2] for prompt in prompts]


def preempted(make: MakeCore, prompts: list[list[int]], _: Path) -> Iterator[Any]:
    longest = max(map(len, prompts)) + NUM_TOKENS
    core = make(block_size=4, num_blocks=-(-longest // 4) + 2, session_len=longest)
    yield _answers(core, prompts)
    assert core.scheduler.num_preemptions > 0


def restored(make: MakeCore, prompts: list[list[int]], directory: Path) -> Iterator[Any]:
    core = make()
    told = _answers(core, prompts)
    for i, (prompt, answer) in enumerate(zip(prompts, told, strict=True)):
        assert move(core, "save", prompt + answer[:DONE], directory / f"{i}.kv")["num_tokens"]
    core = make(block_size=7)
    for i, (prompt, answer) in enumerate(zip(prompts, told, strict=True)):
        asked = prompt + answer[:DONE]
        assert move(core, "restore", asked, directory / f"{i}.kv")["num_known"] == len(asked)
    again, cached = answers(core, prompts, NUM_TOKENS)
    assert cached == [len(prompt) - 1 for prompt in prompts]
    yield again
    rest = _answers(core, [p + a[:DONE] for p, a in zip(prompts, again, strict=True)])
    yield [a[:DONE] + r[: NUM_TOKENS - DONE] for a, r in zip(again, rest, strict=True)]


def with_tokens_proposed(make: MakeCore, prompts: list[list[int]], _: Path) -> Iterator[Any]:
    core = make()
    plain = _answers(core, prompts)
    texts = [prompt + answer for prompt, answer in zip(prompts, plain, strict=True)]
    for right in ((True, True, False), None):
        proposer = PromptLookup if right is None else lambda r=right: Replay(texts, r)
        core.scheduler.speculation = Speculation(5, proposer, Free())
        core.cache.clear()
        yield _answers(core, prompts)
        yield [_answers(core, prompts[:1])[0], *_answers(core, prompts[1:])]  # on cached KV
        assert right is None or core.scheduler.speculation.num_accepted > 0


WAYS: list[Way] = [
    batched_and_alone, in_chunks, on_a_cached_beginning, forked, preempted, restored,
    with_tokens_proposed,
]  # fmt: skip


def _answers(core: EngineCore, prompts: list[list[int]]) -> list[list[int]]:
    return answers(core, prompts, NUM_TOKENS)[0]


def _alone(core: EngineCore, prompts: list[list[int]]) -> list[list[int]]:
    return [_answers(core, [prompt])[0] for prompt in prompts]


@pytest.fixture(params=["torch", *INSTRUCTIONS])
def kernels(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    reason = runnable().get(name)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture
def make(kernels: str) -> Iterator[MakeCore]:
    """Makes cores of these kernels, all closed at the end."""
    cores: list[EngineCore] = []

    def make_core(model: Any, **settings: Any) -> EngineCore:
        cores.append(core_for(model, kernels=kernels, **settings))
        return cores[-1]

    yield make_core
    for core in cores:
        core.close()


def hold(way: Way, make: MakeCore, prompts: list[list[int]], path: Path, expected: Any) -> None:
    for told in way(make, prompts, path):
        assert told == expected


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("family", "deterministic"),
    [
        ("llama", False),
        ("mistral", True),
        pytest.param("llama", True, marks=pytest.mark.slow),
        pytest.param("mistral", False, marks=pytest.mark.slow),
        pytest.param("neox", False, marks=pytest.mark.slow),
    ],
)
def test_in_float32_they_are_those_of_transformers(
    tiny_models, make, tmp_path, way, family, deterministic
):
    model = tiny_models(family)
    prompts = prompts_of(1, LENS, shared=SHARED)
    expected = [model.golden(prompt, NUM_TOKENS) for prompt in prompts]
    hold(way, partial(make, model, deterministic=deterministic), prompts, tmp_path, expected)


@pytest.mark.parametrize(
    "kernels", [pytest.param("torch", marks=pytest.mark.slow), *INSTRUCTIONS], indirect=True
)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_in_16_bits_they_are_those_of_one_alone(tiny_models, make, kernels, tmp_path, way):
    """Torch is asked to be deterministic; the native kernels always are."""
    numerics = {"deterministic": True} if kernels == "torch" else {"threads": 2}
    make_core = partial(make, tiny_models("qwen3"), dtype="bfloat16", **numerics)
    prompts = prompts_of(2, LENS, shared=SHARED)
    hold(way, make_core, prompts, tmp_path, _alone(make_core(prefix_cache=False), prompts))


@pytest.mark.network
@pytest.mark.timeout(300)
def test_the_default_model_with_packed_weights_answers_as_alone(tmp_path):
    """As it is served, with whatever kernels are the fastest here."""
    core = core_of("auto", deterministic=True) if pick("auto")[0] == "torch" else core_of("auto")
    prompts = [tokenizer().encode(text).ids for text in PROMPTS]
    prompts.append(prompts[1][:-3] + prompts[0])  # its beginning ends inside a block
    core.cache.clear()
    alone = _alone(core, prompts)
    assert _answers(core, prompts) == alone  # on cached KV
    core.cache.clear()
    assert _answers(core, prompts) == alone
    whole = prompts[1] + alone[1]
    move(core, "save", whole[:-1], tmp_path / "a.kv")
    core.cache.clear()
    move(core, "restore", whole[:-1], tmp_path / "a.kv")
    texts = [prompt + answer for prompt, answer in zip(prompts, alone, strict=True)]
    core.scheduler.speculation = Speculation(5, lambda: Replay(texts, (True, True, False)), Free())
    try:
        told, cached = answers(core, prompts, NUM_TOKENS)
        assert told == alone and cached[1] == len(prompts[1]) - 1
        assert core.scheduler.speculation.num_accepted > 0
    finally:
        core.scheduler.speculation = None

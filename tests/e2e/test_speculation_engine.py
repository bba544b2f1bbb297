"""Speculation changes how many steps an answer takes, and nothing else: the whole engine, over
tiny models in float32 and with packed weights, and a served answer of several tokens a step."""

from __future__ import annotations

import random
from itertools import cycle
from typing import Any

import pytest

from lmserve.engine.core import EngineCore
from lmserve.engine.speculation.lookup import PromptLookup
from lmserve.engine.speculation.speculation import Speculation
from lmserve.messages import Abort, Submit, pack_ids, unpack_ids
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings
from tests.e2e.conftest import TinyModel
from tests.e2e.test_choices_engine import ask, serving
from tests.engine.paged import Free
from tests.whole import gather

Told = dict[int, list[Any]]
WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "stop_token_ids": tuple(range(60)), "min_tokens": 11},
    {"seed": 3},
    {"seed": 4, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "logprobs": 2},
    {"seed": 5, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    {"seed": 6, "bad_words": ((1, 2), (7,)), "logit_bias": ((9, 3.0),)},
    {"seed": 7, "stop_token_ids": tuple(range(0, 250, 3)), "max_tokens": 40},
    {"temperature": 0.0, "allowed_token_ids": tuple(range(20, 60)), "logprobs": 0},
]


class Replay:
    """Proposes the very answers, or something else where `right` says False."""

    def __init__(self, texts: list[list[int]], right: tuple[bool, ...]):
        self._texts = texts
        self._right = cycle(right)

    def propose(self, tokens: Any, most: int) -> list[int]:
        num = len(tokens)
        for text in self._texts:
            if text[:num] == list(tokens):
                coming = text[num : num + most]
                return [token if next(self._right) else token ^ 1 for token in coming]
        return []


def core_for(model: TinyModel, **settings: Any) -> EngineCore:
    chosen = {"dtype": "float32", "threads": 1, "block_size": 4, "session_len": 128, **settings}
    core = EngineCore(EngineSettings(model=str(model.path), device="cpu", **chosen))
    core.load(lambda stage: None)
    return core


def answers(core: EngineCore, prompts: list[list[int]], aborted: int | None = None) -> Told:
    """Tokens, log probabilities and the end of each; one may be aborted on its way."""
    core.handle(
        [
            Submit(rid, pack_ids(prompt), SamplingParams(**{"max_tokens": 16, **way}))
            for rid, (prompt, way) in enumerate(zip(prompts, cycle(WAYS), strict=False))
        ]
    )
    told: Told = {rid: [[], [], None] for rid in range(len(prompts))}
    num_steps = 0
    while core.has_work():
        for output in core.step().outputs:
            assert output.error is None
            each = told[output.rid]
            each[0] += unpack_ids(output.token_ids)
            each[1] += [(one.token_id, one.top_ids) for one in output.logprobs or []]
            each[2] = (output.finish, output.stop_token_id)
        core.cache.check()
        num_steps += 1
        if num_steps == 4 and aborted is not None:
            core.handle([Abort([aborted])])
    assert core.cache.counts().held == 0
    if aborted is not None:
        del told[aborted]
    return told


def prompts_of(seed: int, lens: list[int]) -> list[list[int]]:
    source = random.Random(seed)
    shared = [source.randrange(256) for _ in range(9)]
    return [shared + [source.randrange(256) for _ in range(n)] * 2 for n in lens]


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {}), ("mistral", {"max_step_tokens": 11}), ("neox", {"num_blocks": 33}),
     ("llama", {"dtype": "auto", "deterministic": True})],
    ids=["plain", "window-and-chunks", "preempted", "deterministic"],
)  # fmt: skip
def test_answers_are_the_same_token_for_token(tiny_models, family, settings) -> None:
    core = core_for(tiny_models(family), **settings)
    prompts = prompts_of(1, [1, 3, 8, 4, 2, 9, 6, 5])
    plain = answers(core, prompts)
    texts = [prompt + plain[rid][0] for rid, prompt in enumerate(prompts)]
    for right in ((True,), (False,), (True, True, False), None):
        speculation = core.scheduler.speculation = Speculation(
            5, PromptLookup if right is None else lambda r=right: Replay(texts, r), Free()
        )
        core.cache.clear()
        assert answers(core, prompts) == plain
        if right is not None:
            assert speculation.num_proposed > 0
            assert (speculation.num_accepted > 0) == any(right)
    rest = answers(core, prompts, aborted=3)  # on cached KV
    assert rest == {rid: plain[rid] for rid in rest}
    assert answers(core, prompts[:1]) == {0: plain[0]}
    if "num_blocks" in settings:
        assert core.scheduler.num_preemptions > 0


async def test_an_answer_over_the_whole_way_is_cut_where_it_would_be(tiny_llama) -> None:
    """Several tokens come in a step: stop strings, limits and usage count each."""
    few = {"allowed_token_ids": tuple(b"abcd")}  # so that an answer repeats itself
    greedy = {"temperature": 0.0, "max_tokens": 120, **few}
    asked = [
        ask(**greedy),
        ask(seed=5, max_tokens=60, logprobs=1, **few),
        ask(**greedy | {"max_tokens": 7}),
    ]
    told: list[list[Any]] = []
    for settings in ({}, {"speculation": "ngram"}):
        async with serving(tiny_llama, **settings) as service:
            wholes = [await gather(await service.generate(each)) for each in asked]
            text = wholes[0].text
            for end in (12, 30, 55):  # within what may come at once
                stop = text[end - 6 : end]
                wholes.append(await gather(await service.generate(ask(**greedy, stop=(stop,)))))
                assert wholes[-1].done.stop_reason == stop
                assert text.startswith(wholes[-1].text + stop)
            stats = service._handle.stats
        told.append([(each.text, each.token_ids, each.done) for each in wholes])
        assert (stats.spec_accepted_tokens > 0) == bool(settings)
    assert told[0] == told[1]

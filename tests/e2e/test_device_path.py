"""The way a GPU is used, run on the CPU with the kernels' twins: greedy answers are those of
transformers, however steps overlap and whatever is replayed as a graph, and drawn ones do not
depend on either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from lmserve.engine import graphs
from lmserve.engine.core import EngineCore
from lmserve.engine.device_runner import DeviceRunner
from lmserve.engine.prompts import NOT_FINITE
from lmserve.errors import SettingsError
from lmserve.messages import Submit, pack_ids, unpack_ids
from lmserve.sampling import SamplingParams, Thinking
from tests.e2e.test_golden_engine import core_for, prompts_of
from tests.e2e.test_same_answers import LENS, NUM_TOKENS, SHARED, WAYS, hold, with_tokens_proposed

MakeCore = Callable[..., EngineCore]
SMALL = {"kernels": "twins", "max_batch_size": 4}
HOW = [
    pytest.param({"overlap": "on", "graphs": True}, id="overlap and graphs"),
    pytest.param({"overlap": "on", "graphs": False}, id="overlap"),
    pytest.param({"overlap": "off", "graphs": True}, id="graphs", marks=pytest.mark.slow),
    pytest.param({"overlap": "off", "graphs": False}, id="neither", marks=pytest.mark.slow),
]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeCore]:
    """Makes cores of the device path, all closed at the end. A graph is captured as soon as a step
    has missed it, and no other: the recorder takes its time."""
    cores: list[EngineCore] = []
    monkeypatch.setattr(graphs, "MIN_MISSES", 1)

    def make_core(model: Any, **settings: Any) -> EngineCore:
        core = core_for(model, **{**SMALL, **settings})
        cores.append(core)
        step = core.step

        def step_and_capture() -> Any:
            output = step()
            if core._runner is not None and core._runner.wants_chore(idle=False):
                core._runner.do_chore()
            return output

        core.step = step_and_capture  # type: ignore[method-assign]
        return core

    yield make_core
    for core in cores:
        core.close()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    "family",
    ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "mistral"))],
)
def test_in_float32_they_are_those_of_transformers(tiny_models, make, tmp_path, family, way, how):
    if way is with_tokens_proposed:
        how = {**how, "overlap": "off"}
    model = tiny_models(family)
    prompts = prompts_of(1, LENS, shared=SHARED)
    expected = [model.golden(prompt, NUM_TOKENS) for prompt in prompts]
    hold(way, partial(make, model, **how), prompts, tmp_path, expected)


def test_a_model_of_transformers_runs_there_too_without_graphs(tiny_models, make, tmp_path):
    model = tiny_models("neox")
    prompts = prompts_of(1, LENS, shared=SHARED)
    expected = [model.golden(prompt, NUM_TOKENS) for prompt in prompts]
    hold(WAYS[0], partial(make, model, overlap="on"), prompts, tmp_path, expected)


SAMPLED = [
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 0.7, "top_k": 5, "repetition_penalty": 1.3},
    {"temperature": 0.0, "frequency_penalty": 0.6, "presence_penalty": 0.2},
    {"temperature": 1.1, "min_p": 0.1, "logprobs": 3},
    {"temperature": 0.0, "stop_token_ids": (7, 11, 13, 17, 19, 23, 29, 31), "min_tokens": 3},
    {"temperature": 0.8, "logit_bias": ((5, 4.0), (9, -50.0)), "bad_words": ((5, 5), (6,))},
    {"temperature": 0.8, "thinking": Thinking(3, (2, 3))},
    {"temperature": 0.0, "prompt_logprobs": 2, "max_tokens": 2},
    {"temperature": 0.6, "allowed_token_ids": (3, 4, 5, 6, 7, 8)},
]


def told(core: EngineCore, prompts: list[list[int]], together: bool) -> list[Any]:
    """All that each request hears, all at once or one after the other."""
    heard: list[list[Any]] = [[] for _ in prompts]
    for rid, prompt in enumerate(prompts):
        params = {"max_tokens": NUM_TOKENS, "seed": rid, "ignore_eos": True}
        sampling = SamplingParams(**{**params, **SAMPLED[rid % len(SAMPLED)]})
        core.handle([Submit(rid, pack_ids(prompt), sampling)])
        if not together:
            finish(core, heard)
    finish(core, heard)
    return heard


def finish(core: EngineCore, heard: list[list[Any]]) -> None:
    for _ in range(500):
        if not core.has_work():
            return
        for output in core.step().outputs:
            assert output.error is None
            for token in unpack_ids(output.token_ids):
                heard[output.rid].append(token)
            for each in (*(output.logprobs or ()), *(output.prompt_logprobs or ())):
                top = [round(logprob, 3) for logprob in each.top_logprobs]
                heard[output.rid].append((each.token_id, round(each.logprob, 3), each.top_ids, top))
            if output.finish is not None:
                heard[output.rid].append(output.finish)
        core.cache.check()
    raise AssertionError("the engine does not come to an end")


def test_what_is_drawn_depends_neither_on_overlap_nor_on_graphs(tiny_models, make):
    """Of every kind of settings, in one batch and alone."""
    model = tiny_models("qwen3")
    prompts = prompts_of(4, [5, 17, 9, 12, 3, 20, 8, 30, 11])
    plain = make(model, overlap="off", graphs=False, prefix_cache=False, max_batch_size=9)
    expected = told(plain, prompts, together=False)
    core = make(model, prefix_cache=False, overlap="on", graphs=False)
    assert told(core, prompts, together=True) == expected
    core = make(model, prefix_cache=False, overlap="on")
    assert told(core, prompts, together=True) == expected
    assert told(core, prompts, together=False) == expected


def test_the_cpus_own_runner_says_the_same(tiny_models, make):
    model = tiny_models("qwen3")
    prompts = prompts_of(4, [5, 17, 9, 12, 3, 20, 8, 30, 11])
    host = core_for(model, kernels="torch", prefix_cache=False)
    expected = told(host, prompts, together=True)
    host.close()
    core = make(model, overlap="on", graphs=False, prefix_cache=False)
    assert told(core, prompts, together=True) == expected


def test_graphs_are_what_runs(tiny_models, make):
    core = make(tiny_models("qwen3"), overlap="on", max_batch_size=2)
    prompts = prompts_of(4, [5, 9])
    for _ in range(3):  # the penalised one's counts come, and all is captured again
        told(core, prompts, together=True)
        told(core, prompts[:1], together=True)
    runner = core._runner
    assert isinstance(runner, DeviceRunner)
    runs = []
    run_decode = runner._run_decode
    runner._run_decode = lambda *args: runs.append(args) or run_decode(*args)  # type: ignore[method-assign]
    told(core, [prompts[0]], together=True)
    assert runs == []


def test_what_is_not_finite_fails_that_answer_alone(tiny_models, make):
    """In a prompt, and in a token that nobody had read when it was run."""
    model = tiny_models("qwen3")
    prompts = prompts_of(4, [5, 9, 7])
    golden = [model.golden(prompt, NUM_TOKENS) for prompt in prompts]
    core = make(model, overlap="on")
    fine = {token for at in (0, 2) for token in (*prompts[at], *golden[at])} | set(prompts[1])
    bad = next(token for token in golden[1][1:-1] if token not in fine)
    core._runner._model.embed.table[bad] = torch.nan
    prompts.append([3, bad, 4])
    told: dict[int, list[Any]] = {rid: [] for rid in range(len(prompts))}
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    core.handle([Submit(rid, pack_ids(ids), sampling) for rid, ids in enumerate(prompts)])
    while core.has_work():
        for output in core.step().outputs:
            told[output.rid] += [*unpack_ids(output.token_ids), *filter(None, [output.error])]
        core.cache.check()
    assert told == {
        0: golden[0],
        1: [*golden[1][: golden[1].index(bad) + 1], NOT_FINITE],
        2: golden[2],
        3: [NOT_FINITE],
    }


def test_idle_it_rehearses_and_captures_and_comes_to_an_end(tiny_models, make):
    """Penalties are known from then on: no graph is captured a second time for their sake."""
    model = tiny_models("qwen3")
    prompts = prompts_of(4, [5, 9])
    core = make(model, overlap="on", max_batch_size=2)
    expected = told(core, prompts, together=True)
    idle = make(model, overlap="on", max_batch_size=2)
    for _ in range(20):
        if idle.has_chores():
            idle.do_chores()
    assert not idle.has_chores()
    runner = idle._runner
    assert isinstance(runner, DeviceRunner)
    assert runner.sampler.generation == 1
    assert told(idle, prompts, together=True) == expected
    assert not idle.has_chores()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kernels": "torch"}, "--overlap on does not go with --attention cpu"),
        ({"speculation": "ngram"}, "--overlap on does not go with --speculation"),
    ],
)
def test_overlap_is_refused_where_it_cannot_be(tiny_models, settings, words):
    with pytest.raises(SettingsError, match=words):
        core_for(tiny_models("qwen3"), **{**SMALL, "overlap": "on", **settings})

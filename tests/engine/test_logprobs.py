"""Log probabilities and pooled hidden states equal transformers', however they are asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from tiny import LLAMA, SMALL, prompts_of, random_model, runner_of, tiny_runner

from lmserve.engine import prompts
from lmserve.engine.core import EngineCore
from lmserve.messages import Submit, TokenLogprob, pack_ids, unpack_ids
from lmserve.models.hf import HfModel
from lmserve.models.linear import Numerics
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings
from lmserve.weights.base import TokenizerAssets

FLOAT32 = Numerics(torch.float32, torch.device("cpu"), packed=False, deterministic=False)
FAMILIES: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**LLAMA),
    "qwen3": transformers.Qwen3Config(**LLAMA, head_dim=8, tie_word_embeddings=True),
    "neox": transformers.GPTNeoXConfig(**SMALL, intermediate_size=48),  # through transformers
    "cohere": transformers.CohereConfig(**LLAMA, logit_scale=0.5),  # and scaled after the head
}


class Told:
    """All that one request heard."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.embedding: list[float] = []
        self.finish: str | None = None
        self.num_cached = 0


class Engine:
    """A core over a real runner."""

    def __init__(self, runner: Any, **settings: Any):
        runner.assets = TokenizerAssets(Path("tokenizer.json"))
        self.core = EngineCore(EngineSettings(**settings), runner)
        self.core.load(lambda stage: None)
        self.told: dict[int, Told] = {}

    def ask(self, prompt: list[int], **sampling: Any) -> Told:
        rid = len(self.told)
        self.told[rid] = Told()
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 4, **sampling})
        self.core.handle([Submit(rid, pack_ids(prompt), params)])
        return self.told[rid]

    def drain(self) -> None:
        while self.core.has_work():
            for output in self.core.step().outputs:
                told = self.told[output.rid]
                assert output.error is None
                told.ids += unpack_ids(output.token_ids)
                told.logprobs += output.logprobs or []
                told.prompt_logprobs += output.prompt_logprobs or []
                told.num_cached = max(told.num_cached, output.num_cached_tokens)
                told.finish = output.finish
                if output.embedding is not None:
                    told.embedding = np.frombuffer(output.embedding, "<f4").tolist()


@pytest.fixture(scope="module", params=FAMILIES)
def module(request: pytest.FixtureRequest) -> Any:
    torch.set_num_threads(1)
    return random_model(FAMILIES[request.param])


@pytest.fixture(scope="module")
def runner(module: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return runner_for(module, tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(runner: Any) -> Engine:
    return Engine(runner, max_step_tokens=24)


def runner_for(module: Any, folder: Path) -> Any:
    if type(module).__name__.startswith(("Llama", "Qwen")):
        return tiny_runner(module)
    module.save_pretrained(folder)
    return runner_of(HfModel(str(folder), type(module).__name__, FLOAT32))


@torch.inference_mode()
def golden(module: Any, tokens: list[int]) -> torch.Tensor:
    """(T, vocab): the log probabilities of what follows each token."""
    logits: torch.Tensor = module(torch.tensor([tokens])).logits[0]
    return logits.float().log_softmax(-1)


def check(told: list[TokenLogprob], expected: torch.Tensor, tokens: list[int], num: int) -> None:
    assert [each.token_id for each in told] == tokens
    for each, row in zip(told, expected, strict=True):
        assert each.logprob == pytest.approx(row[each.token_id].item(), abs=1e-4)
        top = row.topk(num)
        assert each.top_ids == top.indices.tolist()
        assert each.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-4)


def test_of_chosen_tokens_whatever_was_done_to_the_logits(module: Any, engine: Engine) -> None:
    plain, biased, long = prompts_of(97, [9, 14, 40])
    asked = [
        (plain, {"logprobs": 3}),
        (biased, {"logprobs": 5, "temperature": 1.5, "seed": 3, "logit_bias": ((7, 50.0),)}),
        (plain, {"logprobs": 0, "repetition_penalty": 1.9, "allowed_token_ids": (4, 5, 96)}),
        (long, {}),
    ]
    answers = [engine.ask(prompt, **sampling) for prompt, sampling in asked]
    engine.drain()
    for (prompt, sampling), told in zip(asked, answers, strict=True):
        assert len(told.ids) == 4
        if "logprobs" in sampling:
            expected = golden(module, prompt + told.ids)[len(prompt) - 1 : -1]
            check(told.logprobs, expected, told.ids, sampling["logprobs"])
        else:
            assert told.logprobs == []
    assert answers[1].ids == [7] * 4
    assert set(answers[2].ids) <= {4, 5, 96}


@pytest.mark.parametrize("slice_rows", [1, 7, 10_000])
def test_of_a_prompt_in_chunks_and_slices_beside_others(
    module: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch, slice_rows: int
) -> None:
    monkeypatch.setattr(prompts, "SLICE_BYTES", slice_rows * 4 * 97)
    long, short = prompts_of(97, [60, 13])
    plain = engine.ask(short, max_tokens=9)
    whole = engine.ask(long, prompt_logprobs=2)
    part = engine.ask(short, prompt_logprobs=4, prompt_logprobs_start=7, max_tokens=0)
    engine.drain()
    check(whole.prompt_logprobs, golden(module, long)[:-1], long[1:], 2)
    check(part.prompt_logprobs, golden(module, short)[6:-1], short[7:], 4)
    assert (len(whole.ids), part.ids, part.finish, len(plain.ids)) == (4, [], "length", 9)


def test_of_a_prompt_that_is_partly_known(module: Any, engine: Engine) -> None:
    (prompt,) = prompts_of(97, [30])
    engine.ask(prompt)
    engine.drain()
    expected = golden(module, prompt)
    for start in (0, 11, 29, 30):
        told = engine.ask(prompt, prompt_logprobs=0, prompt_logprobs_start=start)
        engine.drain()
        first = max(1, start)
        check(told.prompt_logprobs, expected[first - 1 : -1], prompt[first:], 0)
        assert told.num_cached == min(first - 1, 29)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_is_the_last_hidden_state_pooled(
    module: Any, engine: Engine, pooling: str
) -> None:
    prompts = prompts_of(97, [60, 1, 13, 40])
    engine.ask(prompts[0])
    engine.drain()
    answers = [engine.ask(prompt, pooling=pooling) for prompt in prompts]
    engine.drain()
    for prompt, told in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            hidden = module.base_model(torch.tensor([prompt])).last_hidden_state[0]
        expected = hidden.mean(0) if pooling == "mean" else hidden[-1]
        assert told.embedding == pytest.approx(expected.tolist(), abs=1e-4)
        assert (told.ids, told.finish) == ([], "stop")


def test_what_the_model_itself_would_say_is_told_of_a_forced_choice(engine: Engine) -> None:
    """A token that is all but impossible has its own log probability, and no error."""
    (prompt,) = prompts_of(97, [9])
    told = engine.ask(prompt, allowed_token_ids=(11,), logprobs=1, max_tokens=2)
    engine.drain()
    assert told.ids == [11, 11]
    assert told.logprobs[0].logprob < told.logprobs[0].top_logprobs[0]

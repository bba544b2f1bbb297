"""The embedded default model in the whole engine: 64 greedy tokens equal transformers' in
float32; the dtype that is served makes sense, and its answers have the promised independence."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from lmserve.engine.core import EngineCore
from lmserve.engine.speculation.speculation import Speculation
from lmserve.errors import ModelError
from lmserve.messages import Submit, pack_ids, unpack_ids
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings
from lmserve.weights import files
from tests.engine.paged import Free

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
NUM_TOKENS = 64
PROMPTS = [
    "The capital of France is",
    "<|im_start|>user\nWrite three lines about the sea.<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n",
]


@cache
def default_model() -> Path:
    try:
        return files.resolve(None, files.cache_dir(os.environ.get("LMSERVE_CACHE_DIR"))).path
    except ModelError as error:
        pytest.skip(f"the default model cannot be had: {error.message}")


@cache
def core_of(dtype: str, deterministic: bool = False, num_blocks: int = 256) -> EngineCore:
    core = EngineCore(
        EngineSettings(
            model=str(default_model()), dtype=dtype, device="cpu", deterministic=deterministic,
            session_len=min(512, 16 * num_blocks), num_blocks=num_blocks, max_step_tokens=64,
        )
    )  # fmt: skip
    core.load(lambda stage: None)
    return core


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(core_of("float32")._runner.assets.tokenizer_file))


def answers(core: EngineCore, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    core.handle([Submit(i, pack_ids(ids), sampling) for i, ids in enumerate(prompts)])
    tokens: list[list[int]] = [[] for _ in prompts]
    while core.has_work():
        for output in core.step().outputs:
            assert output.error is None
            tokens[output.rid] += unpack_ids(output.token_ids)
    core.cache.check()
    assert core.cache.counts().held == 0
    return tokens


def assert_greedy(prompt: list[int], answer: list[int], num_tokens: int) -> None:
    """Each token is what transformers finds likeliest after those before it, so the answer is its
    own greedy one: a single run tells, where generating takes one for each token."""
    assert len(answer) == num_tokens
    assert likeliest(*prompt, *answer)[len(prompt) - 1 : -1] == answer


@cache
def likeliest(*tokens: int) -> list[int]:
    """After each token."""
    return log_softmax(list(tokens)).argmax(-1).tolist()


@cache
def transformers_model() -> transformers.PreTrainedModel:
    """The file as transformers itself reads it."""
    path = default_model()
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).eval()


def test_float32_equals_transformers_batched_alone_chunked_and_with_prefix_hits():
    core = core_of("float32")
    prompts = [tokenizer().encode(text).ids for text in PROMPTS]
    together = answers(core, prompts, NUM_TOKENS)
    for prompt, answer in zip(prompts, together, strict=True):
        assert_greedy(prompt, answer, NUM_TOKENS)
    hits = core.cache.prefix_hits
    assert answers(core, prompts[1:2], NUM_TOKENS) == together[1:2]  # alone, on cached KV
    assert core.cache.prefix_hits > hits
    long = prompts[0] + together[0] + prompts[2] + together[2]  # more than a step's budget
    assert_greedy(long, answers(core, [long], 8)[0], 8)


def test_float32_equals_transformers_preempted_and_resumed():
    core = core_of("float32", num_blocks=9)  # of 16 tokens: not even two of the three fit
    prompts = [tokenizer().encode(text).ids for text in PROMPTS]
    for prompt, answer in zip(prompts, answers(core, prompts, NUM_TOKENS), strict=True):
        assert_greedy(prompt, answer, NUM_TOKENS)
    assert core.scheduler.num_preemptions > 0


def test_the_served_dtype_knows_the_capital_of_france():
    core = core_of("auto")
    (answer,) = answers(core, [tokenizer().encode(PROMPTS[0]).ids], 8)
    assert "Paris" in tokenizer().decode(answer)


def test_a_neighbours_content_changes_nothing_at_equal_row_counts():
    """In the dtype that is served: other neighbours of the same lengths, the same bits."""
    core = core_of("auto")
    prompts = [tokenizer().encode(text).ids for text in PROMPTS]
    answer = answers(core, prompts, 24)[0]
    others = [[(token * 7 + 3) % 40000 for token in prompt] for prompt in prompts[1:]]
    core.cache.clear()
    assert answers(core, [prompts[0], *others], 24)[0] == answer


def test_deterministic_answers_do_not_depend_on_the_batch_at_all():
    core = core_of("auto", deterministic=True)
    prompts = [tokenizer().encode(text).ids for text in PROMPTS]
    together = answers(core, prompts, 24)
    assert answers(core, prompts[::-1], 24)[::-1] == together  # on cached KV
    core.cache.clear()
    assert [answers(core, [prompt], 24)[0] for prompt in prompts] == together


def test_several_tokens_a_step_are_those_of_one_a_step():
    core = core_of("auto", deterministic=True)
    lines = "Anna lives in Bremen.\nBoris lives in Lyon.\nClara lives in Porto.\n"
    prompts = [tokenizer().encode(text).ids for text in (lines + lines, *PROMPTS)]
    plain = answers(core, prompts, 20)
    core.cache.clear()
    core.scheduler.speculation = speculation = Speculation(6, costs=Free())
    try:
        assert answers(core, prompts, 20) == plain
    finally:
        core.scheduler.speculation = None
    assert speculation.num_accepted > 0


def test_log_probabilities_and_embeddings_equal_transformers_in_float32():
    prompts = [tokenizer().encode(text).ids for text in PROMPTS]
    core = core_of("float32")
    greedy = {"temperature": 0.0, "max_tokens": 3, "ignore_eos": True}
    asked = [
        SamplingParams(**greedy, logprobs=5),
        SamplingParams(**greedy, prompt_logprobs=3, prompt_logprobs_start=4),
        SamplingParams(pooling="mean"),
    ]
    core.handle([Submit(i, pack_ids(prompts[i]), asked[i]) for i in range(3)])
    outputs = {i: [] for i in range(3)}
    while core.has_work():
        for output in core.step().outputs:
            outputs[output.rid].append(output)
    chosen = [token for output in outputs[0] for token in unpack_ids(output.token_ids)]
    told = [each for output in outputs[0] for each in output.logprobs or []]
    expected = log_softmax(prompts[0] + chosen)[len(prompts[0]) - 1 : -1]
    assert_told(told, expected, chosen, 5)
    told = [each for output in outputs[1] for each in output.prompt_logprobs or []]
    assert_told(told, log_softmax(prompts[1])[3:-1], prompts[1][4:], 3)
    with torch.inference_mode():
        hidden = transformers_model().base_model(torch.tensor([prompts[2]])).last_hidden_state
    embedding = torch.frombuffer(bytearray(outputs[2][-1].embedding), dtype=torch.float32)
    assert (embedding - hidden[0].mean(0)).abs().max() < 1e-4


@torch.inference_mode()
def log_softmax(tokens: list[int]) -> torch.Tensor:
    return transformers_model()(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


def assert_told(told, expected: torch.Tensor, tokens: list[int], num: int) -> None:
    assert [each.token_id for each in told] == tokens
    for each, row in zip(told, expected, strict=True):
        assert each.logprob == pytest.approx(row[each.token_id].item(), abs=1e-3)
        assert each.top_ids == row.topk(num).indices.tolist()
        assert each.top_logprobs == pytest.approx(row.topk(num).values.tolist(), abs=1e-3)

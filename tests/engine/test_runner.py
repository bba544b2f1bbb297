"""The runner: copies, failing rows, what it reports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from tiny import GREEDY, LLAMA, greedy, prompts_of, random_model, tiny_runner

from lmserve.attention.base import CacheShape
from lmserve.engine.cache.tensors import KVCache
from lmserve.engine.numerics import available_cores, choose_numerics
from lmserve.engine.plan import BlockCopy, Row, StepPlan, StepResult
from lmserve.engine.runner import NOT_FINITE
from lmserve.errors import ModelError, SettingsError
from lmserve.settings import EngineSettings


@pytest.fixture(scope="module")
def runner():
    torch.set_num_threads(1)
    return tiny_runner(random_model(transformers.LlamaConfig(**LLAMA)))


def test_copies_read_every_source_before_a_target_is_written():
    shape = CacheShape(2, 2, 1, 4, 2)
    cache = KVCache(shape, 4, torch.float32, torch.device("cpu"))
    for layer, pair in enumerate(cache.layers):
        for part, tensor in enumerate(pair):
            for block in range(4):
                tensor[block] = 100 * layer + 10 * part + block
    cache.copy([BlockCopy(0, 1, 2), BlockCopy(1, 0, 2), BlockCopy(1, 3, 2)])
    for layer, pair in enumerate(cache.layers):
        for part, tensor in enumerate(pair):
            held = (tensor[:, 0, :, 0] - 100 * layer - 10 * part)[:, 0].tolist()
            assert held == [1.0, 0.0, 2.0, 1.0]


def test_a_copied_block_continues_like_its_source(runner):
    (prompt,) = prompts_of(97, [11], seed=3)
    expected = runner.run(StepPlan([Row(0, prompt, 0, [5, 9, 2], GREEDY)])).tokens[0]
    plan = StepPlan([Row(1, prompt[10:], 10, [5, 9, 7], GREEDY)], [BlockCopy(2, 7, 2)])
    assert runner.run(plan).tokens == {1: expected}


def test_rows_that_do_not_sample_give_nothing(runner):
    assert runner.run(StepPlan([Row(0, [1, 2, 3], 0, [0], None)])) == StepResult()
    assert runner.run(StepPlan([])) == StepResult()


def test_running_a_plan_again_gives_the_same(runner):
    plan = StepPlan([Row(i, [i, 2, 3], 0, [i], GREEDY) for i in range(4)])
    assert runner.run(plan) == runner.run(plan)


def test_a_row_that_is_not_finite_fails_alone_and_leaves_nothing_behind():
    module = random_model(transformers.LlamaConfig(**LLAMA))
    clean = tiny_runner(module)
    with torch.no_grad():
        module.model.embed_tokens.weight[13] = torch.inf
    runner = tiny_runner(module)
    rows = [Row(1, [1, 2, 13, 4, 5], 0, [3, 4], GREEDY), Row(2, [6, 7], 0, [8], GREEDY)]
    result = runner.run(StepPlan(rows))
    assert result.errors == {1: "the model's output is not finite"}
    assert result.tokens == clean.run(StepPlan(rows[1:])).tokens
    # its blocks are another's now, who must not see its numbers
    rows = [Row(3, [9, 8], 0, [4], GREEDY), Row(4, [5], 0, [3], GREEDY)]
    reused = StepPlan(rows, scrubs=[3, 4])
    assert runner.run(reused) == clean.run(reused)


def test_a_chunk_that_is_not_finite_fails_although_it_does_not_sample():
    module = random_model(transformers.LlamaConfig(**LLAMA))
    with torch.no_grad():
        module.model.embed_tokens.weight[13] = torch.nan
    runner = tiny_runner(module)
    rows = [Row(1, [1, 13], 0, [3], None), Row(2, [6, 7], 0, [8], None)]
    assert runner.run(StepPlan(rows)) == StepResult(errors={1: NOT_FINITE})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_goes_token_by_token_into_blocks_of_any_size(dtype):
    def made(block_size):
        return KVCache(CacheShape(2, 4, 2, 3, block_size), 8, dtype, torch.device("cpu"))

    few, many = made(4), made(3)
    for cache in (few, many):
        for pair in cache.layers:
            for tensor in pair:
                tensor.normal_()
    data = few.read([6, 2, 5], 10)
    assert len(data) == 10 * few.token_bytes
    token = few.layers[1][0][2, :, 3]  # token 7: its keys on the second layer
    at = 7 * few.token_bytes + 2 * token.nbytes
    assert (
        bytes(data[at : at + token.nbytes])
        == token.contiguous().view(torch.uint8).numpy().tobytes()
    )
    others = [pair[1][[0, 2, 4, 6]].clone() for pair in many.layers]
    many.write([7, 1, 5, 3], 10, bytearray(data))
    assert many.read([7, 1, 5, 3], 10) == data
    assert many.layers[0][0][3, :, 1:].eq(0).all()
    for before, pair in zip(others, many.layers, strict=True):
        assert before.equal(pair[1][[0, 2, 4, 6]])


def test_a_model_that_is_in_no_file_has_no_fingerprint(runner):
    with pytest.raises(ModelError, match="not loaded from files"):
        runner.kv_fingerprint()


def test_it_reports_what_it_runs(runner):
    assert (runner.architecture, runner.dtype, runner.device) == (
        "LlamaForCausalLM",
        "float32",
        "cpu",
    )
    assert (runner.attention, runner.weights, runner.vocab_size) == ("cpu", "float32", 97)
    runner.warm_up()
    assert len(greedy(runner, [[1]], 3)[0]) == 3


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(SettingsError, match="--device"):
        choose_numerics(EngineSettings(device=device))


def test_float32_asked_for_means_exact_weights():
    assert not choose_numerics(EngineSettings(device="cpu", dtype="float32")).packed
    assert choose_numerics(EngineSettings(device="cpu")).packed


def test_a_cpu_quota_limits_the_threads(tmp_path):
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    assert available_cores(quota) == 1
    quota.write_text("max 100000\n")
    assert available_cores(quota) == available_cores(tmp_path / "missing")

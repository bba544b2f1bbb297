"""KV from a file: the greedy answer is the recomputed one, token for token, in a new process."""

from __future__ import annotations

import concurrent.futures
import os

import pytest

from lmserve.bridge.child import ChildEngine
from lmserve.errors import EngineError
from lmserve.messages import Control, pack_ids
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings
from tests.e2e.test_golden_engine import NUM_TOKENS, answers, core_for, prompts_of

GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)


def move(core, verb, tokens, path):
    """A save or restore to its end, without a step. Its value, or its error."""
    core.handle([Control(1, verb, {"token_ids": pack_ids(tokens), "path": str(path)})])
    replies = []
    while core.kv.has_jobs:
        if core.kv._awaited is not None:
            concurrent.futures.wait([core.kv._awaited], 20)
        replies += core.do_chores()
    (reply,) = replies
    core.cache.check()
    return reply.value or reply.error


@pytest.mark.parametrize("family", ["llama", "mistral", "neox"])
def test_what_is_restored_answers_as_transformers_does(tiny_models, family, tmp_path):
    model, path = tiny_models(family), tmp_path / "a.kv"
    (prompt,) = prompts_of(7, [61])
    first = core_for(model)
    answers(first, [prompt])
    assert move(first, "save", prompt, path)["num_tokens"] == 61
    first.close()
    second = core_for(model, block_size=7)
    assert move(second, "restore", prompt, path) == {"num_tokens": 61, "num_known": 61}
    for asked, num_cached in ((prompt, 60), ([*prompt[:40], 5, 6, 7], 40)):
        tokens, cached = answers(second, [asked])
        assert tokens == [model.golden(asked, NUM_TOKENS)]
        assert cached == [num_cached]
    second.close()


def test_the_file_is_bound_to_weights_and_to_how_they_run(tiny_models, tmp_path):
    model, path = tiny_models("llama"), tmp_path / "a.kv"
    (prompt,) = prompts_of(8, [30])
    core = core_for(model)
    answers(core, [prompt])
    move(core, "save", prompt, path)
    core.close()
    for other, settings in (
        (tiny_models("mistral"), {}),
        (model, {"dtype": "bfloat16"}),
        (model, {"attention": "sdpa"}),
        (model, {"deterministic": True}),
    ):
        core = core_for(other, **settings)
        assert "another model" in move(core, "restore", prompt, path)
        assert core.cache.counts().free == core.cache.counts().total
        core.close()


def test_weights_changed_under_a_running_engine_are_found_out(tiny_models, tmp_path):
    model = tiny_models("llama")
    copy = tmp_path / "model"
    copy.mkdir()
    for file in model.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    core = core_for(type(model)(copy, model.module))
    (prompt,) = prompts_of(9, [30])
    answers(core, [prompt])
    weights = copy / "model.safetensors"
    found = weights.stat()
    os.utime(weights, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert "changed after it was loaded" in move(core, "save", prompt, tmp_path / "a.kv")
    assert not (tmp_path / "a.kv").exists()
    core.close()


async def ask(engine, prompt):
    mailbox = engine.submit(prompt, GREEDY)
    tokens, cached, delivery = [], 0, None
    while delivery is None or delivery.finish is None:
        delivery = await mailbox.get()
        tokens += delivery.token_ids
        cached = max(cached, delivery.num_cached_tokens)
    assert delivery.finish == "length"
    return tokens, cached


async def test_a_new_engine_process_goes_on_from_the_file(tiny_llama, tmp_path):
    settings = EngineSettings(
        model=str(tiny_llama.path), device="cpu", dtype="float32", threads=1, stuck_after_s=30.0
    )
    (prompt,) = prompts_of(10, [150])
    path, ids = str(tmp_path / "a.kv"), pack_ids(prompt)

    async def begin():
        engine = ChildEngine(settings)
        await engine.start()
        await engine.wait_ready()
        return engine

    engine = await begin()
    try:
        expected = await ask(engine, prompt)
        assert expected == (tiny_llama.golden(prompt, NUM_TOKENS), 0)
        pinned = await engine.control("pin", key="a", token_ids=ids)
        assert pinned["num_tokens"] == 150
        saved = await engine.control("save", timeout_s=50, token_ids=ids, path=path)
        assert saved["num_tokens"] == 150
    finally:
        await engine.close()
    engine = await begin()
    try:
        restored = await engine.control("restore", timeout_s=50, token_ids=ids, path=path)
        assert restored == {"num_tokens": 150, "num_known": 150}
        assert await ask(engine, prompt) == (expected[0], 149)
        (tmp_path / "a.kv").write_bytes(b"damaged")
        await engine.control("clear_cache")
        with pytest.raises(EngineError, match="ends too soon|not a KV file"):
            await engine.control("restore", timeout_s=50, token_ids=ids, path=path)
        assert await ask(engine, prompt) == (expected[0], 0)
        assert (await engine.control("check"))["held"] == 0
    finally:
        await engine.close()
    assert os.listdir(tmp_path) == ["a.kv"]

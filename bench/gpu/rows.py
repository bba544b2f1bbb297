"""The rows of the table: fixed prompts of random tokens, all there at once, answered greedily and
never ended early. Every engine gets the same token ids in the same manner, so that output tokens a
second compare directly. Standard library only, but for the engine: vLLM may have a Python of its
own."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.options import Options
from bench.gpu.record import Record
from bench.gpu.shapes import vocab_size, write_model

LMSERVE, VLLM = "lmserve", "vllm"
MAX_MODEL_LEN, MAX_BATCH_SIZE = 4096, 512
WARM_UP = (4, 64, 8)
ONCE_FROM = 512  # requests; fewer are run twice, and the better counts

Go = Callable[[int, int, int], int]  # requests, prompt tokens, output tokens: tokens made


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    counts: str = "out_tok_s"  # the figure that the table shows


CASES = (
    Case("bs1_128_256", 1, 128, 256),
    Case("bs32_128_256", 32, 128, 256),
    Case("bs256_128_256", 256, 128, 256),
    Case("thr512_512_256", 512, 512, 256),
    Case("prefill64_2048_8", 64, 2048, 8, "total_tok_s"),
)
TINY_CASES = (Case("bs1_8_6", 1, 8, 6), Case("prefill3_20_2", 3, 20, 2, "total_tok_s"))


def cases(options: Options) -> tuple[Case, ...]:
    return TINY_CASES if options.tiny else CASES


def prompts(count: int, length: int, vocab: int) -> list[list[int]]:
    rng = random.Random(count + length)
    return [[rng.randrange(1000, vocab - 1000) for _ in range(length)] for _ in range(count)]


def measure(options: Options, record: Record, *, engine: str, shape: str) -> None:
    began_s = time.perf_counter()
    model = write_model(Path(options.models), shape)
    start = {LMSERVE: lmserve, VLLM: vllm}[engine]
    go = start(model, vocab_size(shape), options, record)
    record.figure("load_s", round(time.perf_counter() - began_s, 1))
    go(*WARM_UP)
    for case in cases(options):
        with record.attempt(case.name):
            record.figure(case.name, best_of(go, case))


def best_of(go: Go, case: Case) -> dict[str, Any]:
    wanted = case.num_requests * case.output_tokens
    times = []
    for _ in range(2 if case.num_requests < ONCE_FROM else 1):
        began_s = time.perf_counter()
        made = go(case.num_requests, case.prompt_tokens, case.output_tokens)
        times.append(time.perf_counter() - began_s)
        if made != wanted:
            raise RuntimeError(f"{made} tokens were made, not {wanted}")
    took_s = min(times)
    total = wanted + case.num_requests * case.prompt_tokens
    return {
        "s": round(took_s, 4),
        "each_s": [round(each, 4) for each in times],
        "out_tok": wanted,
        "out_tok_s": round(wanted / took_s, 1),
        "total_tok_s": round(total / took_s, 1),
    }


# --- engines --------------------------------------------------------------------------------


def lmserve(model: Path, vocab: int, options: Options, record: Record) -> Go:
    import msgspec

    from bench.gpu.engine import settings_of
    from bench.gpu.logs import Said
    from lmserve import LLM, SamplingParams

    with Said("lmserve", logging.INFO) as said:  # which kernels were chosen, and why
        llm = LLM(settings=settings_of(model, options))
    record.figure("log", said.lines(""))
    told = msgspec.to_builtins(llm.info)
    record.figure("info", {name: value for name, value in told.items() if name != "chat_template"})

    def go(num_requests: int, prompt_tokens: int, output_tokens: int) -> int:
        sampling = SamplingParams(
            temperature=0, max_tokens=output_tokens, ignore_eos=True, detokenize=False
        )
        answers = llm.generate(prompts(num_requests, prompt_tokens, vocab), sampling)
        return sum(len(answer.token_ids) for answer in answers)

    return go


def vllm(model: Path, vocab: int, options: Options, record: Record) -> Go:
    import vllm as package
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    record.figure("version", package.__version__)
    llm = LLM(
        str(model),
        load_format="dummy",
        max_model_len=MAX_MODEL_LEN,
        gpu_memory_utilization=options.reserve,
        enable_prefix_caching=False,
        max_num_seqs=MAX_BATCH_SIZE,
    )

    def go(num_requests: int, prompt_tokens: int, output_tokens: int) -> int:
        sampling = SamplingParams(
            temperature=0, max_tokens=output_tokens, ignore_eos=True, detokenize=False
        )
        asked = [
            TokensPrompt(prompt_token_ids=each)
            for each in prompts(num_requests, prompt_tokens, vocab)
        ]
        answers = llm.generate(asked, sampling, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    return go

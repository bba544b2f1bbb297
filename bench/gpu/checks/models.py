"""Whole models: tiny random ones of each family, and SmolLM2-135M where it is given, against
transformers in float32.

In float32 each attention backend that takes it answers token for token the same, eagerly and by
graphs, with and without the overlap. In bfloat16 the error of log probabilities is at most half as
much again as that of transformers' own bfloat16, for the prompt and while decoding, and tokens are
the same up to the first step whose margin is below the largest error that transformers makes.
"""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.families import FAMILIES, Golden, goldens, write_family
from bench.gpu.logs import Said
from bench.gpu.options import Options
from bench.gpu.record import Record
from lmserve import LLM, SamplingParams
from lmserve.errors import SettingsError
from lmserve.messages import TokenLogprob
from lmserve.offline.answers import Answer
from lmserve.settings import EngineSettings

EXACT = ("triton", "paged")  # attention that takes float32
ROUNDED = ("flash_attn", "flash_attn_3", "varlen", "triton")
WHOLE = ("qwen3", "gemma2")  # families for which graphs and overlap are taken apart
AS_MUCH_AGAIN = 1.5
LENGTHS, NUM_TOKENS, VOCAB = (3, 17, 40, 130, 300), 40, 256
TINY_LENGTHS, TINY_TOKENS = (3, 21), 16
TOP = 20  # log probabilities of a step, which are compared

Sampled = list[list[int]]


@dataclass(frozen=True, slots=True)
class Way:
    """How the model is run."""

    attention: str
    dtype: str
    graphs: bool = True
    overlap: str = "on"

    @property
    def name(self) -> str:
        graphs = "graphs" if self.graphs else "eager"
        return f"{self.attention} {self.dtype} {graphs}, overlap {self.overlap}"


def check(options: Options, record: Record) -> None:
    lengths, num_tokens = (TINY_LENGTHS, TINY_TOKENS) if options.tiny else (LENGTHS, NUM_TOKENS)
    rng = random.Random(0)
    prompts = [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]
    without: set[str] = set()  # attention that cannot be had
    for family in WHOLE if options.tiny else FAMILIES:
        with record.attempt(family):
            path = write_family(Path(options.models), family)
            known = goldens(path, prompts, num_tokens, options.device)
            check_model(family, path, known, family in WHOLE, without, options, record)
    if options.smollm:
        path = Path(options.smollm)
        known = goldens(path, prompts, num_tokens, options.device)
        check_model("SmolLM2", path, known, True, without, options, record)
    record.figure("left out", sorted(without))


def check_model(
    title: str,
    path: Path,
    known: Sequence[Golden],
    whole: bool,
    without: set[str],
    options: Options,
    record: Record,
) -> None:
    first: Sampled | None = None
    for way in ways(whole, options):
        name = f"{title}: {way.name}"
        if way.attention in without:
            continue
        with record.attempt(name):
            try:
                llm = LLM(settings=_settings(path, way, options))
            except SettingsError as error:
                without.add(way.attention)
                record.figure(f"{way.attention}: left out", error.message)
                continue
            with llm, Said("lmserve.engine.graphs", logging.DEBUG) as said:
                if way.dtype == "bfloat16":
                    _check_rounded(name, llm, known, record)
                else:
                    _check_exact(name, llm, known, record)
                    sampled = _sampled(llm, known)
                    first = first or sampled
                    record.holds(f"{name}: sampled as by the first", sampled == first)
                captured = said.lines("captured")
                record.holds(f"{name}: graphs", bool(captured) == way.graphs, each=captured)
        gc.collect()  # its memory, for the next


def ways(whole: bool, options: Options) -> Iterator[Way]:
    exact = EXACT if options.cuda else EXACT[1:]
    for attention in exact if whole else exact[:1]:
        yield Way(attention, "float32")
        if whole:
            yield Way(attention, "float32", overlap="off")
            yield Way(attention, "float32", graphs=False)
            yield Way(attention, "float32", graphs=False, overlap="off")
    for attention in ROUNDED if options.cuda else EXACT[1:]:
        yield Way(attention, "bfloat16")
        if whole:
            yield Way(attention, "bfloat16", graphs=False, overlap="off")


def _settings(path: Path, way: Way, options: Options) -> EngineSettings:
    asked: dict[str, Any] = {
        "kernels": "twins" if way.attention == "paged" or not options.cuda else "triton",
        "attention": way.attention,
        "dtype": way.dtype,
        "graphs": way.graphs,
        "overlap": way.overlap,
        "threads": None if options.cuda else 1,
    }
    return EngineSettings(
        model=str(path),
        device=options.device,
        max_batch_size=8,
        max_step_tokens=64,  # prompts go in chunks, beside the decodes of others
        session_len=512,
        num_blocks=256,
        **asked,
    )


# --- float32 --------------------------------------------------------------------------------


def _check_exact(name: str, llm: LLM, known: Sequence[Golden], record: Record) -> None:
    """Twice: graphs are captured meanwhile, and the second time all beginnings are known."""
    for attempt in ("", ", again"):
        answers = llm.generate(
            [each.prompt for each in known], _greedy(len(known[0].tokens), detokenize=False)
        )
        equal = [
            answer.token_ids == each.tokens for answer, each in zip(answers, known, strict=True)
        ]
        record.holds(f"{name}: tokens{attempt}", all(equal), each=equal)


def _sampled(llm: LLM, known: Sequence[Golden]) -> Sampled:
    """Answers that depend on everything there is to depend on."""
    common: dict[str, Any] = {"max_tokens": len(known[0].tokens), "ignore_eos": True, "seed": 7}
    manners = (
        SamplingParams(temperature=1.0, **common),
        SamplingParams(temperature=0.8, top_p=0.9, top_k=40, min_p=0.01, **common),
        SamplingParams(temperature=0.7, repetition_penalty=1.2, frequency_penalty=0.3, **common),
        SamplingParams(temperature=0.0, presence_penalty=0.5, logit_bias={7: 3.0}, **common),
        SamplingParams(temperature=1.2, allowed_token_ids=tuple(range(60)), **common),
    )
    sampling = [manners[at % len(manners)] for at in range(len(known))]
    return [answer.token_ids for answer in llm.generate([each.prompt for each in known], sampling)]


# --- bfloat16 -------------------------------------------------------------------------------


def _check_rounded(name: str, llm: LLM, known: Sequence[Golden], record: Record) -> None:
    num_tokens = len(known[0].tokens)
    prompts = [each.prompt for each in known]
    answers = llm.generate(prompts, _greedy(num_tokens, logprobs=TOP))
    pairs = list(zip(answers, known, strict=True))
    same = [_num_same(answer.token_ids, each.tokens) for answer, each in pairs]
    _compare(
        f"{name}: decoding",
        [(answer.logprobs or [])[: count + 1] for answer, count in zip(answers, same, strict=True)],
        known,
        record,
    )
    largest = max(float((each.rounded - each.exact).abs().max()) for each in known)
    for at, (count, each) in enumerate(zip(same, known, strict=True)):
        margin = 0.0 if count == num_tokens else each.margins[count]
        record.check(f"{name}: tokens of prompt {at}", margin, largest, same=count)
    scored = llm.generate(
        [each.prompt + each.tokens for each in known],
        _greedy(1, prompt_logprobs=TOP, detokenize=False),
    )
    _compare(
        f"{name}: as a prompt",
        [_answer_part(*pair) for pair in zip(scored, known, strict=True)],
        known,
        record,
    )


def _answer_part(answer: Answer, known: Golden) -> list[TokenLogprob]:
    """Of the tokens that were an answer."""
    assert answer.prompt_logprobs is not None
    return answer.prompt_logprobs[len(known.prompt) - 1 :]


def _num_same(found: Sequence[int], expected: Sequence[int]) -> int:
    pairs = enumerate(zip(found, expected, strict=True))
    return next((at for at, (one, other) in pairs if one != other), len(expected))


def _compare(
    name: str, found: Sequence[Sequence[TokenLogprob]], known: Sequence[Golden], record: Record
) -> None:
    """Root mean squares over the likeliest tokens of the steps that ran the same tokens."""
    ours, theirs = [], []
    for steps, golden in zip(found, known, strict=True):
        for at, step in enumerate(steps):
            for token, logprob in zip(step.top_ids, step.top_logprobs, strict=True):
                exact = float(golden.exact[at, token])
                ours.append(logprob - exact)
                theirs.append(float(golden.rounded[at, token]) - exact)
    record.check(name, _rms(ours), AS_MUCH_AGAIN * _rms(theirs), steps=sum(map(len, found)))


def _rms(values: Sequence[float]) -> float:
    return (sum(value * value for value in values) / len(values)) ** 0.5 if values else float("nan")


def _greedy(num_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, **more)

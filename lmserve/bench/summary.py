"""The figures of one run, and how many of its requests met what was promised (goodput)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from lmserve.bench.client import Answer
from lmserve.bench.figures import percentiles
from lmserve.bench.load import Run
from lmserve.errors import SetupError

# What an objective (SLO) may limit, of one request, in milliseconds.
LEVELS: dict[str, Callable[[Answer], float]] = {
    "ttft": lambda answer: answer.ttft_s * 1000,
    "itl": lambda answer: max(answer.gaps, default=0.0) * 1000,  # the longest
    "tpot": lambda answer: answer.tpot_s * 1000,
    "e2e": lambda answer: answer.e2e_s * 1000,
}


@dataclass(frozen=True, slots=True)
class Figures:
    ok: int
    errors: int
    wall_s: float
    output_tok_s: float
    total_tok_s: float  # prompts too
    req_s: float
    prompt_tokens_mean: float
    cached_tokens_mean: float
    output_tokens_mean: float
    pieces_mean: float  # events with text: fewer than tokens where the server merges them
    counted_by: str  # usage, or pieces where the server told no usage
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]
    tpot_ms: dict[str, float]
    e2e_ms: dict[str, float]
    error_kinds: dict[str, int] = field(default_factory=dict)
    slo_ms: dict[str, float] = field(default_factory=dict)
    slo_met: float | None = None  # share of all requests, failed ones included
    goodput_req_s: float | None = None


def slo_from(texts: Iterable[str]) -> dict[str, float]:
    """From `ttft=2000`, milliseconds."""
    slo = {}
    for text in texts:
        name, _, limit = text.partition("=")
        try:
            slo[name] = float(limit)
        except ValueError:
            name = ""
        if name not in LEVELS or not slo[name] > 0:  # nan too
            known = ", ".join(LEVELS)
            raise SetupError(f"--slo {text!r}: write NAME=MILLISECONDS, NAME one of {known}")
    return slo


def summary(run: Run, slo: Mapping[str, float]) -> Figures:
    good = [answer for answer in run.answers if not answer.error]
    texts = [answer for answer in good if answer.num_pieces]  # others have no times of tokens
    output = sum(answer.output_tokens for answer in good)
    prompt = sum(answer.prompt_tokens for answer in good)
    errors = Counter(answer.error for answer in run.answers if answer.error)
    met = sum(_met(answer, slo) for answer in texts)
    return Figures(
        ok=len(good),
        errors=errors.total(),
        error_kinds=dict(errors),
        wall_s=run.wall_s,
        output_tok_s=output / run.wall_s,
        total_tok_s=(output + prompt) / run.wall_s,
        req_s=len(good) / run.wall_s,
        prompt_tokens_mean=_mean(prompt, good),
        cached_tokens_mean=_mean(sum(answer.cached_tokens for answer in good), good),
        output_tokens_mean=_mean(output, good),
        pieces_mean=_mean(sum(answer.num_pieces for answer in good), good),
        counted_by="usage" if all(answer.counted for answer in good) else "pieces",
        ttft_ms=percentiles([answer.ttft_s for answer in texts], scale=1e3),
        itl_ms=percentiles([gap for answer in texts for gap in answer.gaps], scale=1e3),
        tpot_ms=percentiles([a.tpot_s for a in texts if a.output_tokens > 1], scale=1e3),
        e2e_ms=percentiles([answer.e2e_s for answer in good], scale=1e3),
        slo_ms=dict(slo),
        slo_met=met / max(1, len(run.answers)) if slo else None,
        goodput_req_s=met / run.wall_s if slo else None,
    )


def _met(answer: Answer, slo: Mapping[str, float]) -> bool:
    return all(LEVELS[name](answer) <= limit for name, limit in slo.items())


def _mean(total: int, answers: list[Answer]) -> float:
    return total / len(answers) if answers else 0.0

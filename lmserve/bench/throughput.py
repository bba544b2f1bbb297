"""Tokens a second where many prompts are there at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lmserve.bench import offline
from lmserve.bench.offline import Work
from lmserve.bench.repetition import Round, measured
from lmserve.offline.llm import LLM

Figures = dict[str, float]
TITLES = {
    "output_tok_s": "output tok/s",
    "total_tok_s": "total tok/s",
    "req_s": "req/s",
    "wall_s": "wall s",
}


def measure(llm: LLM, work: Work, num_rounds: int, *, repeats: int) -> list[Round[Figures]]:
    """After one round to warm up."""
    _measure(llm, work, "warm-up")
    return measured(lambda name: _measure(llm, work, name), num_rounds, repeats=repeats)


def _measure(llm: LLM, work: Work, name: str) -> Figures:
    began_s = time.perf_counter()
    answers = offline.answers_to(llm, work, name)
    wall_s = time.perf_counter() - began_s
    prompt = sum(len(answer.prompt_token_ids) for answer in answers)
    output = sum(len(answer.token_ids) for answer in answers)
    return {
        "wall_s": wall_s,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "output_tok_s": output / wall_s,
        "total_tok_s": (prompt + output) / wall_s,
        "req_s": len(answers) / wall_s,
    }


def shown(rounds: Sequence[Round[Figures]]) -> str:
    return offline.shown(rounds, TITLES)


def told(rounds: Sequence[Round[Figures]]) -> dict[str, Any]:
    return offline.told(rounds, list(TITLES))

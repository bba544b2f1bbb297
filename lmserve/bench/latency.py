"""How long one batch of prompts waits: for its first tokens, for each further one, for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lmserve.bench import offline
from lmserve.bench.figures import PERCENTS, median, percentiles
from lmserve.bench.offline import Work
from lmserve.bench.repetition import Round, measured
from lmserve.bench.table import table
from lmserve.offline.answers import Answer
from lmserve.offline.llm import LLM

TITLES = {
    "ttft_ms": "TTFT ms, median",
    "tpot_ms": "TPOT ms, median",
    "step_ms": "step ms, median",
    "total_ms": "all ms",
}
OF_ALL = {
    "ttft_s": "time to first token",
    "tpot_s": "time per output token",
    "step_s": "step with a token",
    "total_s": "whole answer",
}


@dataclass(frozen=True, slots=True)
class Times:
    """Of one batch, in seconds."""

    ttft_s: list[float]  # an answer
    tpot_s: list[float]  # after the first token, an answer
    step_s: list[float]  # from one step that told tokens to the next
    total_s: list[float]  # an answer


def measure(llm: LLM, work: Work, num_rounds: int, *, repeats: int) -> list[Round[Times]]:
    """After one round to warm up."""
    offline.answers_to(llm, work, "warm-up")
    return measured(
        lambda name: _times(offline.answers_to(llm, work, name)), num_rounds, repeats=repeats
    )


def _times(answers: Sequence[Answer]) -> Times:
    steps = sorted({time_s for answer in answers for time_s in answer.token_times_s})
    return Times(
        [answer.ttft_s for answer in answers],
        [
            (answer.token_times_s[-1] - answer.ttft_s) / (len(answer.token_ids) - 1)
            for answer in answers
            if len(answer.token_ids) > 1
        ],
        [after - before for before, after in pairwise(steps)],
        [answer.total_s for answer in answers],
    )


def _figures(each: Round[Times]) -> Round[dict[str, float]]:
    times = each.result
    figures = {
        "ttft_ms": median(times.ttft_s) * 1e3,
        "tpot_ms": median(times.tpot_s) * 1e3,
        "step_ms": median(times.step_s) * 1e3,
        "total_ms": max(times.total_s) * 1e3,
    }
    return Round(figures, each.load, each.num_attempts)


def _all(rounds: Sequence[Round[Times]], name: str) -> list[float]:
    return [value for each in rounds for value in getattr(each.result, name)]


def shown(rounds: Sequence[Round[Times]]) -> str:
    rows = [offline.percentile_row(title, _all(rounds, name)) for name, title in OF_ALL.items()]
    headers = ["of all rounds, ms", *(f"p{percent}" for percent in PERCENTS), "mean", "count"]
    return f"{offline.shown(list(map(_figures, rounds)), TITLES)}\n\n{table(headers, rows)}"


def told(rounds: Sequence[Round[Times]]) -> dict[str, Any]:
    return offline.told(list(map(_figures, rounds)), list(TITLES)) | {
        f"all_{name.removesuffix('_s')}_ms": percentiles(_all(rounds, name), scale=1e3)
        for name in OF_ALL
    }

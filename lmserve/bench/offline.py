"""What the offline measurements have in common: prompts of one length, answered in one call."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lmserve.bench.figures import percentiles, spread
from lmserve.bench.machine import DISTURBED, NOTE
from lmserve.bench.repetition import Round
from lmserve.bench.table import Cell, table
from lmserve.bench.words import words
from lmserve.offline.answers import Answer
from lmserve.offline.llm import LLM
from lmserve.offline.sampling import SamplingParams
from lmserve.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Work:
    num_prompts: int
    prompt_tokens: int
    max_tokens: int
    temperature: float
    ignore_eos: bool
    seed: int


def answers_to(llm: LLM, work: Work, name: str) -> list[Answer]:
    """`name`: of this attempt; no two have the same prompts, so no KV is there already."""
    rng = random.Random(f"{work.seed}/{name}")
    prompts = [_prompt(llm.tokenizer, rng, work.prompt_tokens) for _ in range(work.num_prompts)]
    sampling = SamplingParams(
        temperature=work.temperature,
        max_tokens=work.max_tokens,
        ignore_eos=work.ignore_eos,
        seed=work.seed,
    )
    return llm.generate(prompts, sampling)


def _prompt(tokenizer: Tokenizer, rng: random.Random, num_tokens: int) -> list[int]:
    # a word has a token at least
    return tokenizer.encode(words(rng, num_tokens), add_special=True)[:num_tokens]


def told_of(llm: LLM) -> dict[str, Any]:
    """Of the model and how it is run, for the record."""
    info = llm.info
    names = (
        *("architecture", "num_parameters", "weights", "dtype", "device", "attention"),
        *("deterministic", "max_model_len", "max_batch_size", "block_size", "num_blocks"),
    )
    return {name: getattr(info, name) for name in names}


# --- of several rounds ----------------------------------------------------------------------


def shown(rounds: Sequence[Round[Mapping[str, float]]], titles: Mapping[str, str]) -> str:
    """A row a round, and one of their medians, of the figures that have a title."""
    columns = {name: [each.result[name] for each in rounds] for name in titles}
    rows: list[list[Cell]] = [
        [str(number), *(values[number - 1] for values in columns.values()), _others(each)]
        for number, each in enumerate(rounds, 1)
    ]
    middles = [spread(values) for values in columns.values()]
    rows.append(["median", *(each["median"] for each in middles), ""])
    rows.append(["spread", *(f"{each['spread']:.1%}" for each in middles), ""])
    text = table(["round", *titles.values(), "other work, cores"], rows)
    return f"{text}\n{NOTE}" if any(each.load.is_disturbed for each in rounds) else text


def _others(each: Round[Mapping[str, float]]) -> str:
    mark = DISTURBED if each.load.is_disturbed else ""
    tries = f" ({each.num_attempts} attempts)" if each.num_attempts > 1 else ""
    return f"{each.load.disturbance:.2f}{mark}{tries}"


def told(rounds: Sequence[Round[Mapping[str, float]]], names: Sequence[str]) -> dict[str, Any]:
    """For the record: each round, and of these figures median and spread."""
    return {
        "rounds": [
            {**each.result, "load": each.load.as_dict(), "num_attempts": each.num_attempts}
            for each in rounds
        ],
        **{name: spread([each.result[name] for each in rounds]) for name in names},
    }


def percentile_row(title: str, values: Sequence[float]) -> list[Cell]:
    """In milliseconds."""
    return [title, *percentiles(values, scale=1e3).values(), len(values)]


def arguments(work: Work, **others: Any) -> dict[str, Any]:
    return asdict(work) | others

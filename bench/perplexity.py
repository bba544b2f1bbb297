#!/usr/bin/env python3
"""How well each path predicts a text, beside transformers in bfloat16 with the same weights.

    .venv/bin/python bench/perplexity.py                        # what runs on this processor
    .venv/bin/python bench/perplexity.py --paths torch avx2 --contexts 2 --json out.json
    .venv/bin/python bench/perplexity.py --paths 'twins fp8' 'twins awq' --contexts 2

The text is cut into contexts, and each token but a context's first is predicted from those
before it, by the engine's own runner: in chunks of a prefill (`prefill`), several contexts side
by side in chunks of uneven sizes (`mixed`), and one token a step (`decode`), which is slow and so
for the first contexts only. A ratio is of the perplexities on the same tokens, beside it its
standard error.
"""

from __future__ import annotations

import argparse
import atexit
import itertools
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # where this is run as a file
from bench.quantise import FORMATS, write
from lmserve.engine.loader import load_runner
from lmserve.engine.plan import PromptShare, Row, StepPlan
from lmserve.engine.runner import Runner
from lmserve.errors import SetupError
from lmserve.settings import EngineSettings
from lmserve.weights import files
from lmserve.weights.checkpoint import open_checkpoint

TEXT = Path(__file__).parent / "data" / "perplexity.txt"
EXACT = "transformers float32"
REFERENCE = "transformers bfloat16"
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "deterministic": {"deterministic": True},
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
}
PATHS = {
    f"{kernels} {name}".strip(): {"kernels": kernels, **options}
    for kernels in ("torch", "avx2", "avx512", "amx")
    for name, options in OPTIONS.items()
}
PROCESSOR = list(PATHS)
TWINS: dict[str, dict[str, Any]] = {
    "": {},
    "fp8": {"quantization": "fp8"},
    "kv-fp8": {"kv_cache_dtype": "fp8"},
}
PATHS |= {f"twins {name}".strip(): {"kernels": "twins", **TWINS[name]} for name in TWINS}
# the model is quantised first, as `bench/quantise.py` does it
PATHS |= {
    f"{kernels} {form}": {"kernels": kernels} for kernels in ("twins", "avx2") for form in FORMATS
}
PREFILL, DECODE, MIXED = (512,), (1,), (1, 7, 64, 2, 33, 1, 200, 16, 3)  # sizes of chunks

Contexts = list[list[int]]


@dataclass(frozen=True, slots=True)
class Figure:
    path: str
    fed: str
    num_tokens: int
    perplexity: float
    ratio: float  # to the reference on the same tokens
    error: float  # standard error of the ratio
    seconds: float


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    cache = files.cache_dir(args.cache_dir)
    model = files.resolve(args.model, cache).path
    contexts = read(args.text, model, cache, args.context)[: args.contexts]
    print(f"{model.name}, {args.text.name}: {len(contexts)} contexts of {args.context} tokens\n")
    print("| path | fed | tokens | perplexity | ratio to bfloat16 | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    reference = of_transformers(model, torch.bfloat16, contexts)
    figures: list[Figure] = []
    for path in [REFERENCE, *args.paths]:
        started = time.monotonic()
        for fed, losses in results(path, model, contexts, args, reference):
            took = time.monotonic() - started
            figures.append(compare(path, fed, losses, reference, took))
            show(figures[-1])
            started = time.monotonic()
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in figures], indent=1) + "\n")


def results(
    path: str, model: Path, contexts: Contexts, args: argparse.Namespace, reference: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """The losses of a path, one way of feeding it after another."""
    if path == REFERENCE:
        yield "whole", reference
    elif path == EXACT:
        yield "whole", of_transformers(model, torch.float32, contexts)
    else:
        form = path.partition(" ")[2]
        if form in FORMATS:
            model = quantised(model, form, files.cache_dir(args.cache_dir))
        try:
            runner = runner_of(model, args.context, PATHS[path], args.device, args.threads)
        except SetupError as error:  # this machine lacks the path
            print(f"| {path} | {error.message} |", flush=True)
            return
        yield "prefill", measure(runner, contexts, PREFILL)
        yield "mixed", measure(runner, contexts, MIXED, num_rows=8)
        if args.decoded:
            yield "decode", measure(runner, contexts[: args.decoded], DECODE)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="as for lmserve; default: the built-in model")
    parser.add_argument("--cache-dir", help="as for lmserve")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--context", type=int, default=1024, help="tokens of a context")
    parser.add_argument("--contexts", type=int, help="the first so many; default: all")
    parser.add_argument("--decoded", type=int, default=1, help="contexts to decode as well")
    every = [EXACT, *PATHS]
    parser.add_argument("--paths", nargs="+", choices=every, default=[EXACT, *PROCESSOR])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


def read(text: Path, model: Path, cache: Path, context: int) -> Contexts:
    from tokenizers import Tokenizer

    assets = open_checkpoint(model, cache).tokenizer_assets()
    tokenizer = Tokenizer.from_file(str(assets.tokenizer_file))
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    return [ids[start : start + context] for start in range(0, len(ids) - 1, context)]


@torch.inference_mode()
def of_transformers(model: Path, dtype: torch.dtype, contexts: Contexts) -> torch.Tensor:
    import transformers

    source: dict[str, Any] = {}
    if model.is_file():
        dense = transformers.GgufConfig(dequantize=True)
        source = {"gguf_file": model.name, "quantization_config": dense}
    module = transformers.AutoModelForCausalLM.from_pretrained(
        model if model.is_dir() else model.parent, dtype=dtype, **source
    ).eval()
    losses = []
    for tokens in contexts:
        ids = torch.tensor(tokens)
        logits = module(ids[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
    return torch.cat(losses)


def quantised(model: Path, form: str, cache: Path) -> Path:
    """A directory of it, gone when the process ends."""
    out = Path(tempfile.mkdtemp(prefix="lmserve-perplexity-"))
    atexit.register(shutil.rmtree, out)
    write(open_checkpoint(model, cache), out / form, form)
    return out / form


def runner_of(
    model: Path, context: int, options: dict[str, Any], device: str, threads: int
) -> Runner:
    settings = EngineSettings(
        model=str(model), device=device, session_len=context, threads=threads, **options
    )
    return load_runner(settings, lambda stage: None)


def measure(
    runner: Runner, contexts: Contexts, sizes: Sequence[int], num_rows: int = 1
) -> torch.Tensor:
    """The loss of each token, context after context, fed in chunks of these sizes in turn."""
    groups = (contexts[at : at + num_rows] for at in range(0, len(contexts), num_rows))
    return torch.cat([feed(runner, group, sizes) for group in groups])


def feed(runner: Runner, contexts: Contexts, sizes: Sequence[int]) -> torch.Tensor:
    """As `measure`, contexts side by side, a row each."""
    width = -(-max(map(len, contexts)) // runner.block_size)
    losses: list[list[float]] = [[] for _ in contexts]
    done = [0] * len(contexts)
    size = itertools.cycle(sizes)
    while True:
        rows = [
            row_of(at, tokens, done[at], next(size), range(at * width, (at + 1) * width))
            for at, tokens in enumerate(contexts)
            if done[at] < len(tokens)
        ]
        if not rows:
            return -torch.tensor(list(itertools.chain.from_iterable(losses)))
        result = runner.run(StepPlan(rows))
        assert not result.errors, result.errors
        for row in rows:
            done[row.rid] = row.context_len
            scored = result.prompt_logprobs.get(row.rid, [])
            losses[row.rid] += [each.logprob for each in scored]


def row_of(rid: int, tokens: list[int], start: int, size: int, blocks: Sequence[int]) -> Row:
    end = min(start + size, len(tokens))
    scored = range(start + 1, min(end + 1, len(tokens)))
    share = PromptShare(scored, 0, range(0))
    return Row(rid, tokens[start:end], start, blocks, None, history=tokens, prompt=share)


def compare(
    path: str, fed: str, losses: torch.Tensor, reference: torch.Tensor, seconds: float
) -> Figure:
    change = losses - reference[: len(losses)]
    ratio = change.mean().exp().item()
    error = ratio * change.std().item() / math.sqrt(len(losses))
    return Figure(path, fed, len(losses), losses.mean().exp().item(), ratio, error, seconds)


def show(figure: Figure) -> None:
    print(
        f"| {figure.path} | {figure.fed} | {figure.num_tokens} | {figure.perplexity:.4f} "
        f"| {figure.ratio:.4f} ± {figure.error:.4f} | {figure.seconds:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()

"""Every attention backend that can be had here, against plain attention in float64. In bfloat16 its
error may be half as much again as that of torch's own attention in bfloat16, which is checked with
the same numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from bench.gpu.options import Options
from bench.gpu.record import Record, said
from lmserve.attention.base import AttentionBackend, AttentionBatch, AttentionOptions, CacheShape
from lmserve.attention.paged import PagedAttention
from lmserve.attention.paged_torch import PagedTorchAttention
from lmserve.attention.probe import probe
from lmserve.attention.select import ON_DEVICE, Needs
from lmserve.attention.triton_paged import TritonAttention
from lmserve.fused.base import FP8

ALWAYS = (TritonAttention, PagedTorchAttention)  # need no package but torch, no luck but a GPU
AS_MUCH_AGAIN = 1.5
FLOAT32_ERROR = 2e-5  # of the norm: sums in another order, but no TF32
STALE = 50.0  # what lies in a row's last block behind its context


@dataclass(frozen=True, slots=True)
class Heads:
    heads: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.heads}/{self.kv_heads} heads of {self.head_dim}"


@dataclass(frozen=True, slots=True)
class Rows:
    name: str
    starts: Sequence[int]
    lens: Sequence[int]


HEADS = (Heads(32, 8, 128), Heads(9, 3, 64), Heads(8, 4, 256))
ROWS = (
    Rows("decode", (0, 6, 15, 256, 999, 2047), (1,) * 6),
    Rows("one long decode", (16_000,), (1,)),
    Rows("prefill", (0, 0, 0), (5, 300, 1024)),
    Rows("chunk", (300, 64), (130, 64)),
    Rows("mixed", (40, 1000, 255, 513, 0), (1, 1, 1, 200, 33)),
)
TINY_HEADS = (Heads(4, 2, 16),)
TINY_ROWS = (
    Rows("decode", (0, 6, 15, 40), (1,) * 4),
    Rows("mixed", (16, 3, 0), (1, 9, 4)),
)


@dataclass(slots=True)
class Problem:
    """Rows with their whole contexts, each (context, kv heads, head_dim)."""

    rows: Rows
    q: torch.Tensor  # (T, heads, head_dim)
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def check(options: Options, record: Record) -> None:
    left_out: Counter[str] = Counter()  # kinds of problems, by backend and reason
    kinds = [kind for kind in ON_DEVICE if issubclass(kind, PagedAttention)]
    for kind, (heads, dtype, how) in itertools.product(kinds, problems(options)):
        title = f"{title_of(kind)}, {heads}, {_of(dtype)}{_differs(how)}"
        with record.attempt(title):
            needs = _needs(heads, dtype, how, options)
            reason = _check_kind(title, kind, needs, how, options, record)
            if reason is not None:
                left_out[f"{title_of(kind)}: {reason}"] += 1
    record.figure("left out", left_out)


def problems(options: Options) -> list[tuple[Heads, torch.dtype, AttentionOptions]]:
    """Windows and caps with the first heads, the other heads without: each is kernels to compile.
    The type is the cache's."""
    first, *others = TINY_HEADS if options.tiny else HEADS
    plain = [(each, AttentionOptions(each.head_dim**-0.5)) for each in (first, *others)]
    changed = [replace(plain[0][1], window=13), replace(plain[0][1], softcap=2.0)]
    every = [*plain[:1], *((first, how) for how in changed), *plain[1:]]
    found = [(heads, torch.float32, how) for heads, how in every[:3]]
    if options.cuda:
        found += [(heads, torch.bfloat16, how) for heads, how in every]
        found.append((first, FP8, plain[0][1]))
    return found


def _needs(heads: Heads, dtype: torch.dtype, how: AttentionOptions, options: Options) -> Needs:
    return Needs(
        shape=CacheShape(1, heads.heads, heads.kv_heads, heads.head_dim, 0),
        dtype=dtype,
        device=torch.device(options.device),
        deterministic=False,
        kernels=None,
        options=(how,),
        paged=True,
    )


def title_of(kind: type[AttentionBackend]) -> str:
    return f"{kind.name} ({kind.__name__})"


def _check_kind(
    title: str,
    kind: type[PagedAttention],
    needs: Needs,
    how: AttentionOptions,
    options: Options,
    record: Record,
) -> str | None:
    """Why it is left out. What is always there may not be."""
    reason = needs.refusal(kind)
    if reason is not None:
        return reason
    backend = needs.build(kind)
    assert isinstance(backend, PagedAttention)
    try:
        probe(backend, (how,))
    except Exception as error:
        if kind in ALWAYS:
            raise
        return f"it failed its probe: {said(error)}"
    for rows in TINY_ROWS if options.tiny else ROWS:
        name = f"{title}: {rows.name}"
        with record.attempt(name):
            problem = _problem(rows, backend.shape, backend.dtype, backend.device)
            _check_rows(name, backend, problem, how, record)
    return None


def _differs(how: AttentionOptions) -> str:
    window = f", window {how.window}" if how.window else ""
    return window + (f", softcap {how.softcap}" if how.softcap else "")


def _check_rows(
    name: str,
    backend: PagedAttention,
    problem: Problem,
    how: AttentionOptions,
    record: Record,
) -> None:
    exact = _oracle(problem, how, torch.float64)
    bound = FLOAT32_ERROR
    if problem.q.dtype != torch.float32:
        bound = AS_MUCH_AGAIN * _error(_oracle(problem, how, problem.q.dtype), exact)
    found = _of_backend(backend, problem, how)
    record.check(name, _error(found, exact), bound)
    if set(problem.rows.lens) == {1}:
        again = _of_backend(backend, problem, how, fixed=True)
        record.check(f"{name}, fixed tensors", _error(again, exact), bound)


def _of_backend(
    backend: PagedAttention, problem: Problem, how: AttentionOptions, *, fixed: bool = False
) -> torch.Tensor:
    """`fixed`: as a graph has it, padded by a row of its own spare block."""
    batch, cache = _cached(backend, problem)
    backend.bind([cache])
    metadata = backend.prepare(batch)
    q, k, v = (
        problem.q,
        torch.cat([of[start:] for of, start in zip(problem.keys, batch.starts, strict=True)]),
        torch.cat([of[start:] for of, start in zip(problem.values, batch.starts, strict=True)]),
    )
    if not fixed:
        return backend.forward(q, k, v, 0, how, metadata)
    made = backend.prepare(batch)
    spare = len(cache[0]) - 1
    slots = F.pad(made.slots, (0, 1), value=spare * backend.shape.block_size)
    table = F.pad(made.table, (0, 3, 0, 1), value=spare)
    lens = F.pad(made.context_lens, (0, 1), value=1)
    longest = backend.shape.block_size * table.shape[1]
    padded = backend.decode_metadata(slots, table, lens, longest)
    q, k, v = (torch.cat((each, torch.ones_like(each[:1]))) for each in (q, k, v))
    return backend.forward(q, k, v, 0, how, padded)[:-1]


# --- numbers --------------------------------------------------------------------------------


def _problem(rows: Rows, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> Problem:
    """What is cached in float8 is rounded to it here, and asked in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    asked = torch.bfloat16 if dtype == FP8 else dtype

    def randn(count: int, heads: int) -> torch.Tensor:
        numbers = torch.randn(count, heads, shape.head_dim, generator=generator)
        return numbers.to(device, dtype).to(asked)

    contexts = [start + length for start, length in zip(rows.starts, rows.lens, strict=True)]
    return Problem(
        rows,
        randn(sum(rows.lens), shape.num_heads),
        [randn(count, shape.num_kv_heads) for count in contexts],
        [randn(count, shape.num_kv_heads) for count in contexts],
    )


def _cached(
    backend: PagedAttention, problem: Problem
) -> tuple[AttentionBatch, tuple[torch.Tensor, torch.Tensor]]:
    """The contexts less the step's own tokens in blocks in no order, tokens first. No row may see
    the blocks of nobody, which are not numbers; the very last is the spare one of padding rows."""
    size, rows = backend.shape.block_size, problem.rows
    needed = [-(-len(keys) // size) for keys in problem.keys]
    order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(1)).tolist()
    tables = [[order.pop() for _ in range(count)] for count in needed]
    caches = []
    for contexts in (problem.keys, problem.values):
        shape = (sum(needed) + 2, size, *contexts[0].shape[1:])
        cache = contexts[0].new_full(shape, float("nan"))
        cache[-1] = 1.0
        for table, start, context in zip(tables, rows.starts, contexts, strict=True):
            held = context.new_full((len(table) * size, *shape[2:]), STALE)
            held[:start] = context[:start]
            cache[table] = held.view(len(table), *shape[1:])
        caches.append(cache.to(backend.dtype))
    return AttentionBatch(rows.starts, rows.lens, tables), (caches[0], caches[1])


def _oracle(problem: Problem, how: AttentionOptions, dtype: torch.dtype) -> torch.Tensor:
    """Row by row, in this type; in bfloat16 without a softcap by torch's own attention."""
    parts = []
    queries = problem.q.split(list(problem.rows.lens))
    rows = zip(queries, problem.keys, problem.values, problem.rows.starts, strict=True)
    for q, k, v, start in rows:
        group = q.shape[1] // k.shape[1]
        q, k, v = (each.transpose(0, 1).to(dtype) for each in (q, k, v))
        k, v = (each.repeat_interleave(group, 0) for each in (k, v))
        at = torch.arange(k.shape[1], device=q.device)
        behind = torch.arange(start, k.shape[1], device=q.device)[:, None] - at
        seen = (behind >= 0) & (behind < (how.window or len(at)))
        if how.softcap is None and dtype == torch.bfloat16:
            out = F.scaled_dot_product_attention(q, k, v, seen, scale=how.scale)
        else:
            scores = q @ k.transpose(1, 2) * how.scale
            if how.softcap is not None:
                scores = how.softcap * torch.tanh(scores / how.softcap)
            out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    difference = torch.linalg.vector_norm(found.double() - exact)
    return float(difference / torch.linalg.vector_norm(exact))


def _of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

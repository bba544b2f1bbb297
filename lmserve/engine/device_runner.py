"""Runs plans on a device without waiting for it: a step is launched while the one before it is
still computed. Decode steps are replayed as graphs, sampling inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from lmserve.attention.paged import PagedAttention
from lmserve.device.base import Fetched
from lmserve.engine.base_runner import BaseRunner
from lmserve.engine.device_rows import DeviceRows, Slot
from lmserve.engine.grammars import Masks
from lmserve.engine.graphs import DecodeGraphs
from lmserve.engine.inputs import build_inputs
from lmserve.engine.plan import NONE_LEFT, Row, StepPlan, StepResult
from lmserve.engine.prompts import NOT_FINITE, read_prompts
from lmserve.engine.sampling.device import DeviceSampler
from lmserve.engine.sampling.logprobs import DeviceLogprobs
from lmserve.fused.sampling_base import Chosen
from lmserve.sampling import SamplingParams

# How a step's tokens are chosen. `late`: by what the host knows once the step before is read.
Kind: TypeAlias = Literal["greedy", "drawn", "late"]
# With penalties and without, drawn late and at once.
REHEARSED = (
    SamplingParams(repetition_penalty=1.1, logprobs=0),
    SamplingParams(repetition_penalty=1.1),
    SamplingParams(logprobs=0),
)
PADDING = (1, 0)  # context and token of a graph's padding rows


@dataclass(slots=True)
class Drawn:
    """Of B rows, on the device."""

    logits: torch.Tensor | None  # (B, vocab), where the tokens are still to be drawn
    # (3, B): tokens, whether any may come, whether all was finite; the last alone before drawing
    told: torch.Tensor


class DeviceRunner(BaseRunner):
    """`max_rows` are the most that a step has."""

    _backend: PagedAttention

    def __init__(self, *args: Any, max_rows: int, graphs: bool, overlaps: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.overlaps = overlaps
        device, attention = self._device, self._backend
        max_blocks = -(-self.max_model_len // self.block_size)
        self.rows = DeviceRows(max_rows, max_blocks, self.num_blocks, device)
        fused = self._numerics.fused
        self.sampler = DeviceSampler(
            max_rows, self.vocab_size, device, "twins" if fused is None else fused.name
        )
        self._padding = np.array([[max_rows], *([each] for each in PADDING)], dtype=np.int64)
        # of a decode step: slot, context and token (or UNREAD) of each row
        self._inputs = torch.zeros((3, max_rows), dtype=torch.int64, device=device.torch_device)
        self._rehearsals = [*REHEARSED]  # the last comes first
        self._late_logits: torch.Tensor | None = None  # (max_rows, vocab), of captured late steps
        self._graphs: DecodeGraphs[Kind, Drawn] | None = None
        if graphs and self._model.capturable and attention.capturable:
            self._graphs = DecodeGraphs(
                device, self._build, max_rows=max_rows, kinds=["greedy", "drawn"]
            )
        self._generation = self.sampler.generation

    # --- a step ---------------------------------------------------------------------------

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        self._cache.scrub(plan.scrubs)
        self._cache.copy(plan.copies)
        slots = self.rows.place(plan.rows)
        step = LaunchedStep(self, plan, slots)
        if not plan.rows:
            return step
        step.kind = self._assign(plan.rows, slots)
        if _is_decode(plan):
            with self.trace.span("forward"):
                step.drawn = self._decode(plan.rows, slots, step.kind)
        else:
            self._run_mixed(step)
        if step.drawn is not None and step.drawn.logits is None:
            step.fetch()
        return step

    def _assign(self, rows: Sequence[Row], slots: Sequence[Slot]) -> Kind:
        """Brings the rows' settings to the device where it does not have them."""
        kind: Kind = "greedy"
        for row, slot in zip(rows, slots, strict=True):
            if row.sampling is None:
                continue
            if self._is_late(row, slot):
                kind = "late"
            elif kind == "greedy":
                kind = self.sampler.kind(row)
        if kind != "late":
            self.assign(rows, slots)
        return kind

    def _is_late(self, row: Row, slot: Slot) -> bool:
        assert row.sampling is not None
        if self.sampler.kind(row) == "late" or row.num_proposed:
            return True
        if row.sampling.thinking is not None or row.sampling.logprobs is not None:
            return True
        # its counts are made of a history that is not complete yet
        return row.is_unread and row.sampling.penalised and not _goes_on(row, slot)

    def assign(self, rows: Sequence[Row], slots: Sequence[Slot]) -> None:
        for row, slot in zip(rows, slots, strict=True):
            if row.sampling is None:
                continue
            if not _goes_on(row, slot):
                self.sampler.assign(slot.index, row)
                slot.sampling = row.sampling
            # of several places, what is kept is not known yet
            slot.next_index = -1 if row.num_proposed else row.context_len + 1
        self.sampler.send()
        if self.sampler.generation != self._generation:
            self._generation = self.sampler.generation
            if self._graphs is not None:
                self._graphs.invalidate()

    def _decode(self, rows: Sequence[Row], slots: Sequence[Slot], kind: Kind) -> Drawn:
        num_rows = len(rows)
        numbers = np.repeat(self._padding, self._inputs.shape[1], axis=1)
        numbers[0, :num_rows] = [slot.index for slot in slots]
        numbers[1, :num_rows] = [row.context_len for row in rows]
        numbers[2, :num_rows] = [row.token_ids[0] for row in rows]
        self._inputs.copy_(self._device.upload(numbers))
        found = None if self._graphs is None else self._graphs.find(num_rows, kind)
        if found is None:
            return self._run_decode(num_rows, kind)
        found.graph.replay()
        return found.graph.out

    def _build(self, num_rows: int, kind: Kind) -> Callable[[], Drawn]:
        """What a graph captures. Meanwhile all rows are padding."""
        self._inputs.copy_(
            self._device.upload(np.repeat(self._padding, self._inputs.shape[1], axis=1))
        )
        if kind == "late":
            if self._late_logits is None:
                size = (self._inputs.shape[1], self.vocab_size)
                self._late_logits = self._inputs.new_empty(size, dtype=self._numerics.dtype)
            kept = self._late_logits[:num_rows]
            return lambda: self._run_late(num_rows, kept)
        return lambda: self._run_decode(num_rows, kind)

    def _run_late(self, num_rows: int, kept: torch.Tensor) -> Drawn:
        """With logits that all graphs share: what a graph returns is kept for its whole life."""
        drawn = self._run_decode(num_rows, "late")
        assert drawn.logits is not None
        kept.copy_(drawn.logits)
        return Drawn(kept, drawn.told)

    def _run_decode(self, num_rows: int, kind: Kind) -> Drawn:
        """Of the inputs' first rows. Nothing here looks at the host, or is looked at by it."""
        slots, contexts, given = self._inputs[:, :num_rows].unbind()
        last = self.rows.last_tokens.index_select(0, slots)
        tokens, positions = torch.where(given < 0, last, given), contexts - 1
        table = self.rows.tables.index_select(0, slots)
        block = table.gather(1, (positions // self.block_size)[:, None]).squeeze(1)
        metadata = self._backend.decode_metadata(
            block.long() * self.block_size + positions % self.block_size,
            table,
            contexts.int(),
            self.max_model_len,
        )
        hidden, finite = self._model.forward(tokens, positions, metadata)
        logits = self._model.logits(hidden)
        if kind == "late":
            return Drawn(logits, finite[None].long())
        return self.keep(slots, self.sampler.draw(logits, slots, contexts, kind), finite)

    def keep(self, slots: torch.Tensor, chosen: Chosen, finite: torch.Tensor) -> Drawn:
        """The tokens are there for the next step, whatever the host makes of them."""
        self.rows.last_tokens.index_copy_(0, slots, chosen.tokens)
        told = (chosen.tokens, chosen.alive.long(), (finite & chosen.finite).long())
        return Drawn(None, torch.stack(told))

    def _run_mixed(self, step: LaunchedStep) -> None:
        """Rows of any lengths, one kernel after another."""
        rows, slots = step.plan.rows, step.slots
        with self.trace.span("inputs"):
            inputs = build_inputs(step.plan, self._numerics.device, self._device.upload_together)
            metadata = self._backend.prepare(inputs.batch)
            tokens = self._with_last(rows, slots, inputs.token_ids)
        with self.trace.span("forward"):
            step.hidden, step.finite = self._model.forward(tokens, inputs.positions, metadata)
        if not inputs.sample.numel():
            return
        with self.trace.span("logits"):
            logits = self._model.logits(step.hidden.index_select(0, inputs.sample))
        finite = torch.ones(len(logits), dtype=torch.bool, device=logits.device)  # told apart
        if step.kind == "late":
            step.drawn = Drawn(logits, finite[None].long())
            return
        places, contexts = step.places(rows)
        chosen = self.sampler.draw(logits, places, contexts, step.kind)
        step.drawn = self.keep(places, chosen, finite)

    def _with_last(
        self, rows: Sequence[Row], slots: Sequence[Slot], token_ids: torch.Tensor
    ) -> torch.Tensor:
        """With the tokens that nobody has read yet."""
        if not any(row.is_unread for row in rows):
            return token_ids
        lens = [len(row.token_ids) for row in rows]
        index = self._device.upload(np.repeat([slot.index for slot in slots], lens))
        return torch.where(token_ids < 0, self.rows.last_tokens.index_select(0, index), token_ids)

    # --- between steps --------------------------------------------------------------------

    def wants_chore(self, *, idle: bool) -> bool:
        graphs = self._graphs
        if idle and self._rehearsals:
            return True
        return graphs is not None and (graphs.has_chores if idle else graphs.has_wanted)

    @torch.inference_mode()
    def do_chore(self) -> None:
        graphs = self._graphs
        if self._rehearsals and (graphs is None or not graphs.has_wanted):
            self._rehearse(self._rehearsals.pop())
        elif graphs is not None:
            graphs.do_chore()

    def _rehearse(self, sampling: SamplingParams) -> None:
        """A step of a kind that few ask for, in the block that belongs to nobody: whoever asks
        first does not wait for its kernels to be compiled."""
        try:
            self.run(StepPlan([Row(-1, [0], 0, [self.num_blocks], sampling, [0])]))
        except Exception as error:
            if not self.is_out_of_memory(error):
                raise
            self._rehearsals = []
            self.release_cached()


@dataclass(slots=True)
class LaunchedStep:
    """What a step left on the device, and what of it comes to the host."""

    runner: DeviceRunner
    plan: StepPlan
    slots: list[Slot]
    kind: Kind = "greedy"
    drawn: Drawn | None = None  # of the rows that sample
    hidden: torch.Tensor | None = None  # (T, hidden) of a mixed step, and whether each is finite
    finite: torch.Tensor | None = None
    logprobs: DeviceLogprobs | None = None
    fetched: Fetched | None = None

    @torch.inference_mode()
    def draw(self, rows: Sequence[Row], masks: Masks | None) -> None:
        runner, drawn = self.runner, self.drawn
        if drawn is None or drawn.logits is None:
            if self.fetched is None:
                self.fetch()
            return
        with runner.trace.span("sample"):
            runner.assign(rows, self.slots)
            slots, contexts = self.places(rows)
            places = _places(rows)
            bits = None if masks is None else masks.of([place.rid for place in places])
            num = len(places)
            logits = drawn.logits[:num]
            chosen = runner.sampler.draw_late(logits, places, slots, contexts, bits)
            self.drawn = runner.keep(slots, chosen, drawn.told[0, :num] > 0)
            measured = []
            if (logprobs := DeviceLogprobs.of(places)) is not None:
                self.logprobs = logprobs
                measured = logprobs.begin(logits, chosen.tokens, runner._device)
        self.fetch(measured)

    def places(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Slot and context of each token that is drawn."""
        numbers = [
            (slot.index, place.context_len)
            for row, slot in zip(rows, self.slots, strict=True)
            if row.sampling is not None
            for place in row.places
        ]
        slots, contexts = zip(*numbers, strict=True)
        made = self.runner._device.upload_together([np.array(slots), np.array(contexts)])
        return made[0], made[1]

    def fetch(self, measured: Sequence[torch.Tensor] = ()) -> None:
        """Begins to."""
        wanted = [] if self.finite is None else [self.finite]
        if self.drawn is not None:
            wanted += [self.drawn.told, *measured]
        self.fetched = self.runner._device.fetch(wanted)

    @torch.inference_mode()
    def result(self) -> StepResult:
        result = StepResult()
        if not self.plan.rows or self.fetched is None:
            return result
        with self.runner.trace.span("wait"):
            fetched = self.fetched.wait()
        if self.finite is not None:
            self._judge(fetched.pop(0), result)
        rows = self.plan.rows
        if self.hidden is not None and any(row.prompt is not None for row in rows):
            read_prompts(self.runner._model, rows, self.hidden, result)
        if self.drawn is not None:
            self._take(fetched, result)
        return result

    def _judge(self, finite: torch.Tensor, result: StepResult) -> None:
        if finite.all():
            return
        parts = finite.split([len(row.token_ids) for row in self.plan.rows])
        for row, part in zip(self.plan.rows, parts, strict=True):
            if not part.all():
                result.errors[row.rid] = NOT_FINITE

    def _take(self, fetched: list[torch.Tensor], result: StepResult) -> None:
        tokens, alive, finite = fetched[0].tolist()
        logprobs = {} if self.logprobs is None else self.logprobs.finish(fetched[1:])
        end = 0
        for row in (row for row in self.plan.rows if row.sampling is not None):
            start, end = end, end + 1 + row.num_proposed
            if not all(finite[start:end]):
                result.errors.setdefault(row.rid, NOT_FINITE)
            if row.rid in result.errors:
                continue
            drawn = [tokens[at] if alive[at] else None for at in range(start, end)]
            kept = row.kept(drawn)
            if not kept:
                result.errors[row.rid] = NONE_LEFT
                continue
            result.tokens[row.rid] = kept
            if start in logprobs:
                result.logprobs[row.rid] = [logprobs[start + at] for at in range(len(kept))]


def _places(rows: Sequence[Row]) -> list[Row]:
    return [place for row in rows if row.sampling is not None for place in row.places]


def _is_decode(plan: StepPlan) -> bool:
    """A token a row, each of which draws the next, and nothing is told of prompts."""
    return all(
        len(row.token_ids) == 1 and row.sampling is not None and row.prompt is None
        for row in plan.rows
    )


def _goes_on(row: Row, slot: Slot) -> bool:
    """The device knows the row's settings, and has counted its tokens where that matters."""
    if row.sampling is not slot.sampling or row.sampling is None:
        return False
    return not row.sampling.penalised or row.context_len == slot.next_index

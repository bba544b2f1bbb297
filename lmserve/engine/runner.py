"""Runs plans where the host computes, or waits for what does: one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lmserve.engine.base_runner import BaseRunner
from lmserve.engine.grammars import Masks
from lmserve.engine.inputs import StepInputs, build_inputs
from lmserve.engine.plan import NONE_LEFT, Row, StepPlan, StepResult
from lmserve.engine.prompts import NOT_FINITE, read_prompts
from lmserve.engine.sampling.logprobs import AskedLogprobs
from lmserve.engine.sampling.sampler import likeliest, sample
from lmserve.native.library import Kernels


class Runner(BaseRunner):
    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Computed:
        """Running the same plan again is safe; a row with a number that is not finite fails
        alone."""
        self._cache.scrub(plan.scrubs)
        self._cache.copy(plan.copies)
        computed = Computed(self)
        if not plan.rows:
            return computed
        inputs, hidden, finite = self._compute(plan)
        result = computed.told
        if not all(finite.tolist()):
            parts = finite.split([len(row.token_ids) for row in plan.rows])
            for row, part in zip(plan.rows, parts, strict=True):
                if not part.all():
                    result.errors[row.rid] = NOT_FINITE
        if any(row.prompt is not None for row in plan.rows):
            read_prompts(self._model, plan.rows, hidden, result)
        if inputs.sample.numel():
            computed.logits = self._logits(hidden, inputs.sample)
        return computed

    @torch.inference_mode()
    def choose(
        self, rows: Sequence[Row], logits: torch.Tensor, masks: Masks | None, result: StepResult
    ) -> None:
        """Adds the tokens of the rows that sample."""
        with self.trace.span("sample"):
            rows = [row for row in rows if row.sampling is not None]
            _choose(rows, logits, masks, self._numerics.kernels, result)

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> torch.Tensor:
        """Computes the rows of a plan: float32 logits of those that sample, in their order."""
        inputs, hidden, _ = self._compute(plan)
        return self._logits(hidden, inputs.sample)

    def _compute(self, plan: StepPlan) -> tuple[StepInputs, torch.Tensor, torch.Tensor]:
        with self.trace.span("inputs"):
            inputs = build_inputs(plan, self._numerics.device)
            metadata = self._backend.prepare(inputs.batch)
        with self.trace.span("forward"):
            return inputs, *self._model.forward(inputs.token_ids, inputs.positions, metadata)

    def _logits(self, hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        with self.trace.span("logits"):
            if len(index) < len(hidden):
                hidden = hidden.index_select(0, index)
            return self._model.logits(hidden).float()


@dataclass(slots=True)
class Computed:
    """A step whose logits are there."""

    runner: Runner
    logits: torch.Tensor | None = None  # of the rows that sample
    told: StepResult = field(default_factory=StepResult)

    def draw(self, rows: Sequence[Row], masks: Masks | None) -> None:
        if self.logits is not None:
            self.runner.choose(rows, self.logits, masks, self.told)

    def result(self) -> StepResult:
        return self.told


def _choose(
    rows: Sequence[Row],
    logits: torch.Tensor,
    masks: Masks | None,
    kernels: Kernels | None,
    result: StepResult,
) -> None:
    """Adds the tokens of each row, or an error."""
    places = [place for row in rows for place in row.places]
    likely, finite = likeliest(logits, kernels)
    if not all(finite):
        for place, each in zip(places, finite, strict=True):
            if not each:
                result.errors[place.rid] = NOT_FINITE
    good = [place.rid not in result.errors for place in places] if result.errors else [True]
    if not all(good):
        logits = logits[good]
        likely = [token for token, each in zip(likely, good, strict=True) if each]
        rows = [row for row in rows if row.rid not in result.errors]
        places = [place for place, each in zip(places, good, strict=True) if each]
    if not rows:
        return
    asked = AskedLogprobs.of(logits, places)
    bits = masks.of([place.rid for place in places]) if masks is not None else None
    tokens = sample(
        logits, places, None if bits is None else torch.from_numpy(bits), likely, kernels
    )
    told = {} if asked is None else asked.tell(tokens)
    end = 0
    for row in rows:
        start, end = end, end + 1 + row.num_proposed
        kept = row.kept(tokens[start:end])
        if not kept:
            result.errors[row.rid] = NONE_LEFT
            continue
        result.tokens[row.rid] = kept
        if start in told:
            result.logprobs[row.rid] = [told[start + num] for num in range(len(kept))]

"""Runs plans: everything on the device starts here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

import lmserve
from lmserve.attention.base import AttentionBackend
from lmserve.engine.cache.layout import CacheLayout
from lmserve.engine.cache.tensors import KVCache
from lmserve.engine.grammars import Masks
from lmserve.engine.inputs import StepInputs, build_inputs
from lmserve.engine.plan import NONE_LEFT, Row, StepPlan, StepResult
from lmserve.engine.prompts import NOT_FINITE, read_prompts
from lmserve.engine.sampling.logprobs import AskedLogprobs
from lmserve.engine.sampling.sampler import sample
from lmserve.errors import ModelError
from lmserve.models.base import Model
from lmserve.models.linear import Numerics
from lmserve.sampling import SamplingParams
from lmserve.weights.base import TokenizerAssets
from lmserve.weights.identity import WeightFiles


class Runner:
    """A loaded model with its KV cache. The attributes are what the engine reports."""

    def __init__(
        self,
        model: Model,
        attention: AttentionBackend,
        layout: CacheLayout,
        numerics: Numerics,
        *,
        model_path: str = "",
        assets: TokenizerAssets | None = None,
        files: WeightFiles | None = None,
    ):
        info = model.info
        self.model_path = model_path
        self.assets = assets
        self.architecture = info.architecture
        self.num_parameters = info.num_parameters
        self.hidden_size = info.hidden_size
        self.vocab_size = info.vocab_size
        self.weights = info.weights
        self.max_model_len = layout.max_model_len
        self.block_size = layout.block_size
        self.num_blocks = layout.num_blocks
        self.kv_cache_bytes = layout.num_bytes
        self.dtype = str(numerics.dtype).removeprefix("torch.")
        self.device = str(numerics.device)
        self.attention = attention.name
        self._model = model
        self._backend = attention
        self._numerics = numerics
        self._cache = KVCache(attention.shape, layout.num_blocks, numerics.dtype, numerics.device)
        self._files = files
        self.kv_token_bytes = self._cache.token_bytes
        attention.bind(self._cache.layers)
        model.bind(attention, layout.max_model_len)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """One step. Running the same plan again is safe; a row with a number that is
        not finite fails alone."""
        self._cache.scrub(plan.scrubs)
        self._cache.copy(plan.copies)
        result = StepResult()
        if not plan.rows:
            return result
        inputs, hidden, finite = self._compute(plan)
        if not finite.all():
            parts = finite.split([len(row.token_ids) for row in plan.rows])
            for row, part in zip(plan.rows, parts, strict=True):
                if not part.all():
                    result.errors[row.rid] = NOT_FINITE
        if any(row.prompt is not None for row in plan.rows):
            read_prompts(self._model, plan.rows, hidden, result)
        if inputs.sample.numel():
            logits = self._logits(hidden, inputs.sample)
            rows = [row for row in plan.rows if row.sampling is not None]
            _choose(rows, logits, plan.masks, result)
        return result

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> torch.Tensor:
        """Computes the rows of a plan: float32 logits of those that sample, in their order."""
        inputs, hidden, _ = self._compute(plan)
        return self._logits(hidden, inputs.sample)

    def _compute(self, plan: StepPlan) -> tuple[StepInputs, torch.Tensor, torch.Tensor]:
        inputs = build_inputs(plan, self._numerics.device)
        metadata = self._backend.prepare(inputs.batch)
        return inputs, *self._model.forward(inputs.token_ids, inputs.positions, metadata)

    def _logits(self, hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return self._model.logits(hidden.index_select(0, index)).float()

    @torch.inference_mode()
    def read_kv(self, blocks: Sequence[int], num_tokens: int) -> memoryview:
        """The KV of the first tokens of these blocks, whatever the block size."""
        return self._cache.read(blocks, num_tokens)

    @torch.inference_mode()
    def write_kv(self, blocks: Sequence[int], num_tokens: int, data: bytearray) -> None:
        """The inverse, into whole blocks."""
        self._cache.write(blocks, num_tokens, data)

    def kv_fingerprint(self) -> str:
        """Stands for all that decides what a token's KV is: the weights and how they are run.
        Reads the model's files, so not for the thread that steps. Raises ModelError."""
        if self._files is None:
            raise ModelError("this model was not loaded from files: its KV stays in memory")
        decides = (
            *(lmserve.__version__, torch.__version__, torch.backends.cpu.get_cpu_capability()),
            *(self.architecture, self.weights, self.dtype, self._numerics.device.type),
            *(self.attention, self._numerics.deterministic, self._numerics.packed),
            repr(replace(self._backend.shape, block_size=1)),
            self._files.digest(),
        )
        return hashlib.blake2b(repr(decides).encode(), digest_size=16).hexdigest()

    def warm_up(self) -> None:
        """A prefill and a decode in the first block: libraries load, kernels are made."""
        length = min(4, self.block_size - 1, self.max_model_len - 1)
        greedy = SamplingParams(temperature=0.0)
        for start, count in ((0, length), (length, 1)):
            if count:
                self.run(StepPlan([Row(0, [0] * count, start, [0], greedy)]))


def _choose(
    rows: Sequence[Row], logits: torch.Tensor, masks: Masks | None, result: StepResult
) -> None:
    """Adds a token of each row, or an error."""
    fine = logits.sum(-1).isfinite()  # a sum is finite only where all its terms are
    good = [row.rid not in result.errors for row in rows]
    if not fine.all():
        for at, each in enumerate(fine.tolist()):
            if not each:
                good[at] = False
                result.errors[rows[at].rid] = NOT_FINITE
    if not all(good):
        logits = logits[good]
        rows = [row for row, each in zip(rows, good, strict=True) if each]
    if not rows:
        return
    asked = AskedLogprobs.of(logits, rows)
    bits = masks.of([row.rid for row in rows]) if masks is not None else None
    tokens = sample(logits, rows, None if bits is None else torch.from_numpy(bits))
    for row, token in zip(rows, tokens, strict=True):
        if token is None:
            result.errors[row.rid] = NONE_LEFT
        else:
            result.tokens[row.rid] = token
    if asked is not None:
        told = asked.tell(tokens)
        result.logprobs.update({rows[at].rid: each for at, each in told.items()})

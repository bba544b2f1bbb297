"""A loaded model with its KV cache, whoever steps it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch

import lmserve
from lmserve.attention.base import AttentionBackend
from lmserve.device.select import device_for
from lmserve.engine.cache.layout import CacheLayout
from lmserve.engine.cache.tensors import KVCache
from lmserve.engine.grammars import Masks
from lmserve.engine.plan import Row, StepPlan, StepResult
from lmserve.engine.step_runner import Launched
from lmserve.engine.trace import OFF, Trace
from lmserve.errors import ModelError
from lmserve.models.base import Model
from lmserve.models.linear import Numerics
from lmserve.sampling import SamplingParams
from lmserve.weights.base import TokenizerAssets
from lmserve.weights.identity import WeightFiles


class BaseRunner(ABC):
    """The attributes are what the engine reports."""

    overlaps = False

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
        self.dtype = info.dtype
        self.device = str(numerics.device)
        self.attention = attention.name
        self._model = model
        self._backend = attention
        self._numerics = numerics
        self._device = device_for(numerics.device)
        self._cache = KVCache(
            attention.shape,
            layout.num_blocks,
            attention.dtype,
            numerics.device,
            attention.tokens_first,
        )
        self._files = files
        self.kv_token_bytes = self._cache.token_bytes
        self.trace: Trace = OFF
        attention.bind(self._cache.layers)
        model.bind(attention, layout.max_model_len)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return self._device.is_out_of_memory(error)

    def release_cached(self) -> None:
        self._device.release_cached()

    def wants_chore(self, *, idle: bool) -> bool:
        return False

    def do_chore(self) -> None:
        raise NotImplementedError("only who wants one has one")

    @abstractmethod
    def launch(self, plan: StepPlan) -> Launched:
        """As StepRunner says."""

    def run(self, plan: StepPlan, masks: Masks | None = None) -> StepResult:
        """A step from its launch to its end."""
        launched = self.launch(plan)
        launched.draw(plan.rows, masks)
        return launched.result()

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
        ours = self._numerics.kernels or self._numerics.fused
        decides = (
            *(lmserve.__version__, torch.__version__, torch.backends.cpu.get_cpu_capability()),
            *(self.architecture, self.weights, self.dtype, self._numerics.device.type),
            *(self.attention, self._numerics.deterministic, self._numerics.packed),
            *(str(self._backend.dtype), "torch" if ours is None else ours.name),
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

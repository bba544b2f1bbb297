"""What the engine needs of whoever runs its plans, and what it says of it."""

from __future__ import annotations

import os
from typing import Protocol

from lmserve.engine.kv_store import PagedKV
from lmserve.engine.plan import StepPlan, StepResult
from lmserve.messages import EngineInfo
from lmserve.weights.base import TokenizerAssets


class StepRunner(PagedKV, Protocol):
    """A loaded model with its KV cache. `run` computes a plan; all else is what it learned."""

    model_path: str
    architecture: str
    num_parameters: int
    hidden_size: int
    vocab_size: int
    max_model_len: int
    num_blocks: int
    kv_cache_bytes: int
    dtype: str
    device: str
    attention: str
    weights: str
    assets: TokenizerAssets | None  # always there in a served model

    def run(self, plan: StepPlan) -> StepResult: ...


def info_of(
    runner: StepRunner,
    assets: TokenizerAssets,
    *,
    max_model_len: int,
    max_batch_size: int,
    deterministic: bool,
) -> EngineInfo:
    return EngineInfo(
        model_path=runner.model_path,
        architecture=runner.architecture,
        num_parameters=runner.num_parameters,
        hidden_size=runner.hidden_size,
        vocab_size=runner.vocab_size,
        max_model_len=max_model_len,
        block_size=runner.block_size,
        num_blocks=runner.num_blocks,
        kv_cache_bytes=runner.kv_cache_bytes,
        max_batch_size=max_batch_size,
        dtype=runner.dtype,
        device=runner.device,
        attention=runner.attention,
        weights=runner.weights,
        deterministic=deterministic,
        pid=os.getpid(),
        tokenizer_file=str(assets.tokenizer_file),
        chat_template=assets.chat_template,
        bos_token=assets.bos_token,
        eos_token=assets.eos_token,
        eos_token_ids=assets.eos_token_ids,
        add_bos=assets.add_bos,
        generation_defaults=assets.generation_defaults,
    )

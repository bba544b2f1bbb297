"""What the engine needs of whoever runs its plans, and what it says of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from lmserve.engine.grammars import Masks
from lmserve.engine.kv_store import PagedKV
from lmserve.engine.plan import Row, StepPlan, StepResult
from lmserve.engine.trace import Trace
from lmserve.messages import EngineInfo
from lmserve.weights.base import TokenizerAssets


class Launched(Protocol):
    """A step that the device runs, or has run. Each is called once, in this order."""

    def draw(self, rows: Sequence[Row], masks: Masks | None) -> None:
        """Chooses the tokens of the plan's rows, of which all tokens are known by now; `masks` say
        which may come, where a row has a grammar."""

    def result(self) -> StepResult:
        """Waits for it."""


class StepRunner(PagedKV, Protocol):
    """A loaded model with its KV cache. `launch` begins a plan; all else is what it learned."""

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
    trace: Trace  # set by who steps

    #: Launches a step before the one before it is read: rows may end with an UNREAD token.
    overlaps: bool

    def launch(self, plan: StepPlan) -> Launched: ...

    def wants_chore(self, *, idle: bool) -> bool:
        """Whether there is something to do between steps, or while there are none."""

    def do_chore(self) -> None:
        """A bounded piece of that."""

    def is_out_of_memory(self, error: BaseException) -> bool: ...

    def release_cached(self) -> None:
        """Gives back memory that it only keeps."""


def default_step_tokens(device: str) -> int:
    """A step of so many tokens takes a tenth of a second or so on a CPU: what decodes wait for."""
    return 4096 if device.startswith("cuda") else 128


def default_batch_size(device: str) -> int:
    return 256 if device.startswith("cuda") else 64


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

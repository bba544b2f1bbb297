"""The whole vocabulary of the bridge between server and engine.

A frame is a msgpack list of messages, length-prefixed (`lmserve.bridge.channel`). The server
sends at most one frame a turn of its loop, the engine one a step. Token ids travel as
little-endian int32 bytes. Nothing here is ever pickled.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Any

import msgspec

from lmserve.sampling import SamplingParams


def pack_ids(ids: Iterable[int]) -> bytes:
    """Token ids as little-endian int32 bytes."""
    if isinstance(ids, list) and len(ids) == 1:  # of a step, nearly always
        token: int = ids[0]
        return token.to_bytes(4, "little", signed=True)
    packed = array("i", ids)
    if sys.byteorder == "big":  # pragma: no cover
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """The inverse of `pack_ids`."""
    if len(data) == 4:
        return [int.from_bytes(data, "little", signed=True)]
    packed = array("i")
    packed.frombytes(data)
    if sys.byteorder == "big":  # pragma: no cover
        packed.byteswap()
    return packed.tolist()


# --- server to engine ---------------------------------------------------------------------

# The priority of a draft: it runs while nobody else is behind or waits, and takes nothing from
# anybody. Where there is no room for it even so, it ends with `abort`.
LOWEST = 1000


class Tenant(msgspec.Struct, array_like=True, frozen=True):
    """For whom a request is run."""

    name: str = ""  # those of one name share what the engine gives to them
    weight: float = 1.0  # its share beside others'
    namespace: int = 0  # KV is found only by requests of the same


NOBODY = Tenant()


class Submit(msgspec.Struct, tag="submit", array_like=True, frozen=True):
    """Run this prompt. `rid` is unique for the life of the server process."""

    rid: int
    token_ids: bytes
    sampling: SamplingParams
    priority: int = 0  # lower runs first
    tenant: Tenant = NOBODY


class Update(msgspec.Struct, tag="update", array_like=True, frozen=True):
    """Go on with these settings from the next step on; unknown ids are ignored. Not answered:
    where the answer is as long as it may be now, it ends with `length`."""

    rid: int
    sampling: SamplingParams


class Abort(msgspec.Struct, tag="abort", array_like=True, frozen=True):
    """Forget these requests, whatever their state; unknown ids are ignored. Not answered."""

    rids: list[int]


class Control(msgspec.Struct, tag="control", array_like=True, frozen=True):
    """Anything rare: `ping`, `stats`, `check` (pool integrity), `clear_cache`, `shutdown`, and
    of the KV of token ids (as bytes): `pin`, `unpin`, `save`, `restore`."""

    id: int
    verb: str
    args: dict[str, Any] = {}


ToEngine = Submit | Update | Abort | Control

# --- engine to server ---------------------------------------------------------------------


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What only the engine knows, sent once when it is ready. Settings stay frozen."""

    model_path: str
    architecture: str
    num_parameters: int
    vocab_size: int  # token ids accepted: 0 … vocab_size - 1
    max_model_len: int  # prompt and answer together, in tokens
    block_size: int  # tokens in a KV block
    num_blocks: int
    kv_cache_bytes: int
    max_batch_size: int
    dtype: str
    device: str
    attention: str
    weights: str  # for example "q4_1 (int4) + float32"
    deterministic: bool
    pid: int
    # text assets, read by the server, which holds no torch
    tokenizer_file: str  # a tokenizers `tokenizer.json`
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    eos_token_ids: tuple[int, ...]
    add_bos: bool = False  # plain text prompts get a BOS that the tokenizer does not add
    generation_defaults: dict[str, float] = {}  # temperature, top_p, … from the model
    hidden_size: int = 0  # numbers in an embedding


class Loading(msgspec.Struct, tag="loading", array_like=True, frozen=True):
    stage: str  # shown by /health and the start-up lines


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    info: EngineInfo


class LoadFailed(msgspec.Struct, tag="load_failed", array_like=True, frozen=True):
    """The engine cannot start; `message` is the one line for the user. It exits after."""

    message: str


LEAST_LOGPROB = -9999.0  # told of what cannot be: JSON has no infinity


class TokenLogprob(msgspec.Struct, array_like=True, frozen=True):
    """One token's log probability, and the likeliest tokens in its place, likeliest first."""

    token_id: int
    logprob: float
    top_ids: list[int] = []
    top_logprobs: list[float] = []


class SequenceOutput(msgspec.Struct, array_like=True):
    """What one step gave one request: perhaps no token yet, where it is the first to run some of
    it. After one with `finish` set, none follows."""

    rid: int
    token_ids: bytes  # new tokens, int32; the end token is included
    num_cached_tokens: int = 0  # of the prompt, from the prefix tree
    finish: str | None = None  # a FinishReason
    stop_token_id: int | None = None  # the end or stop token that finished it
    error: str | None = None  # with finish == "error"
    queue_s: float | None = None  # from submit to first admission; with the first output
    logprobs: list[TokenLogprob] | None = None  # of `token_ids`, where they were asked for
    # of the prompt, from `prompt_logprobs_start` on (the very first token has none); the next of
    # them, as its chunks are run
    prompt_logprobs: list[TokenLogprob] | None = None
    num_prompt_run: int | None = None  # tokens of the prompt done, with `tell_progress`
    embedding: bytes | None = None  # with `pooling`: float32, little-endian; `finish` is "stop"
    refused: bool = False  # with `error`: what the request itself asks for cannot be


class EngineStats(msgspec.Struct, array_like=True):
    """Gauges, and counters since the engine started. Blocks obey
    free + cached + pinned + held = total."""

    num_running: int = 0
    num_waiting: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    blocks_cached: int = 0
    blocks_pinned: int = 0
    blocks_held: int = 0
    steps: int = 0
    step_tokens: int = 0  # tokens run in this step
    preemptions: int = 0
    prefix_queries: int = 0  # prompt tokens looked up
    prefix_hits: int = 0  # prompt tokens found
    sent_s: float = 0.0  # when the step left the engine, on the clock of all: time.monotonic
    spec_proposals: int = 0  # rows of a step that ran proposed tokens
    spec_proposed_tokens: int = 0
    spec_accepted_tokens: int = 0  # of these, that came


class Begun(msgspec.Struct, tag="begun", array_like=True, frozen=True):
    """Sent before the step that is the first to run these: should it be the last, one of them may
    be why."""

    rids: list[int]


class StepOutput(msgspec.Struct, tag="step", array_like=True):
    outputs: list[SequenceOutput]
    stats: EngineStats


class ControlReply(msgspec.Struct, tag="reply", array_like=True, frozen=True):
    id: int
    value: Any = None
    error: str | None = None


ToServer = Loading | Ready | LoadFailed | Begun | StepOutput | ControlReply

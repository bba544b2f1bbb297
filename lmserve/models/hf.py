"""Any causal LM of transformers, over our paged attention. The only importer of transformers.

The model runs one flat row (1, T) with each token's own position and without a cache of its
own; its attention layers call `_attend`, which hands queries, keys and values to the backend.
Its trunk, whatever module that is, runs alone; for logits the whole runs over a trunk that
gives the hidden states it is told.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers

from lmserve.attention.base import AttentionBatch, AttentionOptions, CacheShape, Metadata
from lmserve.attention.sdpa import SdpaAttention
from lmserve.errors import ModelError
from lmserve.models.base import Model, ModelInfo
from lmserve.models.linear import Numerics
from lmserve.models.trunk import Trunk

IMPLEMENTATION = "lmserve"  # our name in transformers' registries
HOLDER = "_lmserve_model"  # attribute of a module: the HfModel it belongs to
LAYER_TYPES = {"full_attention", "sliding_attention"}
ROPE_OF_THE_BATCH = ("dynamic", "longrope")  # frequencies by the longest row of a batch
PROBE_TOKENS = 4  # of each row of the check that rows are apart
# how far apart two rows may be, of their norm: other kernels round another way, and that may
# send a token to another expert
CLOSE = {torch.float32: 1e-3}
ROUGH = 0.1
# keyword arguments of an attention function that do not change its result for us
HARMLESS = {
    "dropout",
    "position_ids",
    "use_cache",
    "cache_position",
    "output_attentions",
    "position_embeddings",
    "past_key_values",
    "layer_idx",
}

Run = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # tokens and positions to logits


@dataclass(slots=True)
class Probe:
    """What the attention layers of a model ask for: (heads, kv heads, head dim) of each."""

    layers: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    options: dict[AttentionOptions, None] = field(default_factory=dict)  # each once


class HfModel(Model):
    def __init__(self, path: str, architecture: str, numerics: Numerics):
        if numerics.deterministic:
            raise ModelError(
                f"{architecture} runs through transformers, which cannot be deterministic; "
                "leave --deterministic out"
            )
        _register()
        self._module = _load(path, architecture, numerics)
        self._step: Metadata | Probe = Probe()
        self._finite: list[torch.Tensor] = []  # (T) of each layer: that its KV is
        for module in self._module.modules():
            setattr(module, HOLDER, self)
        parameters = inspect.signature(self._module.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self.info = self._probe(architecture, numerics)
        if not self._rows_are_apart(numerics):
            raise ModelError(
                f"{architecture} is not supported: what it computes for one sequence depends on "
                "the others in its batch"
            )

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, metadata: Metadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._step = metadata
        self._finite = []
        hidden = self._trunk.run(token_ids, positions)
        return hidden, torch.stack(self._finite).all(0)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with self._trunk.told(hidden):
            tokens = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
            return self._run(tokens, tokens)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def _run(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._module(
            input_ids=token_ids[None], position_ids=positions[None], use_cache=False
        ).logits
        return logits[0]

    def _run_split(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.logits(self._trunk.run(token_ids, positions))

    def attend(
        self,
        module: torch.nn.Module,
        q: torch.Tensor,  # (1, heads, T, head_dim)
        k: torch.Tensor,
        v: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """(1, T, heads, head_dim)"""
        layer = getattr(module, "layer_idx", None)
        if not isinstance(layer, int):
            raise ModelError("an attention layer of the model does not know its index")
        if isinstance(self._step, Probe):
            if layer in self._step.layers or k.shape != v.shape or q.shape[3] != k.shape[3]:
                raise ModelError("keys and values of the model do not have one plain shape")
            self._step.layers[layer] = (q.shape[1], k.shape[1], k.shape[3])
            self._step.options[options] = None
            return torch.zeros_like(q.transpose(1, 2))
        q, k, v = (each[0].transpose(0, 1) for each in (q, k, v))
        kept = [each.to(self.attention.dtype) for each in (k, v)]  # as the cache has them
        sums = torch.stack([each.sum((1, 2), dtype=torch.float32) for each in kept])
        self._finite.append(sums.isfinite().all(0))
        return self.attention.forward(q, k, v, layer, options, self._step)[None]

    def _probe(self, architecture: str, numerics: Numerics) -> ModelInfo:
        """Two tokens through the model show what each layer asks of the cache."""
        if not self._takes_positions:
            raise ModelError(f"{architecture} takes no position_ids: it is not supported")
        probe = self._step = Probe()
        tokens = torch.zeros(2, dtype=torch.int64, device=numerics.device)
        try:
            with torch.inference_mode():
                places = torch.arange(2, device=numerics.device)
                self._trunk = Trunk.of(self._module, lambda: self._run(tokens, places))
        except ModelError as error:
            raise ModelError(f"{architecture} is not supported: {error.message}") from error
        except Exception as error:  # whatever the foreign model raises
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{architecture} does not run over our cache: {reason}") from error
        config = self._module.config.get_text_config()
        shapes = set(probe.layers.values())
        if len(shapes) != 1 or sorted(probe.layers) != list(range(config.num_hidden_layers)):
            raise ModelError(
                f"{architecture} is not supported: not all of its layers use our attention, "
                "or not all in one shape"
            )
        num_heads, num_kv_heads, head_dim = shapes.pop()
        parameters = list(self._module.parameters())
        return ModelInfo(
            architecture=architecture,
            vocab_size=config.vocab_size,
            max_positions=getattr(config, "max_position_embeddings", 2048),
            num_parameters=sum(parameter.numel() for parameter in parameters),
            hidden_size=config.hidden_size,
            weights=f"{numerics.dtype_name} (transformers)",
            dtype=numerics.dtype_name,
            cache=CacheShape(len(probe.layers), num_heads, num_kv_heads, head_dim, 0),
            attention=tuple(probe.options),
        )

    @torch.inference_mode()
    def _rows_are_apart(self, numerics: Numerics) -> bool:
        """Two rows together give what each gives alone: no layer mixes tokens by itself. Alone
        they run without the trunk's help: it changes nothing either."""
        shape = replace(self.info.cache, block_size=PROBE_TOKENS)
        self.attention = SdpaAttention(shape, numerics.dtype, numerics.device)
        size = (2, shape.num_kv_heads, shape.block_size, shape.head_dim)
        zeros = torch.zeros(size, dtype=numerics.dtype, device=numerics.device)
        self.attention.bind([(zeros.clone(), zeros.clone()) for _ in range(shape.num_layers)])
        together = self._probe_rows([0, 1], numerics, self._run_split)
        alone = torch.cat([self._probe_rows([row], numerics, self._run) for row in (0, 1)])
        limit = CLOSE.get(numerics.dtype, ROUGH)
        return bool((together - alone).norm() <= limit * alone.norm())

    def _probe_rows(self, rows: list[int], numerics: Numerics, run: Run) -> torch.Tensor:
        """Logits of these rows, each in a block of its own and with tokens of its own."""
        count = len(rows)
        self._step = self.attention.prepare(
            AttentionBatch([0] * count, [PROBE_TOKENS] * count, [[row] for row in rows])
        )
        tokens = torch.arange(PROBE_TOKENS) + torch.tensor(rows)[:, None] * PROBE_TOKENS + 1
        tokens = tokens.flatten() % self.info.vocab_size
        positions = torch.arange(PROBE_TOKENS).repeat(count)
        return run(tokens.to(numerics.device), positions.to(numerics.device)).float()


def _load(path: str, architecture: str, numerics: Numerics) -> Any:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        module = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            local_files_only=True,
            trust_remote_code=False,
            dtype=numerics.dtype,
            attn_implementation=IMPLEMENTATION,
        )
    except Exception as error:  # transformers raises of every kind here
        if isinstance(error, KeyError) and IMPLEMENTATION in error.args:  # a table of its own
            raise _irreplaceable(architecture) from error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"transformers cannot load {architecture}: {lines[0]}") from error
    config = module.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or LAYER_TYPES)
    if not module._supports_attention_backend or config.is_encoder_decoder or kinds - LAYER_TYPES:
        raise _irreplaceable(architecture)
    for kind in sorted(_rope_types(config)):
        if any(name in kind for name in ROPE_OF_THE_BATCH):
            raise ModelError(
                f"{architecture} with rope scaling {kind!r} is not supported: one sequence's "
                "length would change the answers of others"
            )
    return module.eval().requires_grad_(False).to(numerics.device)


def _irreplaceable(architecture: str) -> ModelError:
    return ModelError(f"{architecture} is not supported: its attention cannot be replaced by ours")


def _rope_types(config: Any) -> set[str]:
    """Of the model, or of each of its layer types."""
    given = getattr(config, "rope_parameters", None) or {}
    tables = [given, *(value for value in given.values() if isinstance(value, dict))]
    return {str(table["rope_type"]) for table in tables if table.get("rope_type")}


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface."""
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ModelError("its attention is not causal")
    unknown = sorted(
        name
        for name, value in rest.items()
        if value is not None and value is not False and name not in HARMLESS
    )
    if unknown:
        raise ModelError(f"its attention asks for {', '.join(unknown)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    holder: HfModel = getattr(module, HOLDER)
    options = AttentionOptions(float(scale), sliding_window, softcap)
    return holder.attend(module, query, key, value, options), None


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """The backend masks."""


def _register() -> None:
    transformers.AttentionInterface.register(IMPLEMENTATION, _attend)
    transformers.AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)

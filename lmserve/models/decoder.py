"""The decoder of the Llama family: tokens of all rows of a step flattened, (T, hidden)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from lmserve.attention.base import AttentionBackend, AttentionOptions, CacheShape, Metadata
from lmserve.attention.elementwise import rows_of_a_share
from lmserve.models.base import Model, ModelInfo
from lmserve.models.config import ModelConfig
from lmserve.models.embedding import ScaledEmbedding, embedding_and_head
from lmserve.models.linear import CappedLinear, Linear
from lmserve.models.norm import NormedLinear, RMSNorm, ZeroCentredNorm
from lmserve.models.rope import Rope, rotate
from lmserve.models.source import Source

LOADERS = max(1, min(4, torch.get_num_threads()))  # layers converted at once
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(slots=True)
class Layer:
    attention_norm: RMSNorm
    qkv: Linear
    qk_norm: RMSNorm | None
    options: AttentionOptions
    out: Linear
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear


class Decoder(Model):
    """Embedding, layers, norm, head."""

    def __init__(self, config: ModelConfig, source: Source):
        self.config = config
        self.numerics = source.numerics
        # most of a start is spent converting weights: the head and the layers side by side
        with ThreadPoolExecutor(LOADERS, thread_name_prefix="weights") as pool:
            ends = pool.submit(
                embedding_and_head,
                source,
                config.vocab_size,
                config.hidden_size,
                config.tied_embeddings,
            )
            layers = pool.map(partial(_layer, config, source), range(config.num_layers))
            self.embed, self.head = ends.result()
            self.layers = list(layers)
        if config.embed_scale != 1:
            self.embed = ScaledEmbedding(self.embed, config.embed_scale, source.numerics.dtype)
        if config.final_softcap is not None:
            self.head = CappedLinear(self.head, config.final_softcap, source.numerics.deterministic)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = _norm(config, source.tensor("model.norm.weight", config.hidden_size))
        self.info = ModelInfo(
            architecture=config.architecture,
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            num_parameters=source.num_parameters,
            hidden_size=config.hidden_size,
            weights=source.label,
            dtype=source.numerics.dtype_name,
            cache=CacheShape(
                config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim, 0
            ),
            attention=tuple(dict.fromkeys(layer.options for layer in self.layers)),
        )

    def bind(self, attention: AttentionBackend, max_positions: int) -> None:
        super().bind(attention, max_positions)
        config, numerics = self.config, self.numerics
        local = config.rope if config.local_rope is None else config.local_rope
        made = {
            rope: Rope(rope, config.head_dim, max_positions, numerics.dtype, numerics.device)
            for rope in {config.rope, local}
        }
        self.rope, self.local_rope = made[config.rope], made[local]

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: Metadata,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tables = local = self.rope.at(positions)
        if self.local_rope is not self.rope:
            local = self.local_rope.at(positions)
        x = self.embed(token_ids)
        for index, layer in enumerate(self.layers):
            rope = tables if layer.options.window is None else local
            x.add_(self._attend(layer, index, layer.attention_norm(x), rope, metadata))
            hidden = layer.gate_up(layer.mlp_norm(x))
            x.add_(layer.down(self._gate(hidden)))
        # each token attends to itself: what is not finite in its KV is not finite here
        return x, x.sum(-1, dtype=torch.float32).isfinite()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(hidden))

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden)

    def _attend(
        self,
        layer: Layer,
        index: int,
        x: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        metadata: Metadata,
    ) -> torch.Tensor:
        config = self.config
        num_heads, num_kv_heads = config.num_heads, config.num_kv_heads
        qkv = layer.qkv(x).view(x.shape[0], num_heads + 2 * num_kv_heads, config.head_dim)
        qk, v = qkv.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
        if layer.qk_norm is not None:
            qk = layer.qk_norm(qk)
        q, k = rotate(qk, tables).split((num_heads, num_kv_heads), dim=1)
        out = self.attention.forward(q, k, v, index, layer.options, metadata)
        return layer.out(out.view(x.shape[0], num_heads * config.head_dim))

    def _gate(self, hidden: torch.Tensor) -> torch.Tensor:
        """activation(gate) * up"""
        gate, up = hidden.chunk(2, dim=-1)
        if not self.numerics.deterministic:
            return self.activation(gate).mul_(up)
        shares = gate.split(rows_of_a_share(gate.shape[-1]))
        return torch.cat([self.activation(share) for share in shares]).mul_(up)


def _layer(config: ModelConfig, source: Source, index: int) -> Layer:
    prefix, hidden, head_dim = f"model.layers.{index}", config.hidden_size, config.head_dim
    q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
    attention, mlp, width = f"{prefix}.self_attn", f"{prefix}.mlp", config.intermediate_size

    def norm(name: str) -> RMSNorm:
        return _norm(config, source.tensor(f"{prefix}.{name}.weight", hidden))

    out = source.linear([f"{attention}.o_proj"], [hidden], q_size, config.out_bias)
    down = source.linear([f"{mlp}.down_proj"], [hidden], width, config.mlp_bias)
    mlp_norm = "post_attention_layernorm"
    if config.post_norms:
        out = NormedLinear(out, norm("post_attention_layernorm"))
        down = NormedLinear(down, norm("post_feedforward_layernorm"))
        mlp_norm = "pre_feedforward_layernorm"
    scale = head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    return Layer(
        attention_norm=norm("input_layernorm"),
        qkv=source.linear(
            [f"{attention}.{name}_proj" for name in "qkv"],
            [q_size, kv_size, kv_size],
            hidden,
            config.qkv_bias,
        ),
        qk_norm=_qk_norm(config, source, attention) if config.qk_norm else None,
        options=AttentionOptions(scale, config.windows[index], config.attention_softcap),
        out=out,
        mlp_norm=norm(mlp_norm),
        gate_up=source.linear(
            [f"{mlp}.gate_proj", f"{mlp}.up_proj"], [width, width], hidden, config.mlp_bias
        ),
        down=down,
    )


def _qk_norm(config: ModelConfig, source: Source, attention: str) -> RMSNorm:
    """One norm over all query and key heads: a table of weights, one line a head."""
    q = source.tensor(f"{attention}.q_norm.weight", config.head_dim)
    k = source.tensor(f"{attention}.k_norm.weight", config.head_dim)
    lines = (q.expand(config.num_heads, -1), k.expand(config.num_kv_heads, -1))
    return _norm(config, torch.cat(lines))


def _norm(config: ModelConfig, weight: torch.Tensor) -> RMSNorm:
    form = ZeroCentredNorm if config.zero_centred_norms else RMSNorm
    return form(weight, config.norm_eps)

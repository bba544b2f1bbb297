"""The decoder of the Llama family: tokens of all rows of a step flattened, (T, hidden)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from lmserve.attention.base import AttentionBackend, AttentionOptions, CacheShape, Metadata
from lmserve.models.base import Model, ModelInfo
from lmserve.models.config import ModelConfig
from lmserve.models.embedding import embedding_and_head
from lmserve.models.linear import Linear
from lmserve.models.norm import RMSNorm
from lmserve.models.rope import Rope, rotate
from lmserve.models.source import Source

LOADERS = max(1, min(4, torch.get_num_threads()))  # layers converted at once
GRAIN = 32768  # elements that torch computes in one thread
VECTOR = 32  # elements in the widest step of its vector loops


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
        self.norm = RMSNorm(source.tensor("model.norm.weight", config.hidden_size), config.norm_eps)
        self.info = ModelInfo(
            architecture=config.architecture,
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            num_parameters=source.num_parameters,
            weights=source.label,
            cache=CacheShape(
                config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim, 1
            ),
        )

    def bind(self, attention: AttentionBackend, max_positions: int) -> None:
        super().bind(attention, max_positions)
        config, numerics = self.config, self.numerics
        self.rope = Rope(
            config.rope, config.head_dim, max_positions, numerics.dtype, numerics.device
        )

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: Metadata,
        sample: torch.Tensor,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        tables = self.rope.at(positions)
        x = self.embed(token_ids)
        for index, layer in enumerate(self.layers):
            x.add_(self._attend(layer, index, layer.attention_norm(x), tables, metadata))
            hidden = layer.gate_up(layer.mlp_norm(x))
            x.add_(layer.down(self._gate(hidden)))
        # each token attends to itself: what is not finite in its KV is not finite here
        finite = x.sum(-1, dtype=torch.float32).isfinite()
        if not sample.numel():
            return None, finite
        return self.head(self.norm(x.index_select(0, sample))), finite

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
        """silu(gate) * up. Torch's vector loops compute what is left over at the end of a
        thread's share another way, so deterministic shares must begin and end with a row."""
        gate, up = hidden.chunk(2, dim=-1)
        if not self.numerics.deterministic:
            return F.silu(gate).mul_(up)
        width = gate.shape[-1]
        rows = max(1, GRAIN // width) if width % VECTOR == 0 else 1
        return torch.cat([F.silu(part) for part in gate.split(rows)]).mul_(up)


def _layer(config: ModelConfig, source: Source, index: int) -> Layer:
    prefix, hidden, head_dim = f"model.layers.{index}", config.hidden_size, config.head_dim
    q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
    attention, mlp, width = f"{prefix}.self_attn", f"{prefix}.mlp", config.intermediate_size

    def norm(name: str) -> RMSNorm:
        return RMSNorm(source.tensor(f"{prefix}.{name}.weight", hidden), config.norm_eps)

    return Layer(
        attention_norm=norm("input_layernorm"),
        qkv=source.linear(
            [f"{attention}.{name}_proj" for name in "qkv"],
            [q_size, kv_size, kv_size],
            hidden,
            config.qkv_bias,
        ),
        qk_norm=_qk_norm(config, source, attention) if config.qk_norm else None,
        options=AttentionOptions(head_dim**-0.5, config.windows[index]),
        out=source.linear([f"{attention}.o_proj"], [hidden], q_size, config.out_bias),
        mlp_norm=norm("post_attention_layernorm"),
        gate_up=source.linear(
            [f"{mlp}.gate_proj", f"{mlp}.up_proj"], [width, width], hidden, config.mlp_bias
        ),
        down=source.linear([f"{mlp}.down_proj"], [hidden], width, config.mlp_bias),
    )


def _qk_norm(config: ModelConfig, source: Source, attention: str) -> RMSNorm:
    """One norm over all query and key heads: a table of weights, one line a head."""
    q = source.tensor(f"{attention}.q_norm.weight", config.head_dim)
    k = source.tensor(f"{attention}.k_norm.weight", config.head_dim)
    lines = (q.expand(config.num_heads, -1), k.expand(config.num_kv_heads, -1))
    return RMSNorm(torch.cat(lines), config.norm_eps)

"""The decoder of the Llama family by fused ops: what `models/decoder.py` computes, with one launch
between two products. Nothing in it waits for the device, so that a graph may capture it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lmserve.attention.base import AttentionBackend, AttentionOptions, Metadata
from lmserve.attention.paged import PagedAttention, PagedMetadata
from lmserve.device.select import device_for
from lmserve.errors import SettingsError
from lmserve.fused.base import Activation, LayerCache, Norm, Ops, QKNorm, RopeTables
from lmserve.models.config import ModelConfig
from lmserve.models.decoder import Decoder, Layer
from lmserve.models.linear import Linear
from lmserve.models.norm import NormedLinear, RMSNorm, ZeroCentredNorm
from lmserve.models.rope import Rope
from lmserve.models.row_products import RowLinear, Run, fastest, seconds_on
from lmserve.models.source import Source


@dataclass(slots=True)
class FusedLayer:
    attention_norm: Norm
    qkv: Linear
    qk_norm: QKNorm | None
    options: AttentionOptions
    out: Linear
    out_norm: Norm | None
    mlp_norm: Norm
    gate_up: Linear
    down: Linear
    down_norm: Norm | None


class FusedDecoder(Decoder):
    """Reads its weights as the decoder does."""

    capturable = True
    attention: PagedAttention

    def __init__(self, config: ModelConfig, source: Source, ops: Ops):
        super().__init__(config, source)
        self.ops = ops
        self.gating: Activation = "silu" if config.activation == "silu" else "gelu_pytorch_tanh"
        self.fused_layers = [_fused(config, layer) for layer in self.layers]
        self.final_norm = _norm(self.norm)
        self.has_measured = False

    def bind(self, attention: AttentionBackend, max_positions: int) -> None:
        if not isinstance(attention, PagedAttention):
            raise SettingsError(
                f"the {self.ops.name} kernels need paged attention, not {attention.name}; "
                "use --kernels torch, or --attention auto"
            )
        super().bind(attention, max_positions)
        if attention.device.type != "cpu" and not self.has_measured:
            self.measure_products(seconds_on(device_for(attention.device)))
        self.tables = [RopeTables(*self._rope_of(layer).tables) for layer in self.fused_layers]
        # (blocks, block size, kv heads, head_dim) seen as slots
        self.caches = [
            LayerCache(keys.view(-1, *keys.shape[2:]), values.view(-1, *values.shape[2:]))
            for keys, values in attention.kv
        ]

    @torch.inference_mode()
    def measure_products(self, seconds: Callable[[Run], float]) -> None:
        """Chooses how products with one row run; the weights are there."""
        self.has_measured = True
        if not self.ops.row_tilings:
            return
        for name in ("qkv", "out", "gate_up", "down"):
            products = [getattr(layer, name) for layer in self.fused_layers]
            chosen = fastest(name, products, self.ops, seconds)
            for layer, product in zip(self.fused_layers, chosen, strict=True):
                setattr(layer, name, product)
        (self.head,) = fastest("head", [self.head], self.ops, seconds)

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, metadata: Metadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(metadata, PagedMetadata)
        ops, layers = self.ops, self.fused_layers
        hidden = self.embed(token_ids)
        x = ops.norm(hidden, layers[0].attention_norm)
        for index, layer in enumerate(layers):
            if index:
                x = ops.add_norm(x, hidden, layer.attention_norm, layers[index - 1].down_norm)
            x = self._attended(index, x, positions, metadata)
            x = ops.add_norm(x, hidden, layer.mlp_norm, layer.out_norm)
            x = layer.down(self._gated(layer.gate_up, x))
        # each token attends to itself: what is not finite in its KV is not finite here
        return hidden, ops.add_finite(x, hidden, layers[-1].down_norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(self.normed(hidden))

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.ops.norm(hidden, self.final_norm)

    def _attended(
        self, index: int, x: torch.Tensor, positions: torch.Tensor, metadata: PagedMetadata
    ) -> torch.Tensor:
        layer = self.fused_layers[index]
        q = self.ops.rope_write(
            layer.qkv(x),
            positions,
            self.tables[index],
            metadata.slots,
            self.caches[index],
            layer.qk_norm,
        )
        out = self.attention.attend(q, index, layer.options, metadata)
        return layer.out(out.view(len(x), -1))

    def _gated(self, product: Linear, x: torch.Tensor) -> torch.Tensor:
        if isinstance(product, RowLinear):
            return product.gated(x, self.gating)
        return self.ops.gate(product(x), self.gating)

    def _rope_of(self, layer: FusedLayer) -> Rope:
        return self.rope if layer.options.window is None else self.local_rope


def _fused(config: ModelConfig, layer: Layer) -> FusedLayer:
    """A layer of the decoder, its norms apart from its products."""
    out, out_norm = _apart(layer.out)
    down, down_norm = _apart(layer.down)
    return FusedLayer(
        attention_norm=_norm(layer.attention_norm),
        qkv=layer.qkv,
        qk_norm=None if layer.qk_norm is None else _qk_norm(layer.qk_norm, config.num_heads),
        options=layer.options,
        out=out,
        out_norm=out_norm,
        mlp_norm=_norm(layer.mlp_norm),
        gate_up=layer.gate_up,
        down=down,
        down_norm=down_norm,
    )


def _apart(linear: Linear) -> tuple[Linear, Norm | None]:
    if isinstance(linear, NormedLinear):
        return linear.linear, _norm(linear.norm)
    return linear, None


def _norm(norm: RMSNorm) -> Norm:
    return Norm(norm.weight, norm.eps, not isinstance(norm, ZeroCentredNorm))


def _qk_norm(norm: RMSNorm, num_heads: int) -> QKNorm:
    """The decoder's table has one line a head, queries first: all lines of a kind are the same."""
    q, k = norm.weight[0], norm.weight[num_heads]
    return QKNorm(q, k, norm.eps, not isinstance(norm, ZeroCentredNorm))

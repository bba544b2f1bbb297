"""The decoder of the Llama family by the native kernels: one call runs all layers of a step.

What `models/decoder.py` computes, in float32 throughout but for the products' inputs; its bits
depend on nothing but the row.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref
from dataclasses import dataclass

import torch

from lmserve.attention.base import AttentionBackend, AttentionOptions, CacheShape, Metadata
from lmserve.attention.native import NativeAttention, NativeMetadata, native_options
from lmserve.errors import SettingsError
from lmserve.models.base import Model, ModelInfo
from lmserve.models.config import ModelConfig
from lmserve.models.rope import Rope
from lmserve.models.source import Source, Weight
from lmserve.native import library
from lmserve.native.library import ACTIVATIONS, Kernels, address
from lmserve.native.weights import PackedWeight, Packer


@dataclass(frozen=True, slots=True)
class NativeLayer:
    """Under the names of `library.Layer`."""

    norms: dict[str, torch.Tensor]
    weights: dict[str, PackedWeight]
    options: AttentionOptions

    def struct(self) -> library.Layer:
        return library.Layer(
            **{name: address(norm) for name, norm in self.norms.items()},
            **{name: weight.struct() for name, weight in self.weights.items()},
            attention=native_options(self.options),
        )


class NativeDecoder(Model):
    """Embedding, layers, norm, head."""

    def __init__(self, config: ModelConfig, source: Source, kernels: Kernels):
        self.config = config
        self.kernels = kernels
        reader = Reader(config, source, kernels)
        with ThreadPoolExecutor(kernels.num_threads, thread_name_prefix="weights") as pool:
            ends = pool.submit(reader.embedding_and_head)
            self.layers = list(pool.map(reader.layer, range(config.num_layers)))
            self.embedding, self.head = ends.result()
        self.norm = reader.norm("model.norm", config.hidden_size)
        self.info = ModelInfo(
            architecture=config.architecture,
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            num_parameters=source.num_parameters,
            hidden_size=config.hidden_size,
            weights=f"{source.label}, {kernels.name} kernels",
            dtype="float32",
            cache=CacheShape(
                config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim, 0
            ),
            attention=tuple(dict.fromkeys(layer.options for layer in self.layers)),
        )
        self._embed_scale = torch.tensor(config.embed_scale, dtype=source.numerics.dtype).item()

    def bind(self, attention: AttentionBackend, max_positions: int) -> None:
        super().bind(attention, max_positions)
        if not isinstance(attention, NativeAttention):
            raise SettingsError(
                f"the {self.kernels.name} kernels need their own attention, not "
                f"{attention.name}; use --kernels torch, or --attention auto"
            )
        config = self.config
        local = config.rope if config.local_rope is None else config.local_rope
        self._ropes = {
            rope: Rope(rope, config.head_dim, max_positions).tables for rope in {config.rope, local}
        }
        self._layers = (library.Layer * config.num_layers)(*(each.struct() for each in self.layers))
        for struct, layer, (keys, values) in zip(
            self._layers, self.layers, attention.kv, strict=True
        ):
            rope = config.rope if layer.options.window is None else local
            struct.cos, struct.sin = map(address, self._ropes[rope])
            struct.keys, struct.values = address(keys), address(values)
        self._decoder = library.Decoder(
            cache=attention.form,
            num_layers=config.num_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            activation=ACTIVATIONS[config.activation],
            norm_eps=config.norm_eps,
            embed_scale=self._embed_scale,
            final_softcap=config.final_softcap or 0.0,
            norm=address(self.norm),
            embedding=self.embedding.struct(),
            head=self.head.struct(),
            layers=self._layers,
        )

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, metadata: Metadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(metadata, NativeMetadata)
        least, most = (int(each) for each in token_ids.aminmax())
        if least < 0 or most >= self.config.vocab_size:  # the kernels would read beyond
            raise IndexError(f"token {least if least < 0 else most} is not in the vocabulary")
        num_tokens = len(token_ids)
        hidden = torch.empty(num_tokens, self.config.hidden_size)
        finite = torch.empty(num_tokens, dtype=torch.bool)
        self.kernels.library.lms_forward(
            self.kernels.pool,
            byref(self._decoder),
            byref(metadata.struct),
            address(token_ids),
            address(hidden),
            address(finite),
        )
        return hidden, finite

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._end(self.kernels.library.lms_logits, hidden, self.config.vocab_size)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._end(self.kernels.library.lms_normed, hidden, self.config.hidden_size)

    def _end(self, compute: Callable[..., None], hidden: torch.Tensor, width: int) -> torch.Tensor:
        out = torch.empty(len(hidden), width)
        decoder = byref(self._decoder)
        compute(self.kernels.pool, decoder, address(hidden), len(hidden), address(out))
        return out


class Reader:
    """Reads the parts of a decoder; layers from several threads at once."""

    def __init__(self, config: ModelConfig, source: Source, kernels: Kernels):
        self.config = config
        self.source = source
        self.packer = Packer(kernels.library)

    def layer(self, index: int) -> NativeLayer:
        config, prefix = self.config, f"model.layers.{index}"
        hidden, head_dim, width = config.hidden_size, config.head_dim, config.intermediate_size
        q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        scale = head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        qkv = {"q": q_size, "k": kv_size, "v": kv_size}
        return NativeLayer(
            norms=self._norms(prefix),
            weights={
                **{
                    name: self.weight(f"{attention}.{name}_proj", size, hidden, config.qkv_bias)
                    for name, size in qkv.items()
                },
                "out": self.weight(f"{attention}.o_proj", hidden, q_size, config.out_bias),
                "gate": self.weight(f"{mlp}.gate_proj", width, hidden, config.mlp_bias),
                "up": self.weight(f"{mlp}.up_proj", width, hidden, config.mlp_bias),
                "down": self.weight(f"{mlp}.down_proj", hidden, width, config.mlp_bias),
            },
            options=AttentionOptions(scale, config.windows[index], config.attention_softcap),
        )

    def embedding_and_head(self) -> tuple[PackedWeight, PackedWeight]:
        config = self.config
        sizes = (config.vocab_size, config.hidden_size)
        embedding = self.weight("model.embed_tokens", *sizes)
        return embedding, embedding if config.tied_embeddings else self.weight("lm_head", *sizes)

    def weight(self, name: str, num_out: int, num_in: int, bias: bool = False) -> PackedWeight:
        source, packed = self.source, self.source.numerics.packed
        weight = source.raw(f"{name}.weight", num_out, num_in)
        made = self.packer.pack(
            weight,
            self._dense_dtype(weight),
            exact=not packed,
            bias=self._vector(f"{name}.bias", num_out) if bias else None,
        )
        source.forms.add(made.label)
        return made

    def norm(self, name: str, size: int) -> torch.Tensor:
        """The factors."""
        weight = self._vector(f"{name}.weight", size)
        return weight + 1 if self.config.zero_centred_norms else weight

    def _norms(self, prefix: str) -> dict[str, torch.Tensor]:
        config = self.config
        names = {"attention_norm": "input", "mlp_norm": "post_attention"}
        if config.post_norms:
            names |= {"out_norm": "post_attention", "mlp_norm": "pre_feedforward"}
            names["down_norm"] = "post_feedforward"
        norms = {
            ours: self.norm(f"{prefix}.{name}_layernorm", config.hidden_size)
            for ours, name in names.items()
        }
        if config.qk_norm:
            counts = {"q": config.num_heads, "k": config.num_kv_heads}
            heads = [
                self.norm(f"{prefix}.self_attn.{name}_norm", config.head_dim).expand(count, -1)
                for name, count in counts.items()
            ]
            norms["qk_norm"] = torch.cat(heads)
        return norms

    def _vector(self, name: str, size: int) -> torch.Tensor:
        weight = self.source.raw(name, size)
        if not isinstance(weight, torch.Tensor):
            weight = weight.dequantise()
        return weight.float().contiguous()

    def _dense_dtype(self, weight: Weight) -> torch.dtype:
        """16 bits stay the 16 bits they are, wherever quantised weights stay packed."""
        numerics = self.source.numerics
        if not isinstance(weight, torch.Tensor):
            return numerics.dtype
        return weight.dtype if weight.itemsize == 2 and numerics.packed else numerics.dtype

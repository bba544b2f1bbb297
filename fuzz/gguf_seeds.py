"""Small GGUF files, put together here: a whole model, and headers of other kinds."""

from __future__ import annotations

import struct
from typing import Any

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
ALIGNMENT = 32
HIDDEN, INNER, VOCAB = 2, 4, 6
TOKENS = ["<|im_end|>", "a", "b", "ab", "Ġ", "Ċ"]

NUMBERS: dict[str, Any] = {
    "block_count": 1,
    "context_length": 8,
    "embedding_length": HIDDEN,
    "feed_forward_length": INNER,
    "attention.head_count": 1,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}
SHAPES = {  # as ggml has them: columns first
    "token_embd.weight": (HIDDEN, VOCAB),
    "output_norm.weight": (HIDDEN,),
    "blk.0.attn_norm.weight": (HIDDEN,),
    "blk.0.attn_q.weight": (HIDDEN, HIDDEN),
    "blk.0.attn_k.weight": (HIDDEN, HIDDEN),
    "blk.0.attn_v.weight": (HIDDEN, HIDDEN),
    "blk.0.attn_output.weight": (HIDDEN, HIDDEN),
    "blk.0.ffn_norm.weight": (HIDDEN,),
    "blk.0.ffn_gate.weight": (HIDDEN, INNER),
    "blk.0.ffn_up.weight": (HIDDEN, INNER),
    "blk.0.ffn_down.weight": (INNER, HIDDEN),
}


def model(arch: str = "llama", **metadata: Any) -> bytes:
    """A whole model. `metadata` is added, with `_` for the `.` of its names."""
    values: dict[str, Any] = {"general.architecture": arch, "general.alignment": ALIGNMENT}
    values |= {f"{arch}.{name}": value for name, value in NUMBERS.items()}
    values |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    return file(values | {name.replace("_", "."): value for name, value in metadata.items()})


def file(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None = None) -> bytes:
    shapes = SHAPES if shapes is None else shapes
    table, offset = b"", 0
    for name, shape in shapes.items():
        table += _text(name) + struct.pack("<I", len(shape))
        table += struct.pack(f"<{len(shape)}QIQ", *shape, 0, offset)
        num = 4
        for size in shape:
            num *= size
        offset += -(-num // ALIGNMENT) * ALIGNMENT
    header = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(metadata))
    header += b"".join(_text(key) + _value(value) for key, value in metadata.items()) + table
    return header.ljust(-(-len(header) // ALIGNMENT) * ALIGNMENT, b"\0") + bytes(offset)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            return struct.pack("<II", U32, value)
        case float():
            return struct.pack("<If", F32, value)
        case str():
            return struct.pack("<I", STRING) + _text(value)
        case [str(), *_]:
            return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))
        case _:
            head = struct.pack("<IIQ", ARRAY, U64, len(value))
            return head + struct.pack(f"<{len(value)}Q", *value)

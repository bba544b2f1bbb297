"""The models that are measured: config.json from literals, a tokenizer of the right size, and if
asked for random weights on disk. Nobody's weights are needed: speed does not depend on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "bfloat16",
    "hidden_act": "silu",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "max_position_embeddings": 40_960,
    "use_sliding_window": False,
    "vocab_size": 151_936,
    "initializer_range": 0.02,
}
LARGE, SMALL, TINY = "qwen3-8b", "qwen3-0.6b", "tiny"
SHAPES: dict[str, dict[str, Any]] = {
    LARGE: QWEN3
    | {
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    SMALL: QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    TINY: QWEN3
    | {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 2400,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
}
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # the last ids; the last of them ends
SHARD_BYTES = 4 * 2**30


def vocab_size(name: str) -> int:
    size: int = SHAPES[name]["vocab_size"]
    return size


def write_model(folder: Path, name: str) -> Path:
    """A model directory without weights, for `load_format: dummy`; what is there stays."""
    path = folder / name
    if not (path / "tokenizer.json").is_file():
        path.mkdir(parents=True, exist_ok=True)
        size = vocab_size(name)
        ends = {"bos_token_id": size - 3, "eos_token_id": size - 1, "pad_token_id": size - 3}
        (path / "config.json").write_text(json.dumps(SHAPES[name] | ends, indent=1))
        write_tokenizer(path, size)
    return path


def write_tokenizer(path: Path, size: int) -> None:
    """Byte-level, with a text for each id, so that whatever a random model says is seen by a
    client. The load client's words are one token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from lmserve.bench.words import WORDS

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġ{word}" for word in dict.fromkeys(WORDS)]
    made = [f"Ġw{number}" for number in range(size - len(alphabet) - len(words) - len(MARKS))]
    vocab = {token: index for index, token in enumerate((*alphabet, *words, *made))}
    # a word that is a token is not built from its bytes: there are no merges
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    assert tokenizer.get_vocab_size() == size
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": MARKS[0],
        "eos_token": MARKS[-1],
        "pad_token": MARKS[0],
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def write_weights(path: Path, device: str) -> int:
    """A random bfloat16 checkpoint beside config.json; its bytes. What is there stays."""
    from safetensors.torch import save_file

    index = path / "model.safetensors.index.json"
    if index.is_file():
        size: int = json.loads(index.read_text())["metadata"]["total_size"]
        return size
    where: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(path, device)):
        file = f"model-{number:05}.safetensors"
        save_file(shard, path / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
    return total


def _shards(path: Path, device: str) -> Iterator[dict[str, torch.Tensor]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        sizes = {
            name: parameter.shape
            for name, parameter in AutoModelForCausalLM.from_config(config).named_parameters()
        }
    shard: dict[str, torch.Tensor] = {}
    for name, size in sizes.items():  # tied weights are in it once
        tensor = torch.empty(size, dtype=torch.bfloat16, device=device)
        shard[name] = tensor.fill_(1.0) if "norm" in name else tensor.normal_(0.0, 0.02)
        if sum(each.nbytes for each in shard.values()) >= SHARD_BYTES:
            yield shard
            shard = {}
    yield shard

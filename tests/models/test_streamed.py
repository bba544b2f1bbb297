"""Models whose weights come straight from their files: the same weights, the same answers."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import (
    FLOAT32,
    GEMMA,
    LLAMA,
    checkpoint_of,
    greedy,
    prompts_of,
    random_model,
    runner_of,
    with_kernels,
)

from lmserve.device.staging import HostStaging
from lmserve.errors import ModelError
from lmserve.models.decoder import Decoder
from lmserve.models.registry import build
from lmserve.weights.checkpoint import open_checkpoint

CONFIGS = {
    "llama-biases": lambda: transformers.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "qwen3-tied": lambda: transformers.Qwen3Config(**LLAMA, head_dim=16, tie_word_embeddings=True),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GEMMA),
}
PROMPTS = [5, 11]


def saved(module: Any, folder: Path, **options: Any) -> Path:
    """In several shards with an index; what is in memory is not written twice."""
    module.save_pretrained(folder, max_shard_size="12KB", **options)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def weights_of(decoder: Any) -> list[torch.Tensor]:
    assert isinstance(decoder, Decoder)
    found = [decoder.head.weight] if hasattr(decoder.head, "weight") else []
    for layer in decoder.layers:
        for linear in (layer.qkv, layer.out, layer.gate_up, layer.down):
            linear = getattr(linear, "linear", linear)
            found += [linear.weight] + ([] if linear.bias is None else [linear.bias])
        found.append(layer.attention_norm.weight)
    return found


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_weights(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Merged, in one piece with their parts, and converted where the file has another type."""
    module = random_model(CONFIGS[name]())
    numerics = replace(FLOAT32, dtype=dtype)
    path = saved(module, tmp_path)
    streamed = build(open_checkpoint(path, path), str(path), numerics)
    read = build(checkpoint_of(module), "", numerics)
    for ours, theirs in zip(weights_of(streamed), weights_of(read), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    assert streamed.info == read.info
    tied = module.config.tie_word_embeddings
    embedding = getattr(streamed.embed, "embedding", streamed.embed).table
    head = getattr(streamed.head, "linear", streamed.head).weight
    assert (head.data_ptr() == embedding.data_ptr()) is tied


@pytest.mark.parametrize("kernels", ["torch", "twins"])
def test_the_same_answers(kernels: str, tmp_path: Path) -> None:
    module = random_model(CONFIGS["qwen3-tied"]())
    numerics = with_kernels(kernels)
    attention = "paged" if kernels == "twins" else None
    path = saved(module, tmp_path)
    answers = [
        greedy(
            runner_of(build(checkpoint, str(path), numerics), numerics, attention=attention),
            prompts_of(97, PROMPTS),
            8,
        )
        for checkpoint in (open_checkpoint(path, path), checkpoint_of(module))
    ]
    assert answers[0] == answers[1]


def refusal(path: Path, checkpoint: Any = None) -> str:
    with pytest.raises(ModelError) as caught:
        build(checkpoint or open_checkpoint(path, path), str(path), FLOAT32)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_shard_cut_short_while_it_is_loaded(tmp_path: Path) -> None:
    path = saved(random_model(CONFIGS["llama-biases"]()), tmp_path)
    checkpoint = open_checkpoint(path, path)
    shard = max(path.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    os.truncate(shard, shard.stat().st_size - 4096)
    message = refusal(path, checkpoint)
    assert f"{shard} is damaged (it ends before byte" in message
    assert message.endswith("download it again")


def test_tensors_that_are_not_there_or_of_another_shape(tmp_path: Path) -> None:
    module = random_model(CONFIGS["llama-biases"]())
    state = dict(module.state_dict())
    name = "model.layers.1.self_attn.k_proj.weight"
    weight = state.pop(name)
    path = saved(module, tmp_path / "lacks", state_dict=dict(state))
    assert f"lacks the tensor {name!r}" in refusal(path)
    state[name] = weight[:8].contiguous()
    path = saved(module, tmp_path / "small", state_dict=dict(state))
    assert f"tensor {name!r} has shape (8, 32), but config.json asks for (16, 32)" in refusal(path)


def test_a_device_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(*_: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    path = saved(random_model(CONFIGS["llama-biases"]()), tmp_path)
    monkeypatch.setattr(HostStaging, "send", send)
    assert "the weights do not fit the memory of cpu; give a smaller model" in refusal(path)


def dummy(path: Path, kernels: str = "torch") -> Any:
    numerics = with_kernels(kernels)
    checkpoint = open_checkpoint(path, path, "dummy")
    return build(checkpoint, str(path), numerics), numerics


@pytest.mark.parametrize("kernels", ["torch", "avx2"])
def test_a_model_without_its_weights(
    kernels: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = random_model(CONFIGS["qwen3-tied"]())
    saved(module, tmp_path)
    whole = build(open_checkpoint(tmp_path, tmp_path), str(tmp_path), with_kernels(kernels))
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    with caplog.at_level(logging.WARNING):
        model, numerics = dummy(tmp_path, kernels)
    (record,) = [each for each in caplog.records if "dummy" in each.getMessage()]
    assert "random" in record.getMessage()
    assert model.info == whole.info
    prompts = prompts_of(97, PROMPTS)
    answers = greedy(runner_of(model, numerics), prompts, 8)
    again, _ = dummy(tmp_path, kernels)
    assert greedy(runner_of(again, numerics), prompts, 8) == answers


def test_what_dummy_weights_are_like(tmp_path: Path) -> None:
    config = transformers.Gemma3TextConfig(**{**GEMMA, "hidden_size": 256}).to_dict()
    config["architectures"] = ["Gemma3ForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = dummy(tmp_path)
    layer = model.layers[0]
    assert layer.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(layer.attention_norm.weight, torch.full((256,), 2.0))  # 1 and its weight
    assert not torch.equal(model.layers[1].qkv.weight, layer.qkv.weight)


def test_dummy_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="load_format is dummy, which .*gguf cannot be used for"):
        open_checkpoint(gguf, tmp_path, "dummy")
    config: dict[str, Any] = {"architectures": ["OtherForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="load_format is dummy, which is not for OtherForCausalLM"):
        dummy(tmp_path)
    config["quantization_config"] = {"quant_method": "awq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="load_format is dummy, which knows no quantised"):
        dummy(tmp_path)

"""Tiny random models of each family with decoders of ours, and what transformers says of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from lmserve.bridge.assets import CHAT_TEMPLATE, EOS_ID, VOCAB_SIZE, write_assets

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": EOS_ID,
}
GEMMA: dict[str, Any] = SMALL | {
    "head_dim": 64,
    "sliding_window": 24,
    "query_pre_attn_scalar": 48,
}
Config = Callable[[], transformers.PreTrainedConfig]
FAMILIES: dict[str, Config] = {
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=64, use_sliding_window=False),
    "gemma2": lambda: transformers.Gemma2Config(
        **GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=1.5
    ),
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=40),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, use_sliding_window=False),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GEMMA),
}


def write_family(folder: Path, name: str) -> Path:
    """A checkpoint in float32; what is there stays. Weights are large enough that the next token
    is a clear choice."""
    path = folder / f"tiny-{name}"
    if (path / "tokenizer_config.json").is_file():
        return path
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(FAMILIES[name]())
    with torch.no_grad():
        for weight, parameter in module.named_parameters():
            is_norm = "norm" in weight and weight.endswith("weight")
            mean = 1.0 if is_norm and "Gemma" not in type(module).__name__ else 0.0
            parameter.normal_(mean, 0.1)
    module.save_pretrained(path)
    write_assets(path)
    settings = {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@dataclass(slots=True)
class Golden:
    """transformers' greedy answer to a prompt in float32, and at each of its steps the log
    probabilities of all tokens, in float32 and, given the same tokens, in bfloat16."""

    prompt: list[int]
    tokens: list[int]
    exact: torch.Tensor  # (steps, vocab)
    rounded: torch.Tensor

    @property
    def margins(self) -> list[float]:
        """How much likelier than the next the token of each step is."""
        first, second = self.exact.topk(2).values.unbind(-1)
        margins: list[float] = (first - second).tolist()
        return margins


def goldens(
    path: Path, prompts: Sequence[Sequence[int]], num_tokens: int, device: str
) -> list[Golden]:
    exact, rounded = (_load(path, dtype, device) for dtype in (torch.float32, torch.bfloat16))
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens = _greedy(exact, prompt, num_tokens)
            ids = torch.tensor([[*prompt, *tokens]], device=device)
            steps = slice(len(prompt) - 1, -1)
            parts = [module(ids).logits[0, steps].float() for module in (exact, rounded)]
            found.append(
                Golden(list(prompt), tokens, *(part.log_softmax(-1).cpu() for part in parts))
            )
    return found


def _load(path: Path, dtype: torch.dtype, device: str) -> Any:
    source: dict[str, Any] = {}
    if path.is_file():
        dense = transformers.GgufConfig(dequantize=True)
        source = {"gguf_file": path.name, "quantization_config": dense}
    module = transformers.AutoModelForCausalLM.from_pretrained(
        path if path.is_dir() else path.parent, dtype=dtype, attn_implementation="eager", **source
    )
    return module.to(device).eval()


def _greedy(module: Any, prompt: Sequence[int], num_tokens: int) -> list[int]:
    ids = torch.tensor([list(prompt)], device=module.device)
    out = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer

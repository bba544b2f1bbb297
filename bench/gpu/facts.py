"""The card, its clocks, the versions of what runs on it, and what it can do at most."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import torch
import torch.nn.functional as F

from bench.gpu.options import Options
from bench.gpu.record import Record
from bench.gpu.shapes import SHAPES
from bench.gpu.timing import best_us
from lmserve.bench.machine import describe, package_version

PACKAGES = (
    *("torch", "triton", "flash-attn", "flash-attn-3", "flash-attn-4", "transformers"),
    *("safetensors", "tokenizers", "torchao", "lmserve"),
)
QUERY = (
    *("name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm"),
    *("clocks.max.mem", "clocks.applications.graphics", "power.limit", "temperature.gpu"),
    *("clocks_event_reasons.active", "mig.mode.current", "utilization.gpu", "memory.used"),
)
ROWS = (1, 32, 256, 4096)


def measure(options: Options, record: Record) -> None:
    record.figure("machine", describe())
    record.figure("versions", {name: package_version(name) for name in PACKAGES})
    if options.cuda:
        record.figure("card", card())
        record.figure("nvidia_smi", nvidia_smi())
    record.figure("read_tb_s", read_tb_s(options))
    record.figure("gemm_tflop_s", gemm_tflop_s(options))
    record.figure("products", products(options, record))
    if options.cuda:
        record.figure("nvidia_smi_after", nvidia_smi())  # the clocks under load


def card() -> dict[str, Any]:
    of = torch.cuda.get_device_properties(0)
    return {
        "name": of.name,
        "capability": f"{of.major}.{of.minor}",
        "multiprocessors": of.multi_processor_count,
        "memory_gib": round(of.total_memory / 2**30, 1),
        "l2_mib": round(of.L2_cache_size / 2**20, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def nvidia_smi() -> dict[str, str]:
    """One field at a time where the driver does not know them all."""
    if shutil.which("nvidia-smi") is None:
        return {"error": "no nvidia-smi"}
    values = _ask(",".join(QUERY))
    if len(values) == len(QUERY):
        return dict(zip(QUERY, values, strict=True))
    return {name: " ".join(_ask(name)) for name in QUERY}


def _ask(names: str) -> list[str]:
    command = ["nvidia-smi", "--id=0", f"--query-gpu={names}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return [word.strip() for word in done.stdout.strip().split(",")] if not done.returncode else []


def read_tb_s(options: Options) -> float:
    """Of a sum over memory that no cache holds."""
    numbers = torch.ones(
        2**16 if options.tiny else 2**30, device=options.device, dtype=torch.bfloat16
    )
    us = best_us(lambda _: numbers.sum(dtype=torch.float32), options.device, repeats=4)
    return round(numbers.nbytes / us / 1e6, 3)


def gemm_tflop_s(options: Options) -> float:
    """Of a large square product in bfloat16."""
    size = 64 if options.tiny else 8192
    a, b = (torch.randn(size, size, device=options.device, dtype=torch.bfloat16) for _ in range(2))
    us = best_us(lambda _: a @ b, options.device, repeats=4)
    return round(2 * size**3 / us / 1e6, 3)


def products(options: Options, record: Record) -> dict[str, dict[str, float]]:
    """torch's products with the first shape's weights, by the number of rows."""
    of = SHAPES[options.measured[0]]
    hidden, inner = of["hidden_size"], of["intermediate_size"]
    qkv = (of["num_attention_heads"] + 2 * of["num_key_value_heads"]) * of["head_dim"]
    sizes = {
        "qkv": (qkv, hidden),
        "o": (hidden, of["num_attention_heads"] * of["head_dim"]),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
        "head": (of["vocab_size"], hidden),
    }
    found = {}
    for name, (num_out, num_in) in sizes.items():
        for rows in ROWS[:2] if options.tiny else ROWS:
            found[f"{name}, {rows} rows"] = _product(options, num_out, num_in, rows)
    return found


def _product(options: Options, num_out: int, num_in: int, rows: int) -> dict[str, float]:
    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=options.device, dtype=torch.bfloat16)

    weights = [randn(num_out, num_in) for _ in range(4)]  # in turn: beyond the L2
    x = randn(rows, num_in)
    us = best_us(lambda number: F.linear(x, weights[number % 4]), options.device, repeats=8)
    return {
        "us": round(us, 2),
        "tb_s": round(weights[0].nbytes / us / 1e6, 3),
        "tflop_s": round(2 * rows * num_out * num_in / us / 1e6, 3),
    }

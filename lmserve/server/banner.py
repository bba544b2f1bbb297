"""What a person reads in the terminal once the model is ready."""

from __future__ import annotations

import os

from lmserve.messages import EngineInfo


def ready_lines(url: str, name: str | None, info: EngineInfo, load_s: float) -> str:
    """Where to go, what answers there, and on what it runs."""
    rows = [
        ("chat page", f"{url}/chat"),
        ("API", f"{url}/v1 (documented at {url}/)"),
        ("model", name or os.path.basename(info.model_path)),
    ]
    if info.num_parameters:
        millions = info.num_parameters / 1e6
        num_tokens, mib = info.num_blocks * info.block_size, info.kv_cache_bytes / 2**20
        rows += [
            ("", f"{info.architecture}, {millions:,.0f} million parameters, {info.weights}"),
            ("runs on", f"{info.device}, computing in {info.dtype}"),
            ("contexts", f"up to {info.max_model_len:,} tokens"),
            ("KV cache", f"{num_tokens:,} tokens, {mib:,.0f} MiB"),
        ]
    block = "\n".join(f"  {label:<11}{text}" for label, text in rows)
    return f"ready after {load_s:.1f} s\n\n{block}\n\nCtrl-C stops it; running answers may finish."

"""What others were measured at, once, before lmserve had this path: figures to compare with where
they are not measured in the same run. Same prompts and settings as `rows.py`.

One H100 80 GB, bf16, random weights, prefix caching off, torch 2.11, 2026-11-22; vLLM 0.26.0,
LMDeploy 0.18.0 (PyTorch engine)."""

from __future__ import annotations

from dataclasses import dataclass

from bench.gpu.shapes import LARGE, SMALL


@dataclass(frozen=True, slots=True)
class Reference:
    """Tokens a second. The limit: weights and KV read at 3.04 TB/s, products at 750 TFLOP/s."""

    vllm: float
    lmdeploy: float | None = None
    limit: float | None = None


OFFLINE = {
    LARGE: {
        "bs1_128_256": Reference(147.3, 146.0, 200),
        "bs32_128_256": Reference(4117, 4022, 5600),
        "bs256_128_256": Reference(15_852, 15_109, 23_700),
        "thr512_512_256": Reference(9125, 6931, 11_300),
        "prefill64_2048_8": Reference(40_190, 35_542, 49_500),
    },
    SMALL: {
        "bs1_128_256": Reference(467, 317),
        "bs32_128_256": Reference(11_049, 8978),
        "bs256_128_256": Reference(39_263, 34_951),
        "thr512_512_256": Reference(25_729, 19_476),
    },
}
# users: tokens a second, median time to first token in ms; of vLLM, 8B, 512->128
HTTP = {1: (142.0, 23.0), 32: (2841.0, 381.0), 128: (5292.0, 1064.0), 256: (5629.0, 1902.0)}
START_S = 112.0  # vLLM, 8B: from the command until it serves

"""What the interpreter's conversions should give: torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

DTYPES = {
    "fp8e4nv": torch.float8_e4m3fn,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def convert(data: np.ndarray, source: Any, target: Any, _mode: object) -> np.ndarray:
    """In place of the interpreter's `_convert_float`: the bits of the result."""
    wide = np.ascontiguousarray(data).view(f"i{data.itemsize}" if data.itemsize > 1 else "u1")
    found = torch.from_numpy(wide).view(DTYPES[str(source)]).to(DTYPES[str(target)])
    bits = found.view(BITS[found.itemsize]).numpy()
    return bits.view(f"u{found.itemsize}").reshape(data.shape)

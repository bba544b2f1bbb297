"""lmserve's settings for what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.gpu.options import Options
from bench.gpu.rows import MAX_BATCH_SIZE, MAX_MODEL_LEN
from lmserve.settings import EngineSettings


def settings_of(model: Path, options: Options, **more: Any) -> EngineSettings:
    """As the peers are run: no prefix cache, random weights."""
    own: dict[str, Any] = {
        "session_len": MAX_MODEL_LEN,
        "max_batch_size": MAX_BATCH_SIZE,
        "prefix_cache": False,
        "load_format": "dummy",
    }
    if options.tiny:
        own |= {"num_blocks": 256, "max_batch_size": 8, "max_step_tokens": 64, "threads": 1}
    own |= {"model": str(model), "device": options.device, "kernels": options.kernels}
    return EngineSettings(**(own | more))


def flags_of(settings: EngineSettings) -> list[str]:
    """The same for a server's command line, where it differs from the default."""
    default = EngineSettings()
    flags = []
    for name in EngineSettings.__dataclass_fields__:
        value = getattr(settings, name)
        if name == "model" or value == getattr(default, name):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags

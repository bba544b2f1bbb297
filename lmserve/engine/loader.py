"""From settings to a runner: device, dtype, weights, attention, KV cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lmserve.attention.base import AttentionBackend
from lmserve.attention.paged import PagedAttention
from lmserve.attention.select import select_attention
from lmserve.device.select import choose_device
from lmserve.engine.base_runner import BaseRunner
from lmserve.engine.cache.layout import CacheLayout
from lmserve.engine.device_runner import DeviceRunner
from lmserve.engine.memory import choose_layout
from lmserve.engine.numerics import choose_numerics, num_threads
from lmserve.engine.runner import Runner
from lmserve.engine.step_runner import default_batch_size
from lmserve.errors import ModelError, SettingsError
from lmserve.models.native import NativeDecoder
from lmserve.models.registry import build
from lmserve.settings import EngineSettings
from lmserve.weights.checkpoint import open_checkpoint
from lmserve.weights.files import cache_dir
from lmserve.weights.identity import WeightFiles
from lmserve.weights.tokenizer import sampling_defaults

log = logging.getLogger(__name__)

Progress = Callable[[str], None]


def load_runner(settings: EngineSettings, progress: Progress) -> BaseRunner:
    """Loads `settings.model`, a local path by now. Raises SetupError with one line."""
    if settings.model is None:
        raise ModelError("no model path was given to the engine")
    path, cache = Path(settings.model), cache_dir(settings.cache_dir)
    if choose_device(settings.device).type == "cuda":
        keep_compiled(cache)
    numerics = choose_numerics(settings)
    if numerics.device.type == "cpu":
        torch.set_num_threads(num_threads(settings))
    progress("reading the model")
    files = WeightFiles(path)  # before they are read
    checkpoint = open_checkpoint(path, cache, settings.load_format)
    progress("loading the weights")
    model = build(checkpoint, str(path), numerics)
    attention = select_attention(
        settings.attention,
        replace(model.info.cache, block_size=settings.block_size or 0),
        numerics.kv_dtype,
        numerics.device,
        numerics.deterministic,
        numerics.kernels,
        options=model.info.attention,
        paged=numerics.fused is not None,
    )
    progress("preparing the tokenizer")
    assets = checkpoint.tokenizer_assets()
    defaults = sampling_defaults(settings.generation_config, assets.generation_defaults)

    ahead = overlaps(settings, attention)

    def make_runner(layout: CacheLayout) -> BaseRunner:
        given: dict[str, Any] = {
            "model_path": str(path),
            "assets": replace(assets, generation_defaults=defaults),
            "files": files,
        }
        if not isinstance(attention, PagedAttention):
            return Runner(model, attention, layout, numerics, **given)
        device = numerics.device.type
        return DeviceRunner(
            model,
            attention,
            layout,
            numerics,
            max_rows=settings.max_batch_size or default_batch_size(device),
            graphs=settings.graphs,
            overlaps=ahead,
            **given,
        )

    runner = make_runner(choose_layout(settings, model, attention, make_runner))
    if isinstance(model, NativeDecoder):
        torch.set_num_threads(1)  # what is left to torch is small, and its threads spin
    progress("warming up")
    runner.warm_up()
    log.info(
        "%s, %s: %d KV blocks of %d tokens (%.0f MiB), contexts up to %d tokens",
        runner.architecture,
        runner.weights,
        runner.num_blocks,
        runner.block_size,
        runner.kv_cache_bytes / 2**20,
        runner.max_model_len,
    )
    return runner


def keep_compiled(cache: Path) -> None:
    """Kernels that Triton compiles are kept beside the models, where a later start finds them: the
    home of a container, its own choice, is new each time. A user's choice stands."""
    folder = cache / "triton"
    if "TRITON_CACHE_DIR" in os.environ:
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        os.environ["TRITON_CACHE_DIR"] = str(folder)


def overlaps(settings: EngineSettings, attention: AttentionBackend) -> bool:
    """Whether a step is launched before the one before it is read."""
    is_able = isinstance(attention, PagedAttention)
    if settings.overlap != "on":
        is_wanted = settings.overlap == "auto" and attention.device.type == "cuda"
        return is_wanted and is_able and settings.speculation == "off"
    if not is_able:
        raise SettingsError(
            f"--overlap on does not go with --attention {attention.name}, whose steps are waited "
            "for; use --overlap auto"
        )
    if settings.speculation != "off":
        raise SettingsError(
            "--overlap on does not go with --speculation, which needs each token before the next "
            "step; use one of the two"
        )
    return True

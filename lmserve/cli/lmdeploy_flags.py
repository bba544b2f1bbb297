"""The flags of LMDeploy's `serve api_server` that are not named as a setting of ours.

Each stands for a setting, or has no effect and says so, or is refused. Those that share a
setting's name (`--session-len`, `--api-keys`, …) are in the catalogue of settings alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import click

from lmserve.errors import SettingsError
from lmserve.fields import WrongValue, catalogue
from lmserve.settings import Settings

Given = dict[str, str | bool]  # settings' flags, by field name
# (the value, the settings without this flag) -> what it stands for; may warn or refuse
Effect = Callable[[str, Settings], Given]


@dataclass(frozen=True, slots=True)
class LmdeployFlag:
    name: str
    takes: type  # str; bool: no value; tuple: all words up to the next flag
    help: str
    effect: Effect

    @property
    def param(self) -> str:
        return "lmdeploy_" + self.name.strip("-").replace("-", "_")


def same_as(name: str, setting: str, *, default: str | None = None) -> LmdeployFlag:
    """Another name of a setting; `default` leaves the setting as it is."""
    field = catalogue()[setting]

    def effect(value: str, _: Settings) -> Given:
        if default is not None and _same(value, default):
            return {}
        _checked(name, setting, value)
        return {setting: value}

    note = f" ({default}: its default)" if default is not None else ""
    return LmdeployFlag(name, str, f"the same as {field.flag}{note}", effect)


def switch(name: str, setting: str, on: bool) -> LmdeployFlag:
    flag = catalogue()[setting].flag
    spelling = flag if on else flag.replace("--", "--no-")
    return LmdeployFlag(name, bool, f"the same as {spelling}", lambda *_: {setting: on})


def only(name: str, *values: str, why: str) -> LmdeployFlag:
    """Refused but for these values, which change nothing."""

    def effect(value: str, _: Settings) -> Given:
        if any(_same(value, each) for each in values):
            return {}
        raise SettingsError(f"{name} {value}: {why}; leave it at {' or '.join(values)}")

    return LmdeployFlag(name, str, f"{' or '.join(values)}; else refused: {why}", effect)


def ignored(name: str, why: str = "TurboMind's own", *, takes: type = str) -> LmdeployFlag:
    def effect(*_: object) -> Given:
        click.echo(f"Warning: {name} has no effect here: {why}", err=True)
        return {}

    return LmdeployFlag(name, takes, f"no effect, with a warning: {why}", effect)


def fine(name: str, why: str) -> LmdeployFlag:
    """A switch for what is so anyway."""
    return LmdeployFlag(name, bool, f"taken: {why}", lambda *_: {})


def refused(name: str, why: str, *, takes: type = str) -> LmdeployFlag:
    def effect(*_: object) -> Given:
        raise SettingsError(f"{name}: {why}; leave it out")

    return LmdeployFlag(name, takes, f"refused: {why}", effect)


def _max_concurrent_requests(value: str, settings: Settings) -> Given:
    most = _checked("--max-concurrent-requests", "max_batch_size", value)
    limit = settings.engine.max_batch_size
    if limit is None and most >= LARGEST_BATCH_SIZE:
        return {}
    return {"max_batch_size": str(min(most, limit or most))}


def _backend(value: str, settings: Settings) -> Given:
    known = only("--backend", "turbomind", "pytorch", why="no such backend")
    return known.effect(value, settings) | ignored("--backend", ONE_ENGINE).effect(value, settings)


def _quant_policy(value: str, settings: Settings) -> Given:
    if _same(value, "fp8"):
        return {"kv_cache_dtype": "fp8"}
    why = f"a KV cache of whole numbers is {NOT_YET}; or fp8"
    return only("--quant-policy", "0", "none", why=why).effect(value, settings)


def _checked(name: str, setting: str, value: str) -> int:
    try:
        parsed: int = catalogue()[setting].parse(value)
    except WrongValue as error:
        raise SettingsError(f"{name} {error}") from None
    return parsed


def _same(value: str, other: str) -> bool:
    """As numbers, where both are."""
    try:
        return float(value) == float(other)
    except ValueError:
        return value.lower() == other.lower()


LARGEST_BATCH_SIZE = 256  # of the defaults by device
FORMATS = ("hf", "llama", "awq", "gptq", "fp8")  # as the model's own config.json says
ONE_ENGINE = "there is one engine"
NOT_YET = "not supported yet"
SPECULATION = (
    f"speculative decoding with a draft model is {NOT_YET}; --speculation ngram needs none"
)

FLAGS: tuple[LmdeployFlag, ...] = (
    LmdeployFlag(
        "--max-concurrent-requests",
        str,
        "at most this --max-batch-size; more requests wait",
        _max_concurrent_requests,
    ),
    same_as("--cache-block-seq-len", "block_size", default="-1"),
    same_as("--kernel-block-size", "block_size", default="-1"),
    same_as("--num-gpu-blocks", "num_blocks", default="0"),
    same_as("--max-prefill-token-num", "max_step_tokens"),
    same_as("--download-dir", "cache_dir"),
    switch("--enable-prefix-caching", "prefix_cache", True),
    switch("--disable-fastapi-docs", "docs", False),
    switch("--disable-metrics", "metrics", False),
    switch("--enable-metrics", "metrics", True),
    switch("--eager-mode", "graphs", False),
    fine("--language-model-only", "it reads text only"),
    fine("--disable-vision-encoder", "it reads text only"),
    # one device, one node, plain weights
    only("--tp", "1", why=f"tensor parallelism is {NOT_YET}"),
    only("--dp", "1", why=f"data parallelism is {NOT_YET} (see `lmserve serve proxy`)"),
    only("--dp-rank", "0", why=f"data parallelism is {NOT_YET} (see `lmserve serve proxy`)"),
    only("--ep", "1", why=f"expert parallelism is {NOT_YET}"),
    only("--nnodes", "1", why=f"a model over several nodes is {NOT_YET}"),
    only("--node-rank", "0", why=f"a model over several nodes is {NOT_YET}"),
    only("--role", "Hybrid", why=f"prefill and decoding on different nodes is {NOT_YET}"),
    LmdeployFlag(
        "--quant-policy",
        str,
        "fp8: the same as --kv-cache-dtype fp8; 0 or none; else refused",
        _quant_policy,
    ),
    only("--model-format", *FORMATS, why=f"this format is {NOT_YET}"),
    only("--rope-scaling-factor", "0", why=f"another scaling than the model's is {NOT_YET}"),
    refused("--adapters", f"LoRA adapters are {NOT_YET}", takes=tuple),
    refused("--hf-overrides", f"changes to the model's configuration are {NOT_YET}"),
    refused("--empty-init", "weights are always loaded", takes=bool),
    # what answers may hold
    refused("--logprobs-mode", f"this is {NOT_YET}"),
    refused("--enable-return-routed-experts", f"this is {NOT_YET}", takes=bool),
    refused("--speculative-algorithm", SPECULATION),
    refused("--speculative-draft-model", SPECULATION),
    refused("--speculative-num-draft-tokens", SPECULATION),
    refused("--speculative-dflash-block-size", SPECULATION),
    refused("--kv-transfer-config", f"moving the KV cache between nodes is {NOT_YET}"),
    refused("--qos-config-path", f"quality of service by user is {NOT_YET}"),
    # LMDeploy's engines and their launchers
    ignored("--trust-remote-code", "a model's own code is never run", takes=bool),
    LmdeployFlag("--backend", str, f"no effect, with a warning: {ONE_ENGINE}", _backend),
    ignored("--cp"),
    ignored("--num-tokens-per-iter"),
    ignored("--max-prefill-iters"),
    ignored("--async"),
    ignored("--communicator"),
    ignored("--moe-a2a-backend"),
    ignored("--dist-init-addr"),
    ignored("--distributed-executor-backend", ONE_ENGINE),
    ignored("--cudagraph-capture-batch-sizes", "steps capture what they need", takes=tuple),
    ignored("--piecewise-cudagraph-max-tokens", "graphs are of decodes alone"),
    ignored("--enable-microbatch", ONE_ENGINE, takes=bool),
    ignored("--enable-eplb", ONE_ENGINE, takes=bool),
    ignored("--migration-backend", "nothing is moved between nodes"),
    ignored("--vision-max-batch-size", "text only"),
    ignored("--allowed-media-domains", "text only, nothing is fetched", takes=tuple),
)

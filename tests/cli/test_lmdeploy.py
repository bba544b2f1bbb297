"""`lmserve serve api_server` as LMDeploy's users type it, up to where the server would start."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lmserve.cli.lists import fold_lists
from lmserve.cli.lmdeploy_flags import FLAGS
from lmserve.cli.main import cli
from lmserve.server import lifecycle
from lmserve.settings import Settings

MOCK = ("--engine", "mock", "--server-port", "0")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of each server that would have been started."""
    settings: list[Settings] = []
    monkeypatch.setattr(lifecycle, "serve", lambda given, _announce: settings.append(given))
    return settings


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, ["serve", "api_server", *args])


def start(started: list[Settings], *args: str) -> tuple[Settings, str]:
    """What would be served, and what was said."""
    result = invoke(*args, *MOCK)
    assert result.exit_code == 0, result.output
    return started.pop(), result.stderr


def refusal(started: list[Settings], *args: str) -> str:
    result = invoke(*args, *MOCK)
    assert (result.exit_code, result.stdout, started) == (1, "", [])
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ").strip()


def spellings(flag: str) -> Iterable[str]:
    return dict.fromkeys((flag, "--" + flag[2:].replace("-", "_")))


def cases(table: dict[str, tuple[Any, ...]]) -> list[Any]:
    """Each line of the table in both spellings."""
    return [
        pytest.param(spelling, *values, id=f"{spelling} {values[0]}")
        for line, values in table.items()
        for spelling in spellings(line.split()[0])
    ]


# LMDeploy's flag: (its value, our setting, what that is then)
SAME: dict[str, tuple[Any, ...]] = {
    "--server-name": ("0.0.0.0", "server.server_name", "0.0.0.0"),
    "--allow-origins": ("http://a,http://b", "server.allow_origins", ("http://a", "http://b")),
    "--allow-methods": ("GET", "server.allow_methods", ("GET",)),
    "--allow-headers": ("X-A", "server.allow_headers", ("X-A",)),
    "--allow-credentials": (None, "server.allow_credentials", True),
    "--api-keys": ("k1", "server.api_keys", ("k1",)),
    "--log-level": ("ERROR", "log.log_level", "error"),
    "--log-level 2": ("CRITICAL", "log.log_level", "error"),
    "--log-level 3": ("WARN", "log.log_level", "warning"),
    "--log-level 4": ("NOTSET", "log.log_level", "debug"),
    "--max-log-len": ("100", "log.max_log_len", 100),
    "--disable-fastapi-docs": (None, "server.docs", False),
    "--model-name": ("internlm-chat-7b", "server.model_name", "internlm-chat-7b"),
    "--meta-instruction": ("Be kind.", "server.meta_instruction", "Be kind."),
    "--cap": ("completion", "server.cap", "completion"),
    "--chat-template": ("llama2", "server.chat_template", "llama2"),
    "--session-len": ("4096", "engine.session_len", 4096),
    "--max-batch-size": ("128", "engine.max_batch_size", 128),
    "--cache-max-entry-count": ("0.5", "engine.cache_max_entry_count", 0.5),
    "--proxy-url": ("http://localhost:8000", "server.proxy_url", "http://localhost:8000"),
    "--max-concurrent-requests": ("8", "engine.max_batch_size", 8),
    "--max-concurrent-requests 2": ("800", "engine.max_batch_size", None),
    "--eager-mode": (None, "engine.graphs", False),
    "--allow-terminate-by-client": (None, "server.allow_terminate_by_client", True),
    "--enable-abort-handling": (None, "server.enable_abort_handling", True),
    "--generation-config": ("lmdeploy", "engine.generation_config", "lmdeploy"),
    "--revision": ("v1.0", "engine.revision", "v1.0"),
    "--download-dir": ("/models", "engine.cache_dir", "/models"),
    "--dtype": ("bfloat16", "engine.dtype", "bfloat16"),
    "--device": ("cuda", "engine.device", "cuda"),
    "--cache-block-seq-len": ("64", "engine.block_size", 64),
    "--cache-block-seq-len 2": ("-1", "engine.block_size", None),
    "--kernel-block-size": ("32", "engine.block_size", 32),
    "--kernel-block-size 2": ("-1", "engine.block_size", None),
    "--num-gpu-blocks": ("100", "engine.num_blocks", 100),
    "--num-gpu-blocks 2": ("0", "engine.num_blocks", None),
    "--enable-prefix-caching": (None, "engine.prefix_cache", True),
    "--max-prefill-token-num": ("8192", "engine.max_step_tokens", 8192),
    "--disable-metrics": (None, "server.metrics", False),
    "--enable-metrics": (None, "server.metrics", True),
}


@pytest.mark.parametrize(("flag", "value", "setting", "expected"), cases(SAME))
def test_a_flag_that_is_a_setting(
    started: list[Settings], flag: str, value: str | None, setting: str, expected: Any
):
    settings, said = start(started, flag, *([] if value is None else [value]))
    section, name = setting.split(".")
    assert getattr(getattr(settings, section), name) == expected
    assert said == ""


def test_tls(started: list[Settings], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lifecycle, "check", lambda _settings: None)  # it wants a certificate
    assert start(started, "--ssl")[0].server.ssl is True


# accepted as it changes nothing
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "--tp": ("1",),
    "--dp": ("1",),
    "--dp-rank": ("0",),
    "--ep": ("1",),
    "--nnodes": ("1",),
    "--node-rank": ("0",),
    "--role": ("Hybrid",),
    "--role 2": ("hybrid",),
    "--quant-policy": ("0",),
    "--quant-policy 2": ("none",),
    "--model-format": ("hf",),
    "--model-format 2": ("llama",),
    "--model-format 3": ("awq",),
    "--rope-scaling-factor": ("0.0",),
    "--rope-scaling-factor 2": ("0",),
    "--language-model-only": (None,),
    "--disable-vision-encoder": (None,),
}


@pytest.mark.parametrize(("flag", "value"), cases(NEUTRAL))
def test_a_flag_that_asks_for_what_is_so(started: list[Settings], flag: str, value: str | None):
    settings, said = start(started, flag, *([] if value is None else [value]))
    assert settings == start(started)[0]
    assert said == ""


IGNORED: dict[str, tuple[Any, ...]] = {
    "--backend": ("turbomind",),
    "--backend 2": ("pytorch",),
    "--trust-remote-code": (None,),
    "--cp": ("2",),
    "--num-tokens-per-iter": ("0",),
    "--max-prefill-iters": ("1",),
    "--async": ("1",),
    "--communicator": ("nccl",),
    "--moe-a2a-backend": ("auto",),
    "--dist-init-addr": ("localhost:1",),
    "--distributed-executor-backend": ("ray",),
    "--cudagraph-capture-batch-sizes": ("1",),
    "--piecewise-cudagraph-max-tokens": ("512",),
    "--enable-microbatch": (None,),
    "--enable-eplb": (None,),
    "--migration-backend": ("DLSlime",),
    "--vision-max-batch-size": ("4",),
    "--allowed-media-domains": ("example.org",),
}


@pytest.mark.parametrize(("flag", "value"), cases(IGNORED))
def test_a_flag_without_effect_says_so(started: list[Settings], flag: str, value: str | None):
    settings, said = start(started, flag, *([] if value is None else [value]))
    assert settings == start(started)[0]
    assert said.startswith(f"Warning: {flag.replace('_', '-')} has no effect here: ")
    assert said.count("\n") == 1


REFUSED: dict[str, tuple[Any, ...]] = {
    "--tp": ("2", "tensor parallelism is not supported yet; leave it at 1"),
    "--dp": ("8", "data parallelism is not supported yet"),
    "--dp-rank": ("1", "data parallelism is not supported yet"),
    "--ep": ("2", "expert parallelism is not supported yet"),
    "--nnodes": ("2", "not supported yet"),
    "--node-rank": ("1", "not supported yet"),
    "--role": ("Prefill", "not supported yet"),
    "--quant-policy": ("4", "not supported yet; or fp8; leave it at 0 or none"),
    "--quant-policy 2": ("int8", "a KV cache of whole numbers is not supported yet"),
    "--model-format": ("ct2", "not supported yet; leave it at hf or llama or awq or gptq or fp8"),
    "--rope-scaling-factor": ("2.0", "not supported yet"),
    "--adapters": ("a=x", "LoRA adapters are not supported yet"),
    "--hf-overrides": ("{}", "not supported yet"),
    "--empty-init": (None, "weights are always loaded"),
    "--logprobs-mode": ("raw_logits", "not supported yet"),
    "--enable-return-routed-experts": (None, "not supported yet"),
    "--speculative-algorithm": ("eagle", "with a draft model is not supported yet"),
    "--speculative-draft-model": ("x", "with a draft model is not supported yet"),
    "--speculative-num-draft-tokens": ("1", "with a draft model is not supported yet"),
    "--speculative-dflash-block-size": ("1", "with a draft model is not supported yet"),
    "--kv-transfer-config": ("{}", "not supported yet"),
    "--qos-config-path": ("qos.json", "not supported yet"),
    "--backend": ("vllm", "no such backend"),
    "--max-concurrent-requests": ("0", "must be a whole number at least 1, not 0"),
    "--cache-block-seq-len": ("x", "must be a whole number at least 1, not 'x'"),
    "--num-gpu-blocks": ("-5", "must be a whole number at least 1, not -5"),
    "--max-prefill-token-num": ("0", "must be a whole number at least 1"),
    "--cap": ("infilling", "must be one of chat, completion, python, not 'infilling'"),
    "--log-level": ("LOUD", "must be one of debug, info, warning, error"),
    "--chat-template": ("vicunia", "no template has this name"),
}


@pytest.mark.parametrize(("flag", "value", "words"), cases(REFUSED))
def test_a_flag_that_is_refused(started: list[Settings], flag: str, value: str | None, words: str):
    said = refusal(started, flag, *([] if value is None else [value]))
    assert said.startswith(flag.replace("_", "-")) and words in said


def test_every_flag_of_the_table_is_tested():
    tested = {line.split()[0] for table in (SAME, NEUTRAL, IGNORED, REFUSED) for line in table}
    assert {flag.name for flag in FLAGS} <= tested


def test_the_pages_launch_line(started: list[Settings], tmp_path: Path):
    model = str(tmp_path / "model")
    page = ("--server-name", "0.0.0.0", "--server-port", "0", "--tp", "1")
    given = ("--session_len", "2048", "--meta_instruction=Be kind.", "--cache_max_entry_count=0.5")
    settings, said = start(started, model, *page, *given)
    assert settings.engine.model == model
    assert settings.server.server_name == "0.0.0.0"
    assert settings.engine.session_len == 2048
    assert settings.engine.cache_max_entry_count == 0.5
    assert settings.server.meta_instruction == "Be kind."
    assert said == ""


def test_a_turbomind_workspace_wants_the_original_model(started: list[Settings], tmp_path: Path):
    (tmp_path / "triton_models" / "weights").mkdir(parents=True)
    result = invoke(str(tmp_path), "--server-port", "0")
    assert (result.exit_code, started) == (1, [])
    assert "is a TurboMind workspace; give the original model directory" in result.stderr


def test_lists_take_all_words_up_to_the_next_flag(started: list[Settings]):
    settings, _ = start(
        started,
        *("model", "--api_keys", "k1", "k2", "k3", "--allow-origins", "http://a", "http://b"),
        *("--allow-methods=GET,POST", "--session-len", "100"),
    )
    assert settings.engine.model == "model"
    assert settings.server.api_keys == ("k1", "k2", "k3")
    assert settings.server.allow_origins == ("http://a", "http://b")
    assert settings.server.allow_methods == ("GET", "POST")
    assert settings.engine.session_len == 100


@pytest.mark.parametrize("args", [("--api_keys", "--ssl"), ("--api_keys",), ("--adapters", "--")])
def test_a_list_of_nothing_is_refused(started: list[Settings], args: tuple[str, ...]):
    result = invoke(*args)
    assert (result.exit_code, started) == (2, [])
    assert f"Option '{args[0]}' requires an argument" in result.stderr


@pytest.mark.parametrize(
    ("args", "folded"),
    [
        ("m --l a b", "m --l a,b"),
        ("--l a b -v c", "--l a,b -v c"),
        ("--l a -- b --l c", "--l a -- b --l c"),
        ("--l=a b", "--l=a b"),
        ("--x a b", "--x a b"),
        ("--l a --l b c", "--l a --l b,c"),
        ("", ""),
    ],
)
def test_folding(args: str, folded: str):
    assert list(fold_lists(args.split(), {"--l"})) == folded.split()


def test_a_templates_capability_is_the_cap_where_nobody_says_another(
    started: list[Settings], tmp_path: Path
):
    path = tmp_path / "template.json"
    path.write_text(json.dumps({"model_name": "qwen", "capability": "completion"}))
    template = ("--chat-template", str(path))
    assert start(started, *template)[0].server.cap == "completion"
    assert start(started, *template, "--cap", "chat")[0].server.cap == "chat"


def test_the_help_lists_them_apart():
    text = invoke("--help").stdout
    ours, theirs = text.split("LMDeploy's flags:")
    assert "--session-len" in ours and "--cp " not in ours
    assert {flag.name for flag in FLAGS if f"{flag.name} " not in theirs} == set()
